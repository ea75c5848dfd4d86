"""ISIC, and any other folder of images and masks: `root/{train,val}/{images,masks}`, paired by file stem."""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from datasets.cache import CachedDataset, Key, split_key
from datasets.files import (
    EXTENSIONS,
    MASK_SUFFIX,
    OTHER_PICTURES,
    check_finite,
    check_training_image,
    is_superpixels,
)
from utils.files import check_name, open_image, some

log = logging.getLogger("vmunet")

GREY_LEVELS = 16  # with more values than this a mask is an anti-aliased outline rather than a map of classes

Pair = tuple[str, Path, Path]  # stem, image, mask
MaskValue = int | tuple[int, ...]  # a grey level, or a colour (r, g, b)


def list_images(folder: str | Path) -> dict[str, list[Path]]:
    """{stem: [paths]} of the images in a folder, without hidden files and ISIC's superpixels."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected {{train,val}}/{{images,masks}} (data/README.md)")
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in EXTENSIONS and path.name[0] != "." and not is_superpixels(path):
            found.setdefault(path.stem, []).append(path)
    return found


def find_pairs(images: str | Path, masks: str | Path) -> list[Pair]:
    """Pair the files of two folders by stem; a mask may also be called STEM_segmentation.

    Returns [(stem, image path, mask path)] sorted by stem; raises ValueError that names the files without a partner and
    the stems that occur twice. The log names what else lies there and looks as if it were meant.
    """
    pairs, problems = match_files(images, masks)
    for text in (*describe_unused(images), *describe_unused(masks)):
        log.warning("%s", text)
    if problems:
        raise ValueError(problems[0])
    return pairs


def describe_unused(folder: str | Path) -> list[str]:
    """Sentences about what is in a folder of images, or masks, and is not read though it looks as if it were meant."""
    visible = [path for path in sorted(Path(folder).iterdir()) if path.name[0] != "."]
    pictures = [path.name for path in visible if path.suffix.lower() in OTHER_PICTURES]
    folders = [path.name for path in visible if path.is_dir()]
    texts = []
    if pictures:
        texts.append(
            f"{folder}: {len(pictures)} pictures are not used; expected {', '.join(EXTENSIONS)}: {some(pictures)}"
        )
    if folders:
        texts.append(f"{folder}: {len(folders)} folders in it are not searched: {some(folders)}")
    return texts


def match_files(images: str | Path, masks: str | Path) -> tuple[list[Pair], list[str]]:
    """([(stem, image path, mask path)] sorted by stem, sentences about the files that make no pair)."""
    image_files = list_images(images)
    mask_files: dict[str, list[Path]] = {}
    for stem, paths in list_images(masks).items():
        plain = stem.removesuffix(MASK_SUFFIX)
        mask_files.setdefault(plain if plain in image_files else stem, []).extend(paths)
    problems = []
    if not image_files:
        problems.append(f"{images} holds no image; expected files ending in {', '.join(EXTENSIONS)}")
    for paths in (*image_files.values(), *mask_files.values()):
        if len(paths) > 1:
            problems.append(f"{paths[0].parent} holds several files for one pair: {some(p.name for p in paths)}")
    alone = sorted(image_files.keys() ^ mask_files.keys())
    if alone:
        names = [(image_files.get(stem) or mask_files[stem])[0] for stem in alone]
        problems.append(
            f"{len(alone)} files have no partner of the same stem in {images} and {masks}: "
            + some(f"{path.parent.name}/{path.name}" for path in names)
        )
    both = sorted(image_files.keys() & mask_files.keys())
    return [(stem, image_files[stem][0], mask_files[stem][0]) for stem in both], problems


def read_image(path: str | Path, training: bool = False) -> torch.Tensor:
    """Any image file as RGB: uint8 tensor (3, H, W). Greys deeper than 8 bits are stretched to 0..255.

    training: also refuses what is only suspicious (see check_training_image)."""
    with open_image(path) as file:
        if training:
            check_training_image(file)
        return rgb(file)


def rgb(file: Image.Image) -> torch.Tensor:
    """The pixels of an open image, as `read_image` returns them."""
    pixels = stretched_rgb(deep_values(file)) if is_deep(file) else np.array(file.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def is_deep(file: Image.Image) -> bool:
    """Whether an image has greys of more than 8 bits."""
    return file.mode == "F" or file.mode.startswith("I")


def deep_values(file: Image.Image) -> np.ndarray:
    """The values (H, W) of an image with greys of more than 8 bits: the brighter, the larger.

    In a TIFF file zero can stand for white; Pillow heeds that only up to 8 bits."""
    white_is_zero = getattr(file, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0
    values = np.asarray(file)
    if not white_is_zero:
        return values
    return np.iinfo(np.uint16).max - values if values.dtype == np.uint16 else -values.astype(np.float64)


def stretched_rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) of any type as uint8 (H, W, 3); what is not uint8 is stretched to 0..255."""
    if pixels.dtype != np.uint8:
        pixels = check_finite(pixels, "the image").astype(np.float64)
        pixels = (pixels - pixels.min()) * (255 / max(np.ptp(pixels), 1e-12))
        pixels = pixels.round().astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()


