"""File access: errors that name the file, limits on images, CSV tables, atomic writes."""

import codecs
import contextlib
import csv
import errno
import io
import itertools
import json
import os
import re
import secrets
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

MAX_NAMES = 10  # in one message
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # for some others Pillow runs programs: Ghostscript for EPS
MAX_PIXELS = 2**26  # of an image: 8192 x 8192; the largest ISIC image has half as many
TEMPORARY_NAME = f".{16 * '[0-9a-f]'}.tmp"  # pattern of the file that `write_atomically` is writing
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes of a colour profile or text, which some programs make larger than 1 MB
LONGEST_NAME = 240  # bytes; "_overlay.png" is appended, and file systems allow 255
# The folder of data/ and results/: that of the code or, of the installed package, the current one
REPOSITORY = Path() if __name__.startswith("vmunet.") else Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"  # of runs without --work-dir
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")  # a spreadsheet may run text that begins so; apostrophes protect it
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def find_path(path: str | Path) -> Path:
    """Return a path, or the one in the repository for a relative path that only the repository has."""
    in_repository = REPOSITORY / path
    return in_repository if in_repository.exists() and not Path(path).exists() else Path(path)


def files_below(folder: str | Path) -> list[Path]:
    """Return the files of a folder and its subfolders, sorted. Links are followed, into each folder once."""
    found, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        found += [Path(parent, name) for name in names]
    return sorted(found)


def first_few(names: Iterable[Any], limit: int = MAX_NAMES) -> str:
    """Return the first `limit` names and the number of the others as one string; "" without names."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def printable(name: object) -> str:
    """Return a path or text as one line without control sequences for a terminal.

    Control characters, characters that change the writing direction, and bytes of file names that are not UTF-8 become
    escapes such as \\x1b, \\n and \\udcXX."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(name))


def print_any_text() -> None:
    """Let `print` write escapes where the console lacks a character, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def normal_name(name: str) -> str:
    """Return a name in the Unicode form NFC. Equal names may be stored in several forms (NFD on macOS)."""
    return unicodedata.normalize("NFC", name)


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


def read_text(path: str | Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises ValueError for another encoding."""
    content = Path(path).read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found another encoding ({error.reason}), expected text in UTF-8") from error


def read_json(path: str | Path, expected: str = "names and values") -> dict[str, Any]:
    """Return the named values of a JSON file. Raises ValueError, which says what is `expected`, for other contents."""
    with reading(path):
        content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}, expected {expected}")
    return content


def read_rows(path: str | Path, *needed: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dicts of text; [] if the file is empty or does not exist.

    A spreadsheet may have saved it: separated by semicolons or tabs, with decimal commas, which become points.
    Raises ValueError if one of the columns `needed` is missing, and for a row with more cells than the header."""
    text = read_text(path) if Path(path).exists() else ""
    separator = max(",;\t", key=re.sub('"[^"]*"', "", text.partition("\n")[0]).count)
    with reading(path):
        table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [_cells(line, separator) for line in table]
    header, *lines = lines or [[]]
    missing = [name for name in needed if text and name not in header]
    if missing or list_duplicates(header):
        raise ValueError(f"{path}: found the columns {first_few(header)}, expected {first_few(missing) or 'each once'}")
    for number, line in enumerate(lines, 2):
        if len(line) > len(header):
            raise ValueError(f"{path}: found more cells in line {number} than expected of its header")
    return [dict(itertools.zip_longest(header, line, fillvalue="")) for line in lines if line]


def write_rows(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write dicts as a CSV file, atomically. The columns are all keys in order of appearance; floats are exact.

    Text that a spreadsheet would run as a formula gets an apostrophe before it, which `read_rows` removes."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([row.get(name, "") for name in columns] for row in rows)] if rows else []
    text: list[str] = []  # the writer quotes cells that contain a character of its line end, here \r or \n
    file = SimpleNamespace(write=lambda line: text.append(line.removesuffix("\r\n") + "\n"))
    csv.writer(file, lineterminator="\r\n").writerows([_cell_to_write(value) for value in line] for line in lines)
    write_atomically(path, "".join(text).encode())


def _cell_to_write(value):
    is_formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def _cells(line, separator):
    """Return the cells of a line of a CSV file as they were written, without empty ones at its end."""
    while line and not line[-1]:
        line.pop()
    if separator != ",":
        line = [cell.replace(",", ".") if NUMBER.fullmatch(cell) else cell for cell in line]
    return [cell[cell.startswith("'") and FORMULA.match(cell) is not None :] for cell in line]
