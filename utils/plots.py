"""Pictures as arrays and PNG files: images for display, with outlines or colours of masks.

Images are (C, H, W) or (H, W) tensors or arrays of any range; masks and labels are (H, W) or (1, H, W). Figures with
axes and text are in utils/figures.py.
"""

import colorsys
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

Colour = tuple[int, int, int]

TRUTH, PREDICTION = (0, 200, 80), (255, 60, 40)
DICE_OF_CLASS = ("dsc ", "dice_transunet ")  # prefixes of columns of metrics.csv, before the name of a class
# of class 1, 2, ...: distinguishable with any kind of colour vision
CLASS_COLOURS = ("#d55e00", "#f0e442", "#0072b2", "#56b4e9", "#cc79a7", "#009e73", "#e69f00", "#965adc")


def for_display(image: ArrayLike) -> np.ndarray:
    """Return an image as uint8 (H, W, 3), scaled so that its range is 0..255. A constant image becomes mid-grey."""
    image = np.asarray(image)
    image = image if image.ndim == 3 else image[None]
    low, high = float(image.min()), float(image.max())
    if image.dtype == np.uint8:
        levels = np.arange(256).clip(low, high)  # one computation per level instead of per pixel
        scaled = image if (low, high) == (0, 255) else _stretch(levels, low, high).take(image)
    else:
        scaled = _stretch(image, low, high)
    picture = np.empty((*image.shape[1:], 3), np.uint8)
    picture[:] = scaled.transpose(1, 2, 0)
    return picture


def _stretch(values, low, high):
    """Scale values from low..high to uint8 0..255, float32 in float32: float64 took most of a picture's time."""
    values = np.asarray(values)
    if not high > low:  # one value, or NaN
        return np.full(values.shape, 128, np.uint8)
    scaled = np.subtract(values, low, dtype=np.float32 if values.dtype == np.float32 else np.float64)
    scaled *= 255 / (high - low)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def draw_outlines(image: ArrayLike, prediction: ArrayLike | None = None, truth: ArrayLike | None = None) -> np.ndarray:
    """Return the image, uint8 (H, W, 3), with the outlines of the truth in green and of the prediction in red."""
    picture = for_display(image)
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if mask is not None:
            _paint(picture, _outline(_squeeze(mask) > 0.5), colour)
    return picture


def _paint(picture, where, colour):
    """Colour the pixels of a mask (H, W) in place. For few pixels, indices are faster than the mask."""
    picture.reshape(-1, 3)[np.flatnonzero(where)] = colour


def _outline(mask):
    """Return the pixels of a mask (H, W) near its border. The edge of the picture counts as border.

    Equals mask & ~binary_erosion(mask) of scipy, several times faster."""
    inside = mask
    for _ in range(max(1, min(mask.shape) // 150)):  # wider in large pictures, which are shown reduced
        smaller = np.zeros_like(inside)
        smaller[1:-1, 1:-1] = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1]
        smaller[1:-1, 1:-1] &= inside[1:-1, :-2] & inside[1:-1, 2:]
        inside = smaller
    return mask & ~inside


def draw_labels(image: ArrayLike, labels: ArrayLike, opacity: float = 0.55, colours: Sequence[str] = ()) -> np.ndarray:
    """Return the image, uint8 (H, W, 3), blended with the colours of its classes; class 0 stays uncoloured."""
    picture, labels = for_display(image), _squeeze(labels).astype(int)
    of_class = np.array([(0, 0, 0), *class_colours(labels.max(), colours)])
    coloured = labels > 0
    blend = (1 - opacity) * picture[coloured] + opacity * of_class[labels[coloured]]
    picture[coloured] = blend.round().astype(np.uint8)
    return picture


def draw_class_outlines(image: ArrayLike, labels: ArrayLike, colours: Sequence[str] = ()) -> np.ndarray:
    """Return the image, uint8 (H, W, 3), with the outline of each class 1, 2, ... in its colour."""
    picture, labels = for_display(image), _squeeze(labels).astype(int)
    for number, colour in enumerate(class_colours(labels.max(), colours), 1):
        _paint(picture, _outline(labels == number), colour)
    return picture


def class_colours(number: int, given: Sequence[str] = ()) -> list[Colour]:
    """Return the colours of the classes 1, ..., number: those `given`, such as "#ff0000", or the defaults."""
    colours = [(r, g, b) for r, g, b in (bytes.fromhex(colour[1:]) for colour in given or CLASS_COLOURS)][:number]
    for i in range(number - len(colours)):
        r, g, b = (round(255 * part) for part in colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 0.9))
        colours.append((r, g, b))
    return colours


def encode_png(picture: np.ndarray, palette: Sequence[Colour] = (), exif: bytes = b"") -> bytes:
    """Return a PNG file of a picture: uint8 (H, W, 3), uint8 (H, W) or uint16 (H, W).

    palette  colours of the values 0, 1, ... of a uint8 (H, W) picture
    exif     EXIF data as `PIL.Image.Exif.tobytes` returns it

    Pillow lets other threads run while it compresses. Its default level takes four times as long for a photograph."""
    image = Image.fromarray(picture)
    if palette:
        image.putpalette(np.array(palette, np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "png", bits=8, exif=exif, compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as a PNG file (see `encode_png`)."""
    Path(path).write_bytes(encode_png(picture))


def save_prediction(
    path: str | Path,
    image: np.ndarray,
    target: np.ndarray,
    prediction: np.ndarray,
    colours: Sequence[str] | None = None,
) -> None:
    """Write <path>.png, the mask, and <path>_overlay.png; of several classes (`colours`) also <path>_truth.png.

    image (C, H, W); target and prediction (H, W) or (1, H, W), masks of 0 and 1 or class numbers"""
    if colours is None:
        mask, overlay = 255 * prediction, draw_outlines(image, prediction, target)
    else:
        mask, overlay = prediction, draw_labels(image, prediction, colours=colours)
        save_picture(f"{path}_truth.png", target.astype(np.uint8))
    save_picture(f"{path}.png", mask)
    save_picture(f"{path}_overlay.png", overlay)


def _squeeze(mask):
    mask = np.asarray(mask)
    return mask[0] if mask.ndim == 3 else mask
