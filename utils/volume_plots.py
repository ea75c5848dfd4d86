"""Pictures of labelled volumes: three planes through the place that matters, and a mosaic of slices, worst first.

Volumes are (S, H, W): slices, rows, columns; labels hold the classes 0, 1, ... What is predicted is filled with the
colour of its class, the truth, where there is one, is outlined in it. Pictures are uint8 (height, width, 3).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from utils.plots import Colour

SIDE = 240  # pixels of the longer side of a picture in a mosaic
LINE = 18  # pixels of a line of text
OPACITY = 0.45
SHOWN = 24  # slices of a mosaic
THINNEST = 3  # where the distance of slices is unknown, the width of a picture across them over its height, at most


def slice_dice(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(S,): for each slice the mean Dice of the classes in its truth or prediction; NaN where there is none."""
    scores = []
    for predicted, expected in zip(prediction, truth, strict=True):
        sizes = np.bincount(predicted.ravel(), minlength=256) + np.bincount(expected.ravel(), minlength=256)
        common = np.bincount(expected[predicted == expected].ravel(), minlength=256)
        found = np.flatnonzero(sizes[1:]) + 1
        scores.append((2 * common[found] / sizes[found]).mean() if len(found) else np.nan)
    return np.array(scores)


def draw_mosaic(
    image: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    colours: Sequence[Colour],
    truth: np.ndarray | None = None,
    spacing: Sequence[float] | np.ndarray | None = None,
    shown: int = SHOWN,
) -> np.ndarray:
    """Slices side by side: with a truth those of lowest Dice first, else evenly spread over those with labels."""
    if truth is not None:
        scores = slice_dice(prediction, truth)
        order = np.argsort(np.where(np.isnan(scores), 2, scores), kind="stable")
        numbers = [int(n) for n in order if not np.isnan(scores[n])][:shown]
        titles = [f"slice {n}, Dice {scores[n]:.2f}" for n in numbers]
    else:
        labelled = np.flatnonzero(prediction.any((1, 2)))
        numbers = [int(labelled[i]) for i in _spread(len(labelled), shown)]
        titles = [f"slice {n}" for n in numbers]
    if not numbers:
        numbers = _spread(len(image), 4)
        titles = [f"slice {n}, no label" for n in numbers]
    aspect = 1.0 if spacing is None else float(spacing[1] / spacing[2])
    window = _window(image)
    tiles = [
        _titled(_draw(image[n], prediction[n], colours, window, None if truth is None else truth[n], aspect), title)
        for n, title in zip(numbers, titles, strict=True)
    ]
    columns = min(6, len(tiles))
    height, width = tiles[0].shape[:2]
    page = np.zeros((-(-len(tiles) // columns) * height, columns * width, 3), np.uint8)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        page[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    return _with_legend(page, class_names, colours, truth is not None)


def draw_planes(
    image: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    colours: Sequence[Colour],
    truth: np.ndarray | None = None,
    spacing: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """The slice, the plane of slices and columns and that of slices and rows through one voxel: the middle of where
    prediction and truth differ, or of the labels where they don't."""
    s, h, w = _place(prediction, truth)
    steps = np.ones(3) if spacing is None else np.asarray(spacing, dtype=float)
    if spacing is None:  # flat slices of an unknown distance would be a line
        steps[0] = max(1.0, max(image.shape[1:]) / (THINNEST * len(image)))
    window = _window(image)
    cuts: dict[str, tuple[Any, float]] = {
        f"slice {s}": (np.s_[s], steps[1] / steps[2]),
        f"row {h}": (np.s_[::-1, h], steps[0] / steps[2]),
        f"column {w}": (np.s_[::-1, :, w], steps[0] / steps[1]),
    }
    tiles = [
        _titled(
            _draw(image[cut], prediction[cut], colours, window, None if truth is None else truth[cut], aspect), title
        )
        for title, (cut, aspect) in cuts.items()
    ]
    height = max(tile.shape[0] for tile in tiles)
    page = np.concatenate([np.pad(tile, ((0, height - tile.shape[0]), (0, 4), (0, 0))) for tile in tiles], axis=1)
    return _with_legend(page, class_names, colours, truth is not None, "" if spacing is not None else "not to scale")


def draw_slice(
    image: np.ndarray,
    prediction: np.ndarray,
    number: int,
    colours: Sequence[Colour],
    spacing: Sequence[float] | np.ndarray | None = None,
    side: int = SIDE,
) -> np.ndarray:
    """One slice, `side` pixels on its longer side, with the window of the whole volume."""
    aspect = 1.0 if spacing is None else float(spacing[1] / spacing[2])
    return _draw(image[number], prediction[number], colours, _window(image), None, aspect, side)


def draw_volume(*volume: Any, **options: Any) -> np.ndarray:
    """`draw_planes` above `draw_mosaic`, of the arguments that both take."""
    pictures = [draw(*volume, **options) for draw in (draw_planes, draw_mosaic)]
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0))) for picture in pictures])