def grey_values(file: Image.Image) -> np.ndarray:
    """The numbers of a mask (H, W): grey levels; of a coloured palette the indices, as label images are stored."""
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
    """Lesion mask 0..255 (H, W) uint8 from a mask stored with any two values, the larger one being the lesion.

    Masks with many grey levels, such as JPEG files, keep them: soft outlines, as the original reads them. JPEG blurs
    0 and 1 beyond recognition, so that a JPEG file of dark values only is refused.
    """
    found = distinct(values)
    outline = len(found) > GREY_LEVELS and 0 <= found[0] and 128 <= found[-1] <= 255
    if outline or (is_jpeg(path) and (found[-1] >= 128 or found[-1] == 0)):
        return values.astype(np.uint8)
    if is_jpeg(path):
        raise ValueError(
            f"{path} holds values from {found[0]} to {found[-1]}, all of which would be background; expected 0 and 255 "
            "in a JPEG file. Save masks as PNG, or name the two values, such as --mask-values 0 1, to tell them apart"
        )
    if len(found) > 2:
        raise ValueError(
            f"{path} holds the values {some(found)}; expected two (for several classes set num_classes and mask_values)"
        )
    if len(found) == 1 and found[0] not in (0, 1, 255):
        raise ValueError(f"{path} holds only the value {found[0]}, lesion or not; set mask_values=(background, lesion)")
    return np.where(values == found[-1], np.uint8(255 if found[-1] > 0 else 0), np.uint8(0))


def distinct(values: np.ndarray) -> np.ndarray:
    """np.unique of an array, of bytes in a third of its time."""
    return np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)


def is_jpeg(path: str | Path) -> bool:
    """Whether a file's name says that it is compressed with loss, so that a mask's values are no longer exact."""
    return Path(path).suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")


def class_ids(file: Image.Image, mask_values: Sequence[MaskValue], path: str | Path) -> np.ndarray:
    """Class ids (H, W) uint8: the position of each pixel's grey value or (r, g, b) colour in `mask_values`."""
    if isinstance(mask_values[0], tuple):
        to_code = np.array([1 << 16, 1 << 8, 1])
        values, wanted = np.asarray(file.convert("RGB")) @ to_code, np.array(mask_values) @ to_code
    else:
        values, wanted = grey_values(file), np.array(mask_values)
        if is_jpeg(path) and len(wanted) == 2:
            values = np.where(abs(values - wanted[0] + 0.0) < abs(values - wanted[1] + 0.0), *wanted)
    order = wanted.argsort()
    place = np.searchsorted(wanted, values, sorter=order).clip(max=len(wanted) - 1)
    ids = order[place]
    unexpected = np.unique(values[wanted[ids] != values])
    if len(unexpected):
        if isinstance(mask_values[0], tuple):
            unexpected = [tuple(int(code) >> shift & 255 for shift in (16, 8, 0)) for code in unexpected]
        raise ValueError(f"{path} holds the value {some(unexpected)}; expected one of mask_values {tuple(mask_values)}")
    return ids.astype(np.uint8)


