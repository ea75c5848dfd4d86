"""File access: errors that name the file, limits on images, CSV tables, atomic writes."""

import contextlib
import csv
import errno
import io
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

MAX_NAMES = 10  # in one message
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # for some others Pillow runs programs: Ghostscript for EPS
MAX_PIXELS = 2**26  # of an image: 8192 x 8192; the largest ISIC image has half as many
TEMPORARY_NAME = f".{16 * '[0-9a-f]'}.tmp"  # pattern of the file that `write_atomically` is writing
LONGEST_NAME = 240  # bytes; "_overlay.png" is appended, and file systems allow 255
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"  # of runs without --work-dir


def find_path(path: str | Path) -> Path:
    """Return a path, or the one in the repository for a relative path that only the repository has."""
    in_repository = REPOSITORY / path
    return in_repository if in_repository.exists() and not Path(path).exists() else Path(path)


def first_few(names: Iterable[Any], limit: int = MAX_NAMES) -> str:
    """Return the first `limit` names and the number of the others as one string; "" without names."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def printable(name: object) -> str:
    """Return a path or text that UTF-8 can encode, with bytes of file names that are not UTF-8 as \\udcXX."""
    return str(name).encode(errors="backslashreplace").decode()


def list_duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn any error in the block into a ValueError, or keep an OSError, that names the file.

    For damaged files the libraries raise more kinds of errors than they document."""
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
    """Open an image of one of IMAGE_FORMATS without decoding its pixels. Errors in the block name the file.

    Raises ValueError for images that Pillow would read partly or wrongly (several pictures in one file, 16-bit colours,
    colours other than grey and RGB), and for more than MAX_PIXELS."""
    with reading(path), Image.open(path, formats=IMAGE_FORMATS) as file:
        width, height = file.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels, expected at most {MAX_PIXELS}")
        pictures = getattr(file, "n_frames", 1)
        if file.format not in ("JPEG", "MPO") and pictures > 1:  # MPO: a JPEG with further pictures of a phone
            raise ValueError(f"it holds {pictures} pictures, expected one")
        if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise ValueError(f"its colours are {file.mode}, expected grey or RGB")
        bits = bits_of_sample(file)
        if bits > 8 and file.mode in ("L", "LA", "RGB", "RGBA"):
            raise ValueError(f"its {'colours' if 'R' in file.mode else 'greys'} have {bits} bits, expected 8")
        yield file


def bits_of_sample(file: Image.Image) -> int:
    """Return the bits per sample of an open PNG or TIFF file, from its header; 8 for other formats."""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return max(file.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
    if isinstance(file, PngImagePlugin.PngImageFile):
        with open(file.filename, "rb") as stored:
            return stored.read(25)[24]  # signature, length and name of IHDR, width, height, bit depth
    return 8


def check_name(name: str, where: str | Path) -> None:
    """Raise ValueError for a name that can't be a file name: too long, not UTF-8, or a path."""
    if any(sign in name for sign in "/\\\0") or name in ("", ".", ".."):
        raise ValueError(f"{where}: found the name {name!r}, expected one without a path")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{where}: found the name {name!r}, expected one in UTF-8") from None
    if length > LONGEST_NAME:
        raise ValueError(f"{where}: found a name of {length} bytes, expected at most {LONGEST_NAME}: {name[:60]}...")


def write_atomically(path: str | Path, *parts: bytes | memoryview) -> None:
    """Write the bytes of `parts` to `path` so that the file is complete or unchanged, even after a crash."""
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # unique to this process
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
        raise OSError(f"{path}: could not be written, the previous file is unchanged: {reason}") from error
    if os.name == "nt":  # Windows makes a rename survive a power failure by itself, and can't open folders
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_temporary_files(folder: str | Path) -> None:
    """Remove the temporary files of killed processes. No process may be writing in `folder`."""
    for path in Path(folder).rglob(TEMPORARY_NAME):
        path.unlink(missing_ok=True)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dicts of text; [] if the file does not exist."""
    if not Path(path).exists():
        return []
    with reading(path), open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write dicts as a CSV file, atomically. The columns are all keys in order of appearance; floats are exact."""
    text = io.StringIO(newline="")
    if rows:
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