# ---- pieces


def _spread(count: int, shown: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(shown, count)).round().astype(int)).tolist() if count else []


def _place(prediction: np.ndarray, truth: np.ndarray | None) -> tuple[int, int, int]:
    """The voxel nearest to the middle of what matters, itself a part of it."""
    candidates = [prediction > 0] if truth is None else [prediction != truth, truth > 0]
    for mask in candidates:
        places = np.argwhere(mask)
        if len(places):
            nearest = places[np.linalg.norm(places - places.mean(0), axis=1).argmin()]
            return int(nearest[0]), int(nearest[1]), int(nearest[2])
    s, h, w = (n // 2 for n in prediction.shape)
    return s, h, w


def _window(image: np.ndarray) -> tuple[float, float]:
    """Values of the whole volume that become black and white, so that its slices can be compared."""
    low, high = (float(value) for value in np.percentile(image[:: max(1, len(image) // 32)], (0.5, 99.5)))
    return low, high if high > low else low + 1


def _draw(
    image: np.ndarray,
    prediction: np.ndarray,
    colours: Sequence[Colour],
    window: tuple[float, float],
    truth: np.ndarray | None,
    aspect: float,
    side: int = SIDE,
) -> np.ndarray:
    """One slice, its pixels stretched to their proportions: `aspect` is the height of a pixel over its width."""
    low, high = window
    grey = (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    rows, columns = grey.shape
    scale = side / max(rows * aspect, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * aspect * scale))
    picture = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    picture = np.repeat(picture[..., None], 3, -1).astype(np.float32)
    palette = np.array([(0, 0, 0), *colours], dtype=np.float32)
    labels = _resized(prediction, size)
    picture = np.where(labels[..., None] > 0, (1 - OPACITY) * picture + OPACITY * palette[labels], picture)
    if truth is not None:
        labels = _resized(truth, size)
        for number in np.unique(labels[labels > 0]):
            mask = labels == number
            picture[mask & ~binary_erosion(mask)] = palette[number]
    return picture.round().astype(np.uint8)


def _resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    """The picture below a line of text."""
    page = Image.fromarray(np.pad(picture, ((LINE, 2), (0, 2), (0, 0))))
    ImageDraw.Draw(page).text((3, 2), title, fill=(255, 255, 255), font=ImageFont.load_default(12))
    return np.asarray(page)


def _with_legend(
    picture: np.ndarray, class_names: Sequence[str], colours: Sequence[Colour], with_truth: bool, remark: str = ""
) -> np.ndarray:
    """The picture above the names of the classes, as many lines as they need."""
    font = ImageFont.load_default(12)
    words = [(name, colour) for name, colour in zip(class_names, colours, strict=True)]
    words.append(("filled: prediction, outlined: truth" if with_truth else "filled: prediction", (0, 0, 0)))
    words += [(remark, (0, 0, 0))] if remark else []
    width, places, x, y = picture.shape[1], [], 6, 4
    for text, _ in words:
        needed = 16 + round(font.getlength(text)) + 12
        if x > 6 and x + needed > width:
            x, y = 6, y + LINE
        places.append((x, y))
        x += needed
    page = Image.fromarray(np.pad(picture, ((0, y + LINE + 2), (0, 0), (0, 0))))
    draw, top = ImageDraw.Draw(page), picture.shape[0]
    for (text, colour), (x, y) in zip(words, places, strict=True):
        if colour != (0, 0, 0):
            draw.rectangle((x, top + y + 1, x + 11, top + y + 12), fill=colour)
        draw.text((x + 16, top + y), text, fill=(255, 255, 255), font=font)
    return np.asarray(page)