def parse_mask_values(texts: Iterable[str], num_classes: int) -> tuple[MaskValue, ...]:
    """A config's mask_values as numbers: ("0", "128") -> (0, 128), ("#000000", "#ff0000") -> ((0, 0, 0), (255, 0, 0)).

    Raises ValueError unless there is one, all of a kind, for each class (with num_classes 1 for background and lesion).
    """
    texts = tuple(texts)
    values: list[MaskValue] = []
    for text in map(str, texts):
        try:
            colour = text.startswith("#") and len(text) == 7
            values.append(tuple(bytes.fromhex(text[1:])) if colour else int(text))
        except ValueError:
            raise ValueError(
                f"mask_values has {text!r}; expected grey values such as 128 or colours as #ff0000"
            ) from None
    expected = max(num_classes, 2)
    if values and len(values) != expected:
        raise ValueError(f"mask_values names {len(values)} values; expected {expected} for num_classes {num_classes}")
    if len({type(value) for value in values}) > 1 or len(set(values)) < len(values):
        raise ValueError(f"mask_values is {texts}; expected different values, all grey or all colours")
    return tuple(values)


def read_mask(path: str | Path, num_classes: int = 1, mask_values: Sequence[MaskValue] = ()) -> torch.Tensor:
    """A mask file as uint8 tensor (1, H, W): 0..255 of a binary mask (num_classes 1), else class ids.

    mask_values: grey values or (r, g, b) colours in the order of the class ids, for num_classes 1 (background, lesion).
    Without them two values are told apart by themselves, and values of several classes are their ids. Of two grey
    values, the values of a JPEG file count as the nearer one.
    """
    with open_image(path) as file:
        check_training_image(file)
        if num_classes == 1 and not mask_values:
            mask = binary_mask(grey_values(file), Path(path))
        else:
            mask = class_ids(file, mask_values or tuple(range(num_classes)), path)
            mask = mask * np.uint8(255) if num_classes == 1 else mask
    return torch.from_numpy(mask)[None]


def check_same_size(image: torch.Tensor, mask: torch.Tensor, image_name: object, mask_name: object) -> None:
    """Raises ValueError unless image (3, H, W) and mask (1, H, W) are of one size."""
    if image.shape[1:] != mask.shape[1:]:
        sizes = ["{1}x{0}".format(*tensor.shape[1:]) for tensor in (image, mask)]
        raise ValueError(f"{image_name} is {sizes[0]} but its mask {mask_name} is {sizes[1]} (width x height)")


class ISICDataset(CachedDataset):
    """`root/split/{images,masks}`. dataset[key], key = index or (epoch, index), -> (image, target, name).

    image float32 (3, size, size), target float32 (1, size, size) or class ids int64 (size, size), name the file's stem
    (see ISICTransform). With `augment` the random decisions depend on seed, epoch and index only.
    pairs: [(stem, image path, mask path)] to take instead of all pairs of the folder.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        transform: Callable,
        num_classes: int = 1,
        mask_values: Sequence[MaskValue] = (),
        augment: bool = False,
        seed: int = 42,
        pairs: list[Pair] | None = None,
    ):
        folder = Path(root, split)
        self.pairs = find_pairs(folder / "images", folder / "masks") if pairs is None else pairs
        for stem, path, _ in self.pairs:
            check_name(stem, path.parent)
        self.transform = transform
        self.num_classes = num_classes
        self.mask_values = mask_values
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def paths(self) -> list[Path]:
        """All its files: each image and its mask."""
        return [Path(path) for _, *pair in self.pairs for path in pair]

    def decode(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(image (3, H, W), mask (1, H, W)) of one pair as stored, uint8."""
        _, image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path, training=True), read_mask(mask_path, self.num_classes, self.mask_values)
        check_same_size(image, mask, image_path, mask_path)
        if image.min() == image.max():
            raise ValueError(f"{image_path} has the same value in every pixel, expected an image")
        return image, mask

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor, str]:
        epoch, index = split_key(key)
        rng = random.Random(f"{self.seed}/{epoch}/{index}") if self.augment else None
        image, target = self.transform(*self.sample(index), rng)
        return image, target, self.pairs[index][0]
