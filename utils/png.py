"""PNG files (ISO/IEC 15948) of pictures that are arrays.

Pillow's encoder looks for the best filter of every row and holds Python's lock for much of its time, so that threads
that save results wait for each other. Here numpy and zlib do the work, which let other threads run: a photograph takes
half the time, its file is a twentieth to an eighth larger."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3  # colour types
UP = 2  # the filter: each byte less the one above it
EXIF_OF_JPEG = b"Exif\0\0"  # begins EXIF data in JPEG files, and Pillow's; a PNG file has the rest alone


def encode_png(picture: np.ndarray, palette: Sequence[Sequence[int]] = (), exif: bytes = b"") -> bytes:
    """The PNG file of a picture: (H, W, 3) or (H, W) uint8, or (H, W) uint16.

    palette  colours (red, green, blue) of the values 0, 1, ..., in which (H, W) uint8 is shown
    exif     EXIF data that goes into the file, as `PIL.Image.Exif.tobytes` returns it

    Raises ValueError for another shape or type, and for more than 256 colours."""
    grey = picture.ndim == 2 and picture.dtype in (np.uint8, np.uint16)
    colour = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    if not (grey or colour) or not picture.size:
        raise ValueError(
            f"a PNG file of {picture.dtype} {picture.shape}: expected (H, W) uint8 or uint16, or (H, W, 3) uint8"
        )
    if palette and (len(palette) > 256 or not grey or picture.dtype != np.uint8):
        raise ValueError(f"a palette of {len(palette)} colours for {picture.dtype} {picture.shape}")
    height, width = picture.shape[:2]
    kind = RGB if colour else PALETTE if palette else GREY
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * picture.itemsize, kind, 0, 0, 0))]
    if palette:
        chunks.append(_chunk(b"PLTE", np.array(palette, np.uint8).tobytes()))
    if exif:
        chunks.append(_chunk(b"eXIf", exif.removeprefix(EXIF_OF_JPEG)))
    return b"".join([SIGNATURE, *chunks, _chunk(b"IDAT", _compressed(_filtered(picture))), _chunk(b"IEND", b"")])


def _filtered(picture):
    """The bytes of each row, uint8 (H, 1 + bytes of a row), behind the number of their filter."""
    values = picture.astype(">u2") if picture.dtype == np.uint16 else picture
    plain = np.ascontiguousarray(values).reshape(len(picture), -1).view(np.uint8)
    rows = np.empty((len(plain), 1 + plain.shape[1]), np.uint8)
    rows[:, 0] = UP
    rows[0, 1:] = plain[0]
    np.subtract(plain[1:], plain[:-1], out=rows[1:, 1:])
    return rows


def _compressed(rows):
    # lengths of runs, at the lowest level: what differences of photographs can be compressed by, and masks have
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return compressor.compress(rows) + compressor.flush()


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
