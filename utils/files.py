"""Files: errors that name them, limits to what is read, tables, and writing in one step."""

import contextlib
import csv
import errno
import io
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

SHOWN = 10  # names in one message
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # Pillow starts programs for some: Ghostscript for EPS
MAX_PIXELS = 2**26  # of an image: 8192 x 8192; the largest official one has half as many
HALF_WRITTEN = re.compile(r"\.[0-9a-f]{16}\.tmp")  # names of files that `write_atomically` has not finished
LONGEST_NAME = 240  # bytes; with "_overlay.png" behind it, it must be the name of a file


def some(names: Iterable[Any], shown: int = SHOWN) -> str:
    """The first names, and how many more there are, as one string; "" for none."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(str(name) for name in names[:shown]) + more


def printable(name: object) -> str:
    """A path or text that can be written in UTF-8: bytes of a file's name that are not UTF-8 as \\udcXX."""
    return str(name).encode(errors="backslashreplace").decode()


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, each once."""
    return [name for name, count in Counter(names).items() if count > 1]


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes a ValueError, or stays an OSError, that names the file.

    The libraries raise more kinds of errors for damaged files than they document."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} cannot be read: found no image, expected {', '.join(IMAGE_FORMATS)}") from error
    except Exception as error:
        if isinstance(error, OSError | ValueError) and str(path) in str(error):
            raise
        found = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {found}") from error


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """A Pillow image of one of IMAGE_FORMATS, whose pixels are not decoded yet. Errors in the block name the file.

    Raises ValueError for what would be read only in part, or differently from what was meant (several pictures in one
    file, 16 bits that Pillow would cut to 8, other colours than grey and RGB), and for more than MAX_PIXELS."""
    with reading(path), Image.open(path, formats=IMAGE_FORMATS) as file:
        width, height = file.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels, expected at most {MAX_PIXELS}")
        pictures = getattr(file, "n_frames", 1)
        if file.format not in ("JPEG", "MPO") and pictures > 1:  # MPO: a JPEG with a phone's extras
            raise ValueError(f"it holds {pictures} pictures, expected one")
        if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise ValueError(f"its colours are {file.mode}, expected grey or RGB")
        bits = bits_of_sample(file)
        if bits > 8 and file.mode in ("L", "LA", "RGB", "RGBA"):
            raise ValueError(f"its {'colours' if 'R' in file.mode else 'greys'} have {bits} bits, expected 8")
        yield file


def bits_of_sample(file: Image.Image) -> int:
    """Bits of a value in an open PNG or TIFF file, from its header; 8 for other formats, which have no more."""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return max(file.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
    if isinstance(file, PngImagePlugin.PngImageFile):
        with open(file.filename, "rb") as stored:
            return stored.read(25)[24]  # signature, length and name of IHDR, width, height, bit depth
    return 8


def check_name(name: str, where: str | Path) -> None:
    """Raises ValueError for a name that can't be a file name: it is too long, not UTF-8, or a path."""
    if any(sign in name for sign in "/\\\0") or name in ("", ".", ".."):
        raise ValueError(f"{where}: found the name {name!r}, expected one without a path")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{where}: found the name {name!r}, expected one in UTF-8") from None
    if length > LONGEST_NAME:
        raise ValueError(f"{where}: found a name of {length} bytes, expected at most {LONGEST_NAME}: {name[:60]}...")


# ---- writing, tables


def write_atomically(path: str | Path, *parts: bytes | memoryview) -> None:
    """Writes the bytes of `parts` to `path` in one step: nobody finds half of them, not even after a crash."""
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # of this process alone
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise OSError(f"{path}: could not be written, what was there before is untouched: {reason}") from error
    _sync_folder(path.parent)


def remove_half_written(folder: str | Path) -> None:
    """Removes what killed processes left of files that they were writing. Nobody may be writing in `folder`."""
    for path in Path(folder).glob("**/.*.tmp"):
        if HALF_WRITTEN.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure; Windows does that by itself and can't open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file as dicts of text; none if the file is not there."""
    if not Path(path).exists():
        return []
    with reading(path), open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes dicts as a CSV file, in one step. The columns are all keys in order of appearance; floats are exact."""
    text = io.StringIO(newline="")
    if rows:
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
