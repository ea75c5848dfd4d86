"""Reading mask files: binary masks and class ids from grey levels, palettes and colours."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.array_checks import check_finite
from datasets.image_reading import check_training_image, deep_values, is_deep
from utils.files import first_few, open_image

GREY_LEVELS = 16  # a mask with more distinct values is an anti-aliased outline, not a map of classes

MaskValue = int | tuple[int, ...]  # a grey level, or a colour (r, g, b)


def read_mask(path: str | Path, num_classes: int = 1, mask_values: Sequence[MaskValue] = ()) -> torch.Tensor:
    """Read a mask file as uint8 tensor (1, H, W): 0..255 for a binary mask (num_classes 1), otherwise class ids.

    mask_values: grey values or (r, g, b) colours in the order of the class ids; (background, object) for num_classes 1.
    Without them a binary mask may hold any two values, and the values of several classes are their ids. Of two grey
    values, each pixel of a JPEG file gets the nearer one."""
    with open_image(path) as file:
        check_training_image(file)
        if num_classes == 1 and not mask_values:
            mask = binary_mask(grey_values(file), Path(path))
        else:
            mask = class_ids(file, mask_values or tuple(range(num_classes)), path)
            mask = mask * np.uint8(255) if num_classes == 1 else mask
    return torch.from_numpy(mask)[None]


def grey_values(file: Image.Image) -> np.ndarray:
    """Return the values (H, W) of an open mask: grey levels, or the indices of a coloured palette."""
    if file.mode == "P":
        indices, palette = np.asarray(file), np.array(file.getpalette("RGB")).reshape(-1, 3)
        grey = (palette == palette[:, :1]).all()
        return palette[indices, 0] if grey else indices
    if file.mode == "1":
        return np.asarray(file).astype(np.uint8)
    if is_deep(file):
        return check_finite(deep_values(file), "the mask")
    return np.asarray(file.convert("L"))


def binary_mask(values: np.ndarray, path: Path) -> np.ndarray:
    """Return a binary mask 0..255 (H, W) uint8 from a mask that holds any two values, the larger one being the object.

    Masks with many grey levels, such as JPEG files, keep them as soft outlines, as in the original code. JPEG
    compression blurs the values 0 and 1 beyond recognition, so a JPEG file with dark values only is an error."""
    found = distinct(values)
    outline = len(found) > GREY_LEVELS and 0 <= found[0] and 128 <= found[-1] <= 255
    if outline or (is_jpeg(path) and (found[-1] >= 128 or found[-1] == 0)):
        return values.astype(np.uint8)
    if is_jpeg(path):
        expected = "0 and 255 in a JPEG file. Save masks as PNG, or give both values, such as --mask-values 0 1"
        raise ValueError(f"{path} holds values from {found[0]} to {found[-1]}, all background; expected {expected}")
    if len(found) > 2:
        expected = "two (for several classes give --num-classes and --mask-values)"
        raise ValueError(f"{path} holds the values {first_few(found)}; expected {expected}")
    if len(found) == 1 and found[0] not in (0, 1, 255):
        raise ValueError(f"{path} holds only the value {found[0]}; expected --mask-values BACKGROUND OBJECT for it")
    return np.where(values == found[-1], np.uint8(255 if found[-1] > 0 else 0), np.uint8(0))


def distinct(values: np.ndarray) -> np.ndarray:
    """np.unique, three times as fast for uint8."""
    return np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)


def is_jpeg(path: str | Path) -> bool:
    """Return whether a file's name says JPEG: lossy compression changes the values of a mask."""
    return Path(path).suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")


def class_ids(file: Image.Image, mask_values: Sequence[MaskValue], path: str | Path) -> np.ndarray:
    """Return class ids (H, W) uint8: the position of each pixel's grey value or (r, g, b) colour in `mask_values`."""
    if isinstance(mask_values[0], tuple):
        to_code = np.array([1 << 16, 1 << 8, 1])
        values, expected = np.asarray(file.convert("RGB")) @ to_code, np.array(mask_values) @ to_code
    else:
        values, expected = grey_values(file), np.array(mask_values)
        if is_jpeg(path) and len(expected) == 2:
            values = np.where(abs(values - expected[0] + 0.0) < abs(values - expected[1] + 0.0), *expected)
    order = expected.argsort()
    ids = order[np.searchsorted(expected, values, sorter=order).clip(max=len(expected) - 1)]
    unexpected = np.unique(values[expected[ids] != values])
    if len(unexpected):
        if isinstance(mask_values[0], tuple):
            unexpected = [tuple(int(code).to_bytes(3, "big")) for code in unexpected]
        found = f"{path} holds the value {first_few(unexpected)}"
        raise ValueError(f"{found}; expected one of mask_values {tuple(mask_values)}")
    return ids.astype(np.uint8)


def parse_mask_values(texts: Iterable[str], num_classes: int) -> tuple[MaskValue, ...]:
    """Parse --mask-values: ("0", "128") -> (0, 128), ("#000000", "#ff0000") -> ((0, 0, 0), (255, 0, 0)).

    Raises ValueError unless there is one value for each class (num_classes 1: background and object), all distinct and
    all grey or all colours."""
    texts = tuple(map(str, texts))
    values: list[MaskValue] = []
    for text in texts:
        try:
            colour = text.startswith("#") and len(text) == 7
            values.append(tuple(bytes.fromhex(text[1:])) if colour else int(text))
        except ValueError:
            expected = "grey values such as 128 or colours such as #ff0000"
            raise ValueError(f"--mask-values: found {text!r}, expected {expected}") from None
    number = max(num_classes, 2)
    if values and len(values) != number:
        raise ValueError(f"--mask-values: found {len(values)}, expected {number} for --num-classes {num_classes}")
    if len({type(value) for value in values}) > 1 or len(set(values)) < len(values):
        raise ValueError(f"--mask-values: found {texts}, expected different values, all grey or all colours")
    return tuple(values)


def check_same_size(image: torch.Tensor, mask: torch.Tensor, image_name: object, mask_name: object) -> None:
    """Raise ValueError unless image (3, H, W) and mask (1, H, W) have the same size."""
    if image.shape[1:] != mask.shape[1:]:
        sizes = ["{1}x{0}".format(*tensor.shape[1:]) for tensor in (image, mask)]
        raise ValueError(f"{image_name} is {sizes[0]} but its mask {mask_name} is {sizes[1]} (width x height)")
