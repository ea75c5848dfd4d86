"""ISIC and any other folder of images and masks, `root/{train,val}/{images,masks}`, paired by file stem."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets.cache import CachedDataset, Key, split_key
from datasets.image_reading import EXTENSIONS, MASK_SUFFIX, OTHER_PICTURES, is_superpixels, read_image
from datasets.masks import MaskReader, MaskValue, check_same_size
from utils.files import check_name, first_few, normal_name

log = logging.getLogger("vmunet")

Pair = tuple[str, Path, Path]  # stem, image, mask


@dataclass(eq=False)
class ISICDataset(CachedDataset):
    """`root/split/{images,masks}`. dataset[key], key = index or (epoch, index), -> (image, target, name).

    image float32 (3, size, size), target float32 (1, size, size) or class ids int64 (size, size), name the file's stem
    (see ISICTransform); a StrongTransform adds its parameters. With `augment` the random decisions depend on seed,
    epoch and index only.
    pairs: [(stem, image path, mask path)] to use instead of all pairs of the folder."""

    root: str | Path
    split: str
    transform: Callable
    num_classes: int = 1
    mask_values: Sequence[MaskValue] = ()
    augment: bool = False
    seed: int = 42
    pairs: Sequence[Pair] = ()
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        folder = Path(self.root, self.split)
        self.pairs = self.pairs or find_pairs(folder / "images", folder / "masks")
        for stem, path, _ in self.pairs:
            check_name(stem, path.parent)
        files = list(dict.fromkeys([*find_masks(self.root), *(Path(mask) for *_, mask in self.pairs)]))
        self.masks = MaskReader(files, self.num_classes, self.mask_values, self.ignore_label)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def paths(self) -> list[Path]:
        """All files: each image, followed by its mask."""
        return [Path(path) for _, *pair in self.pairs for path in pair]

    def decode(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (image (3, H, W), mask (1, H, W)) as stored, uint8."""
        _, image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path), self.masks.read(mask_path)
        check_same_size(image, mask, image_path, mask_path)
        if np.ptp(image.numpy()) == 0:  # PyTorch would start threads, beside those that decode
            raise ValueError(f"{image_path} has the same value in every pixel, expected an image")
        return image, mask

    def __getitem__(self, key: Key) -> tuple:
        epoch, index = split_key(key)
        rng = random.Random(f"{self.seed}/{epoch}/{index}") if self.augment else None
        image, target, *drawn = self.transform(*self.sample(index), rng)
        return image, target, self.pairs[index][0], *drawn


def find_pairs(images: str | Path, masks: str | Path) -> list[Pair]:
    """Pair the files of two folders by stem; the mask of STEM may also be called STEM_segmentation.

    Returns [(stem, image path, mask path)] sorted by stem. Logs pictures and folders that are not used. Raises
    ValueError that names the files without a partner and the stems that occur twice."""
    pairs, problems = match_files(images, masks)
    for text in (*describe_unused(images), *describe_unused(masks)):
        log.warning("%s", text)
    if problems:
        raise ValueError(problems[0])
    return pairs


def find_masks(root: str | Path) -> list[Path]:
    """Return all masks of a folder: those of root/{train,val,test}/masks and root/masks."""
    folders = [Path(root, part, "masks") for part in ("train", "val", "test", "")]
    return [path for folder in folders if folder.is_dir() for paths in list_images(folder).values() for path in paths]


def list_images(folder: str | Path) -> dict[str, list[Path]]:
    """Return {stem in its normal form: [paths]} of the images in a folder, without hidden files and superpixels."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with images or masks (data/README.md)")
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in EXTENSIONS and path.name[0] != "." and not is_superpixels(path):
            found.setdefault(normal_name(path.stem), []).append(path)
    return found


def describe_unused(folder: str | Path) -> list[str]:
    """Return sentences about the pictures of other formats and the folders in a folder of images or masks."""
    visible = [path for path in sorted(Path(folder).iterdir()) if path.name[0] != "."]
    pictures = [path.name for path in visible if path.suffix.lower() in OTHER_PICTURES]
    folders = [path.name for path in visible if path.is_dir()]
    not_used = f"pictures are not used; expected {', '.join(EXTENSIONS)}"
    findings = ((pictures, not_used), (folders, "folders are not searched"))
    return [f"{folder}: {len(names)} {what}: {first_few(names)}" for names, what in findings if names]


def match_files(images: str | Path, masks: str | Path) -> tuple[list[Pair], list[str]]:
    """Return ([(stem, image path, mask path)] sorted by stem, sentences about the files that form no pair)."""
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
            problems.append(f"{paths[0].parent} holds several files for one pair: {first_few(p.name for p in paths)}")
    alone = sorted(image_files.keys() ^ mask_files.keys())
    if alone:
        paths = [(image_files.get(stem) or mask_files[stem])[0] for stem in alone]
        names = first_few(f"{path.parent.name}/{path.name}" for path in paths)
        problems.append(f"{len(alone)} files have no partner of the same stem in {images} and {masks}: {names}")
    both = sorted(image_files.keys() & mask_files.keys())
    return [(stem, image_files[stem][0], mask_files[stem][0]) for stem in both], problems
