"""Pictures of labelled volumes: three orthogonal planes, and a mosaic of slices, worst first.

Volumes are (S, H, W): slices, rows, columns; labels hold the classes 0, 1, ... The prediction is filled with the colour
of its class, the truth, if given, is outlined in it. Pictures are uint8 (height, width, 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from utils.plots import Colour, class_colours, save_picture
from utils.volume import Spacing

SIDE = 240  # pixels of the longer side of a picture in a mosaic
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
    cuts = {title: (n, _aspect(spacing)) for title, n in zip(titles, numbers, strict=True)}
    tiles = _draw_tiles(image, prediction, truth, colours, cuts)
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
    """Draw the three orthogonal planes through one voxel: the centre of the differences between prediction and truth,
    or of the labels if there are none."""
    s, h, w = _centre(prediction, truth)
    steps = np.ones(3) if spacing is None else np.asarray(spacing, dtype=float)
    if spacing is None:  # else a few slices would be a thin line
        steps[0] = max(1.0, max(image.shape[1:]) / (MAX_ASPECT * len(image)))
    cuts = {
        f"slice {s}": (np.s_[s], steps[1] / steps[2]),
        f"row {h}": (np.s_[::-1, h], steps[0] / steps[2]),
        f"column {w}": (np.s_[::-1, :, w], steps[0] / steps[1]),
    }
    tiles = _draw_tiles(image, prediction, truth, colours, cuts)
    height = max(tile.shape[0] for tile in tiles)
    page = np.concatenate([np.pad(tile, ((0, height - tile.shape[0]), (0, 4), (0, 0))) for tile in tiles], axis=1)
    return _add_legend(page, class_names, colours, truth is not None, "" if spacing is not None else "not to scale")


def draw_slice(
    image: np.ndarray, prediction: np.ndarray, number: int, colours: Sequence[Colour], spacing: Spacing, side: int
) -> np.ndarray:
    """Draw one slice, `side` pixels on its longer side, with the intensity window of the whole volume."""
    return _draw(image[number], prediction[number], colours, _window(image), None, _aspect(spacing), side)


def draw_volume(*volume: Any, **options: Any) -> np.ndarray:
    """Draw `draw_planes` above `draw_mosaic`, with the arguments of both."""
    pictures = [draw(*volume, **options) for draw in (draw_planes, draw_mosaic)]
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0))) for picture in pictures])


def _spread(total: int, count: int) -> list[int]:
    """Return at most `count` evenly spaced indices below `total`."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist() if total else []


def _centre(prediction: np.ndarray, truth: np.ndarray | None) -> list[int]:
    """Return the labelled or differing voxel nearest to the centre of all of them."""
    candidates = [prediction > 0] if truth is None else [prediction != truth, truth > 0]
    for mask in candidates:
        voxels = np.argwhere(mask)
        if len(voxels):
            return voxels[np.linalg.norm(voxels - voxels.mean(0), axis=1).argmin()].tolist()
    return [n // 2 for n in prediction.shape]


def _aspect(spacing: Spacing) -> float:
    """Return the height of a slice's pixel over its width."""
    return 1.0 if spacing is None else float(spacing[1] / spacing[2])


def _window(image: np.ndarray) -> tuple[float, float]:
    """Return the values of the whole volume that become black and white, the same for all slices."""
    low, high = (float(value) for value in np.percentile(image[:: max(1, len(image) // 32)], (0.5, 99.5)))
    return low, high if high > low else low + 1


def _draw_tiles(image, prediction, truth, colours, cuts):
    """Draw cuts of a volume, {title: (index, height of a pixel over its width)}, each under its title."""
    tiles, window = [], _window(image)
    for title, (cut, aspect) in cuts.items():
        tile = _draw(image[cut], prediction[cut], colours, window, None if truth is None else truth[cut], aspect)
        page = Image.fromarray(np.pad(tile, ((LINE, 2), (0, 2), (0, 0))))
        ImageDraw.Draw(page).text((3, 2), title, fill=(255, 255, 255), font=ImageFont.load_default(12))
        tiles.append(np.asarray(page))
    return tiles


def _draw(image, prediction, colours, window, truth, aspect, side=SIDE):
    """Draw one slice. `aspect` is the height of a pixel over its width."""
    low, high = window
    grey = (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    rows, columns = grey.shape
    scale = side / max(rows * aspect, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * aspect * scale))
    picture = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    picture = np.repeat(picture[..., None], 3, -1).astype(np.float32)
    palette = np.array([(0, 0, 0), *colours], dtype=np.float32)
    labels = _resize_labels(prediction, size)
    picture = np.where(labels[..., None] > 0, (1 - OPACITY) * picture + OPACITY * palette[labels], picture)
    if truth is not None:
        labels = _resize_labels(truth, size)
        for number in np.unique(labels[labels > 0]):
            mask = labels == number
            picture[mask & ~binary_erosion(mask)] = palette[number]
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
