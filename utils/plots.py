"""Pictures as arrays: images for display, outlines and colours of masks. (Figures with axes and text are drawn by
utils/figures.py, the charts inside HTML pages by utils/report/charts.py.)

Images are (C, H, W) or (H, W) tensors or arrays of any range; masks and labels are (H, W) or (1, H, W).
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from utils.png import encode_png

Colour = tuple[int, int, int]

TRUTH, PREDICTION = (0, 200, 80), (255, 60, 40)
DICE_OF_CLASS = ("dsc ", "dice_transunet ")  # how columns of metrics.csv begin, before the name of a class
CLASS_COLOURS = [  # of class 1, 2, ...: told apart by people with any kind of colour vision
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (230, 159, 0),
    (150, 90, 220),
]


def for_display(image: ArrayLike) -> np.ndarray:
    """Any image as uint8 (H, W, 3), its darkest value black and its brightest white; one colour becomes mid-grey."""
    image = np.asarray(image)
    image = image if image.ndim == 3 else image[None]
    low, high = float(image.min()), float(image.max())
    if image.dtype == np.uint8:
        levels = np.arange(256).clip(low, high)  # each is computed once instead of in every pixel
        shown = image if (low, high) == (0, 255) else _stretched(levels, low, high).take(image)
    else:
        shown = _stretched(image, low, high)
    picture = np.empty((*image.shape[1:], 3), np.uint8)
    picture[:] = shown.transpose(1, 2, 0)
    return picture


def _stretched(values, low, high):
    """Values from low to high as 0..255, uint8; in float32 if they are: wider ones took most of a picture's time."""
    values = np.asarray(values)
    if not high > low:  # one value, or NaN
        return np.full(values.shape, 128, np.uint8)
    scaled = np.subtract(values, low, dtype=np.float32 if values.dtype == np.float32 else np.float64)
    scaled *= 255 / (high - low)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def draw_outlines(image: ArrayLike, prediction: ArrayLike | None = None, truth: ArrayLike | None = None) -> np.ndarray:
    """The image, uint8 (H, W, 3), with the outlines of two masks: the truth in green, the prediction in red."""
    picture = for_display(image)
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if mask is not None:
            _paint(picture, _outline(_flat(mask) > 0.5), colour)
    return picture


def _paint(picture, where, colour):
    """Gives the pixels of a mask (H, W) a colour; by their numbers, which for a few is faster than by the mask."""
    picture.reshape(-1, 3)[np.flatnonzero(where)] = colour


def _outline(mask):
    """The pixels of a mask (H, W) that are near its border; those of the picture's edge count as border.

    The same as with scipy's binary_erosion, but several times faster."""
    inside = mask
    for _ in range(max(1, min(mask.shape) // 150)):  # visible when a large picture is made small
        smaller = np.zeros_like(inside)
        smaller[1:-1, 1:-1] = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1]
        smaller[1:-1, 1:-1] &= inside[1:-1, :-2] & inside[1:-1, 2:]
        inside = smaller
    return mask & ~inside


def draw_labels(image: ArrayLike, labels: ArrayLike, opacity: float = 0.55, colours: Sequence[str] = ()) -> np.ndarray:
    """The image, uint8 (H, W, 3), under the colours of its classes; class 0 is left as it is."""
    picture, labels = for_display(image), _flat(labels).astype(int)
    of_class = np.array([(0, 0, 0), *class_colours(labels.max(), colours)])
    there = labels > 0
    coloured = (1 - opacity) * picture[there] + opacity * of_class[labels[there]]
    picture[there] = coloured.round().astype(np.uint8)
    return picture


def draw_class_outlines(image: ArrayLike, labels: ArrayLike, colours: Sequence[str] = ()) -> np.ndarray:
    """The image, uint8 (H, W, 3), with the outline of each class from 1 on in its colour."""
    picture, labels = for_display(image), _flat(labels).astype(int)
    for number, colour in enumerate(class_colours(labels.max(), colours), 1):
        _paint(picture, _outline(labels == number), colour)
    return picture


def class_colours(number: int, given: Sequence[str] = ()) -> list[Colour]:
    """The colours of the classes 1, ..., number: those `given`, such as "#ff0000", or the usual ones if none are."""
    if given:
        red_green_blue = [bytes.fromhex(colour[1:]) for colour in given[:number]]
        return [(r, g, b) for r, g, b in red_green_blue]
    more = (colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 0.9) for i in range(number - len(CLASS_COLOURS)))
    return CLASS_COLOURS[:number] + [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more]


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes a uint8 array, (H, W) or (H, W, 3), as a PNG file."""
    Path(path).write_bytes(encode_png(picture))


def _flat(mask):
    mask = np.asarray(mask)
    return mask[0] if mask.ndim == 3 else mask
