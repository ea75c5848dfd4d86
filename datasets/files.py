"""Files that nobody vouches for: errors that name them, and limits to what is read."""

import contextlib

from PIL import Image, UnidentifiedImageError

SHOWN = 10  # names in one message
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # of Pillow's, which starts programs for some: Ghostscript for EPS
MAX_PIXELS = 2**26  # of an image: 8192 x 8192; the largest official one has half as many
MAX_VALUES = 2**29  # of an array: 2048 slices of 512 x 512
LONGEST_NAME = 240  # bytes; with "_overlay.png" behind it, it must be the name of a file


def some(names):
    """The first names of a list, and how many more there are, as one string."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(name) for name in names[:SHOWN]) + more


@contextlib.contextmanager
def reading(path):
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
def open_image(path):
    """A Pillow image of one of IMAGE_FORMATS, whose pixels are not decoded yet. Errors in the block name the file.

    Raises ValueError for what would be read only in part, or differently than it was meant (several pictures in one
    file, colours of 16 bits, other colours than grey and RGB), and for more than MAX_PIXELS."""
    with reading(path), Image.open(path, formats=IMAGE_FORMATS) as file:
        width, height = file.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels, expected at most {MAX_PIXELS}")
        if file.format != "JPEG" and getattr(file, "n_frames", 1) > 1:  # those of a JPEG are a phone's extras
            raise ValueError(f"it holds {file.n_frames} pictures, expected one")
        if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise ValueError(f"its colours are {file.mode}, expected grey or RGB")
        if "R" in file.getbands() and file.tile and "16" in str(file.tile[0][3]):
            raise ValueError("its colours have 16 bits, expected 8")
        yield file


def check_training_image(file):
    """Raises ValueError for a Pillow image or mask that nobody trains on purpose with: transparent, or of one pixel."""
    if file.width * file.height < 2:
        raise ValueError("it has one pixel, expected an image")
    if "A" in file.getbands():
        low, high = file.getchannel("A").getextrema()
        if low != high:
            raise ValueError("it is transparent in places, expected an image without transparency")


def check_name(name, where):
    """Raises ValueError if results can't be written under a name: it is too long, no text, or leads elsewhere."""
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{where}: found the name {name!r}, expected one without a path")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{where}: found the name {name!r}, expected one in UTF-8") from None
    if length > LONGEST_NAME:
        raise ValueError(f"{where}: found a name of {length} bytes, expected at most {LONGEST_NAME}: {name[:60]}...")


def check_numbers(shape, dtype, what):
    """Raises ValueError unless an array holds real numbers, some but not more than MAX_VALUES."""
    if dtype.kind not in "biuf":
        raise ValueError(f"{what} holds {dtype}, expected numbers")
    count = 1
    for side in shape:
        count *= side
    if not 0 < count <= MAX_VALUES:
        raise ValueError(f"{what} has the shape {shape}, expected between 1 and {MAX_VALUES} values")
