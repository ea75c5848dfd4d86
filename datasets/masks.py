"""Reading mask files: binary masks and class ids from grey levels, palettes and colours."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.array_checks import check_finite
from datasets.image_reading import check_opaque, check_training_image, deep_values, is_deep
from utils.files import first_few, open_image
from utils.machine.device import available_cpus

GREY_LEVELS = 16  # a mask with more distinct values is an anti-aliased outline, not a map of classes
NEARLY_GREY = 16  # largest difference between red, green and blue that compression causes in grey
COLOURS_SHOWN = 8  # in messages
TO_CODE = np.array([1 << 16, 1 << 8, 1])  # of a colour, as one number
VOID = 255  # the usual value of pixels that belong to no class

Colour = tuple[int, ...]  # (r, g, b)
MaskValue = int | Colour  # a grey level, or a colour


@dataclass(eq=False)
class MaskReader:
    """Reads the masks of a data set by one rule: a value or a colour means the same class in each of them.

    files         all masks. They tell whether a value that is alone in its mask is the object, and whether palettes
                  have the same colours in the same order. Without them, such masks are an error.
    num_classes   1 for binary masks
    mask_values   grey values or (r, g, b) colours in the order of the class ids; (background, object) for num_classes 1
    ignore_label  value of the pixels that belong to no class, from num_classes to 255; only with several classes"""

    files: Sequence[Path] = ()
    num_classes: int = 1
    mask_values: Sequence[MaskValue] = ()
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        label, number = self.ignore_label, self.num_classes
        if label is not None and (number == 1 or not number <= label <= 255 or label in self.mask_values):
            expected = f"{number} to 255, no class's value, and for masks of one object --num-classes 2"
            raise ValueError(f"--ignore-label: found {label} with --num-classes {number}, expected {expected}")

    def read(self, path: str | Path) -> torch.Tensor:
        """Read a mask as uint8 tensor (1, H, W): 0..255 of a binary mask, else class ids and the ignore label.

        Without mask_values a binary mask may hold any two values, the larger one being the object, and the values of
        several classes are their ids. Raises ValueError, naming the file, for other values and colours."""
        with open_image(path) as file:
            check_training_image(file)
            if file.mode != "P":  # whose indices are the classes, whatever their opacity
                check_opaque(file)
            if self.num_classes == 1 and not self.mask_values:
                mask = self._binary(file, path)
            else:
                mask = self._class_ids(file, path)
                mask = mask * np.uint8(255) if self.num_classes == 1 else mask
        return torch.from_numpy(mask)[None]

    def values(self, file: Image.Image) -> np.ndarray:
        """Return the values (H, W) of an open mask: grey levels, or the indices of a coloured palette."""
        if file.mode == "P":
            rule, used = self._palette_rule, colours_of(file)
            if rule == "L" and not is_grey(used):  # the mask is not one of `files`
                rule = f"found a palette of colours, expected grey, or {colour_flags(used.values())}"
            if rule not in ("L", "P", "RGB"):
                raise ValueError(rule)
            pixels = np.asarray(file if rule == "P" else file.convert(rule))
            return np.any(pixels, axis=-1).astype(np.uint8) if rule == "RGB" else pixels
        if file.mode == "1":
            return np.asarray(file).astype(np.uint8)
        if is_deep(file):
            return check_finite(deep_values(file), "the mask")
        if file.mode == "L":
            return np.asarray(file)
        pixels = np.asarray(file.convert("RGB"))
        if np.ptp(pixels, axis=-1).max() <= NEARLY_GREY:
            return np.asarray(file.convert("L"))
        colours = [tuple(int(code).to_bytes(3, "big")) for code in np.unique(pixels @ TO_CODE)]
        if self.num_classes > 1 or len({*colours} - {(0, 0, 0)}) > 1:  # their brightness says nothing about the class
            flags = colour_flags(colours[:COLOURS_SHOWN])
            raise ValueError(f"found {len(colours)} colours, expected grey, black with one other colour, or {flags}")
        return np.any(pixels, axis=-1).astype(np.uint8)

    # ---- binary masks

    def _binary(self, file: Image.Image, path: str | Path) -> np.ndarray:
        """Return a binary mask 0..255 (H, W) uint8 from one that holds any two values.

        Masks with many grey levels, such as JPEG files, keep them as soft outlines, as in the original code. Lossy
        compression blurs the values 0 and 1 beyond recognition, so a JPEG file with dark values only is an error."""
        values = self.values(file)
        found = distinct(values)
        low, high = found[0], found[-1]
        outline = len(found) > GREY_LEVELS and 0 <= low and 128 <= high <= 255
        if outline or (is_lossy(file) and (high >= 128 or high == 0)):
            return values.astype(np.uint8)
        if is_lossy(file):
            expected = "0 and 255 in a JPEG file. Save masks as PNG, or give both values, such as --mask-values 0 1"
            raise ValueError(f"{path} holds values from {low} to {high}, all background; expected {expected}")
        if len(found) > 2:
            expected = "two (for several classes give --num-classes and --mask-values)"
            if flags := void_flags(found):
                expected += f". {VOID} is usually 'ignore': {flags}"
            raise ValueError(f"{path} holds the values {first_few(found)}; expected {expected}")
        is_object = high > 0
        if low != 0 and file.mode != "1" and (low != 255 or values.dtype != np.uint8):
            one_or_two = len(self._coding) == 2 or self._coding == [1]  # [1]: as in earlier versions
            if not one_or_two or high not in self._coding:
                expected = f"--mask-values BACKGROUND OBJECT, as all masks together hold {first_few(self._coding)}"
                raise ValueError(f"{path} holds only {first_few(found)}; expected {expected}")
            is_object = high == self._coding[-1]
        return (values == high) * np.uint8(255 * is_object)

    @functools.cached_property
    def _coding(self) -> list[int]:
        """The values of all masks that hold one or two, ascending. If these are two, they are background and object."""
        found = self._look(lambda file: [] if is_lossy(file) else distinct(self.values(file))[:3].tolist())
        return sorted({value for values in found.values() if len(values) < 3 for value in values})

    @functools.cached_property
    def _palette_rule(self) -> str:
        """The mode of Pillow in which palette masks have their values:

        L    all palettes are grey; in binary masks only colours that occur count, as programs leave unused ones
        P    an index has the same colour in all masks, and a colour the same index
        RGB  indices and colours do not agree, but only black (value 0) and one other colour (value 1) occur
        else the names of two masks that contradict each other"""

        def look(file: Image.Image) -> tuple[dict[int, Colour], bool]:
            if file.mode != "P":
                return {}, True
            return colours_of(file), is_grey(colours_of(file, unused=self.num_classes > 1))

        first: dict[int | Colour, tuple[int | Colour, Path]] = {}  # colour of each index and vice versa
        found, problem = self._look(look), ""
        for path, (colours, _) in found.items():
            for index, colour in colours.items():
                for key, value in ((index, colour), (colour, index)):
                    other, where = first.setdefault(key, (value, path))
                    if other != value and where != path:
                        problem = f"the palettes of {where} and {path} have colours in another order"
        if all(grey for _, grey in found.values()):
            return "L"
        used = sorted(key for key in first if isinstance(key, tuple))
        if not problem or (len(used) == 2 and used[0] == (0, 0, 0)):
            return "RGB" if problem else "P"
        return f"{problem}; expected one order, or {colour_flags(used)}"

    def _look(self, look: Callable[[Image.Image], Any]) -> dict[Path, Any]:
        """Return {path: look(open mask)} of the masks that can be read; `read` reports what is wrong with others."""

        def look_at(path: Path) -> Any:
            with contextlib.suppress(ValueError, OSError), open_image(path) as file:
                return look(file)

        with ThreadPoolExecutor(available_cpus()) as pool:
            found = dict(zip(self.files, pool.map(look_at, self.files), strict=True))
        return {path: result for path, result in found.items() if result is not None}

    # ---- several classes

    def _class_ids(self, file: Image.Image, path: str | Path) -> np.ndarray:
        """Return class ids (H, W) uint8: the position of each pixel's grey value or colour in the mask values.

        Of two grey values each pixel of a JPEG file gets the nearer one."""
        mask_values = tuple(self.mask_values or range(self.num_classes))
        in_colours = isinstance(mask_values[0], tuple)
        if self.ignore_label is not None:
            mask_values += ((self.ignore_label,) * 3 if in_colours else self.ignore_label,)
        if in_colours:
            values, expected = np.asarray(file.convert("RGB")) @ TO_CODE, np.array(mask_values) @ TO_CODE
        else:
            values, expected = self.values(file), np.array(mask_values)
            if is_lossy(file) and len(expected) == 2:
                values = np.where(abs(values - expected[0] + 0.0) < abs(values - expected[1] + 0.0), *expected)
        order = expected.argsort()
        ids = order[np.searchsorted(expected, values, sorter=order).clip(max=len(expected) - 1)]
        unexpected = np.unique(values[expected[ids] != values])
        if len(unexpected):
            advice = f". {VOID} is usually 'ignore': --ignore-label {VOID}" * (VOID in unexpected)
            if in_colours:
                unexpected = [tuple(int(code).to_bytes(3, "big")) for code in unexpected]
            found = f"{path} holds the value {first_few(unexpected)}"
            raise ValueError(f"{found}; expected one of mask_values {mask_values}{advice}")
        if self.ignore_label is not None:
            ids[ids == self.num_classes] = self.ignore_label
        return ids.astype(np.uint8)


def read_mask(
    path: str | Path, num_classes: int = 1, mask_values: Sequence[MaskValue] = (), ignore_label: int | None = None
) -> torch.Tensor:
    """Read a mask without the other masks of its data set, see `MaskReader`."""
    return MaskReader([Path(path)], num_classes, mask_values, ignore_label).read(path)


def colours_of(file: Image.Image, unused: bool = False) -> dict[int, Colour]:
    """Return {index: colour} of a palette mask: of the indices that occur, or all."""
    levels = file.getpalette("RGB") or []
    indices = range(len(levels) // 3) if unused else distinct(np.asarray(file)).tolist()
    return {index: tuple(levels[3 * index : 3 * index + 3]) for index in indices}


def colour_flags(colours: Iterable[Colour]) -> str:
    return "--mask-values with colours such as " + " ".join(f'"#{bytes(one).hex()}"' for one in sorted({*colours}))


def is_grey(colours: Mapping[int, Colour]) -> bool:
    return all(len(set(colour)) == 1 for colour in colours.values())


def distinct(values: np.ndarray) -> np.ndarray:
    """np.unique, three times as fast for uint8."""
    return np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)


def is_lossy(file: Image.Image) -> bool:
    """Return whether a file's compression is that of JPEG, which changes the values of a mask."""
    return file.format in ("JPEG", "MPO") or file.info.get("compression") in ("jpeg", "tiff_jpeg")


def void_flags(values: Iterable[int]) -> str:
    """Return the flags for masks of these values if they look like class ids and a void; "" for other values."""
    *ids, last = sorted(values) or [0]
    if last != VOID or len(ids) < 2 or ids[-1] >= 64:  # unlike grey levels such as 0, 128, 255
        return ""
    return f"--num-classes {ids[-1] + 1} --ignore-label {VOID}"


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
