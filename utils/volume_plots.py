"""Pictures of labelled volumes: three orthogonal planes, and a mosaic of slices, worst first.

Volumes are (S, H, W): slices, rows, columns; labels hold the classes 0, 1, ... The prediction is filled with the colour
of its class, the truth, if given, is outlined in it. Pictures are uint8 (height, width, 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from PIL import Image, ImageDraw, ImageFont

from utils.plots import Colour, class_colours, save_picture
from utils.volume import Spacing

SIDE = 240  # pixels of the longer side of a picture in a mosaic
PLANES_SIDE = 2 * SIDE  # pixels of the longest side of a volume, of which the three planes are at one scale
LINE = 18  # pixels of a line of text
OPACITY = 0.45
MOSAIC_SLICES = 24
MAX_ASPECT = 3  # of a picture across slices whose spacing is unknown: width over height


def slice_dice(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the mean Dice of each slice, (S,), over the classes in its truth or prediction; NaN without any."""
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
    spacing: Spacing = None,
    count: int = MOSAIC_SLICES,
) -> np.ndarray:
    """Draw at most `count` slices: by increasing Dice or, without a truth, evenly spaced among the labelled ones."""
    if truth is not None:
        scores = slice_dice(prediction, truth)
        order = np.argsort(np.where(np.isnan(scores), 2, scores), kind="stable")
        numbers = [int(n) for n in order if not np.isnan(scores[n])][:count]
        titles = [f"slice {n}, Dice {scores[n]:.2f}" for n in numbers]
    else:
        labelled = np.flatnonzero(prediction.any((1, 2)))
        numbers = [int(labelled[i]) for i in _spread(len(labelled), count)]
        titles = [f"slice {n}" for n in numbers]
    if not numbers:
        numbers = _spread(len(image), 4)
        titles = [f"slice {n}, no label" for n in numbers]
    zoom = _zoom(image.shape[1:], _steps(spacing)[1:], SIDE)
    tiles = _draw_tiles(image, prediction, truth, colours, {t: (n, zoom) for t, n in zip(titles, numbers, strict=True)})
    columns = min(6, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return _add_legend(np.concatenate(rows), class_names, colours, truth is not None)


def draw_planes(
    image: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    colours: Sequence[Colour],
    truth: np.ndarray | None = None,
    spacing: Spacing = None,
) -> np.ndarray:
    """Draw the three orthogonal planes through one voxel, at one scale: through the middle of the differences between
    prediction and truth, or of the labels if there are none."""
    s, h, w = _centre(prediction, truth)
    steps = _steps(spacing)
    if spacing is None:  # else a few slices would be a thin line
        steps[0] = max(1.0, max(image.shape[1:]) / (MAX_ASPECT * len(image)))
    zoom = _zoom(image.shape, steps, PLANES_SIDE)
    cuts = {
        f"slice {s}": (np.s_[s], zoom[1:]),
        f"row {h}": (np.s_[::-1, h], zoom[[0, 2]]),
        f"column {w}": (np.s_[::-1, :, w], zoom[:2]),
    }
    plane, *across = _draw_tiles(image, prediction, truth, colours, cuts)
    flat = zoom[0] * len(image) < zoom[1] * image.shape[1]  # then, one above the other, they leave less empty
    page = _join([plane, _join(across, axis=0 if flat else 1)], axis=1)
    return _add_legend(page, class_names, colours, truth is not None, "" if spacing is not None else "not to scale")


def draw_slice(
    image: np.ndarray, prediction: np.ndarray, number: int, colours: Sequence[Colour], spacing: Spacing, side: int
) -> np.ndarray:
    """Draw one slice, `side` pixels on its longer side, with the intensity window of the whole volume."""
    zoom = _zoom(image.shape[1:], _steps(spacing)[1:], side)
    return _draw(image[number], prediction[number], colours, _window(image), None, zoom)


def draw_volume(*volume: Any, **options: Any) -> np.ndarray:
    """Draw `draw_planes` above `draw_mosaic`, with the arguments of both."""
    return _join([draw(*volume, **options) for draw in (draw_planes, draw_mosaic)], axis=0)


def _join(pictures: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Concatenate pictures, of which the shorter ones become black below, the narrower ones to their right."""
    size = np.max([picture.shape for picture in pictures], axis=0)
    size[axis] = 0
    missing = [np.maximum(0, size - picture.shape) for picture in pictures]
    return np.concatenate([np.pad(p, [(0, n) for n in m]) for p, m in zip(pictures, missing, strict=True)], axis)


def _spread(total: int, count: int) -> list[int]:
    """Return at most `count` evenly spaced indices below `total`."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist() if total else []


def _centre(prediction: np.ndarray, truth: np.ndarray | None) -> list[int]:
    """Return a labelled or differing voxel: in the slice up to which half of them lie, nearest to their centre."""
    candidates = [prediction > 0] if truth is None else [prediction != truth, truth > 0]
    for mask in candidates:
        below = np.count_nonzero(mask, axis=(1, 2)).cumsum()
        if below[-1]:
            number = int((2 * below >= below[-1]).argmax())
            pixels = np.argwhere(mask[number])  # of all slices they could take more memory than the volume
            return [number, *pixels[np.linalg.norm(pixels - pixels.mean(0), axis=1).argmin()].tolist()]
    return [n // 2 for n in prediction.shape]


def _steps(spacing: Spacing) -> np.ndarray:
    """Return the spacing, that of unknown axes 1."""
    return np.ones(3) if spacing is None else np.array(spacing, dtype=float)


def _zoom(shape: Sequence[int], steps: np.ndarray, side: int) -> np.ndarray:
    """Return how many pixels a voxel becomes along each axis, so that the longest axis becomes `side` pixels."""
    return steps * side / (shape * steps).max()


def _window(image: np.ndarray) -> tuple[float, float]:
    """Return the values of the whole volume that become black and white, the same for all slices."""
    low, high = (float(value) for value in np.percentile(image[:: max(1, len(image) // 32)], (0.5, 99.5)))
    return low, high if high > low else low + 1


def _draw_tiles(image, prediction, truth, colours, cuts):
    """Draw cuts of a volume, {title: (index, pixels for each row and column)}, each under its title."""
    tiles, window = [], _window(image)
    for title, (cut, zoom) in cuts.items():
        tile = _draw(image[cut], prediction[cut], colours, window, None if truth is None else truth[cut], zoom)
        page = Image.fromarray(np.pad(tile, ((LINE, 2), (0, 2), (0, 0))))
        ImageDraw.Draw(page).text((3, 2), title, fill=(255, 255, 255), font=ImageFont.load_default(12))
        tiles.append(np.asarray(page))
    return tiles


def _draw(image, prediction, colours, window, truth, zoom):
    """Draw one slice. `zoom` holds the pixels that each row and each column becomes."""
    low, high = window
    grey = (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    height, width = np.maximum(1, np.rint(grey.shape * zoom)).astype(int).tolist()
    size = width, height
    picture = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    picture = np.repeat(picture[..., None], 3, -1).astype(np.float32)
    palette = np.array([(0, 0, 0), *colours], dtype=np.float32)
    labels = _resize_labels(prediction, size)
    picture = np.where(labels[..., None] > 0, (1 - OPACITY) * picture + OPACITY * palette[labels], picture)
    if truth is not None:
        labels = _resize_labels(truth, size)
        for number in np.unique(labels[labels > 0]):
            mask = labels == number
            picture[mask & ~scipy.ndimage.binary_erosion(mask)] = palette[number]
    return picture.round().astype(np.uint8)


def _resize_labels(labels, size):
    return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))


def _add_legend(picture, class_names, colours, with_truth, remark=""):
    """Add the names of the classes below the picture, in as many lines as needed."""
    font = ImageFont.load_default(12)
    entries: list[tuple[str, Colour | None]] = [*zip(class_names, colours, strict=True)]
    entries.append(("filled: prediction, outlined: truth" if with_truth else "filled: prediction", None))
    entries += [(remark, None)] if remark else []
    (height, width), places, x, y = picture.shape[:2], [], 6, picture.shape[0] + 4
    for text, colour in entries:
        needed = 16 + round(font.getlength(text)) + 12
        if x > 6 and x + needed > width:
            x, y = 6, y + LINE
        places.append((x, y, text, colour))
        x += needed
    page = Image.fromarray(np.pad(picture, ((0, y + LINE + 2 - height), (0, 0), (0, 0))))
    draw = ImageDraw.Draw(page)
    for x, y, text, colour in places:
        if colour is not None:
            draw.rectangle((x, y + 1, x + 11, y + 12), fill=colour)
        draw.text((x + 16, y), text, fill=(255, 255, 255), font=font)
    return np.asarray(page)


def save_pictures(
    path: str | Path,
    image: np.ndarray,
    prediction: np.ndarray,
    label: np.ndarray,
    spacing: Spacing,
    names: Sequence[str],
    colours: Sequence[str] = (),
) -> None:
    """Write <path>_planes.png and <path>_slices.png of a case: arrays (S, H, W), `names` of the classes 1, 2, ..."""
    for kind, draw in (("planes", draw_planes), ("slices", draw_mosaic)):
        picture = draw(image, prediction, names, class_colours(len(names), colours), label, spacing)
        save_picture(f"{path}_{kind}.png", picture)
