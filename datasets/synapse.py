"""Synapse abdominal CT in TransUNet's layout: slices (npz) for training, whole volumes (h5) for testing."""

import random
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.array_checks import check_finite, checked_spacing
from datasets.cache import CachedDataset, Key, split_key
from datasets.formats.arrays import read_h5, read_npz
from utils.files import check_name, first_few, list_duplicates, read_text

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")  # 1..8
HOLDOUT_LISTS = "list_Synapse_holdout"  # folder of the lists with a val_vol.txt, beside list_Synapse
# Arrays are (S, H, W): slices from foot to head, rows from front to back, columns from the patient's right to the left.
# In NIfTI's order, columns, rows, slices, the axes therefore point to the patient's
ORIENTATION = "LPS"


def read_list(list_dir: str | Path, name: str) -> list[str]:
    """Return the lines of a list file, such as train.txt or test_vol.txt."""
    path = Path(list_dir, name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a list as in lists/list_Synapse (data/README.md)")
    lines = read_text(path).split()
    if not lines:
        raise ValueError(f"{path} is empty; expected one name a line")
    for line in lines:
        check_name(line, path)
    twice = list_duplicates(lines)
    if twice:
        raise ValueError(f"{path} lists {len(twice)} names more than once: {first_few(twice)}; expected each once")
    return lines


def case_of_slice(name: str) -> str:
    """Return the case, such as case0005, of a slice such as case0005_slice012; a case's name is returned unchanged."""
    return name.rsplit("_slice", 1)[0]


def cases_of_slices(names: Iterable[str]) -> set[str]:
    return {case_of_slice(name) for name in names}


def listed_files(folder: str | Path, names: Iterable[str], ending: str) -> list[Path]:
    """Return the files of all names in a folder; raise FileNotFoundError naming those that are missing."""
    files = [Path(folder, name + ending) for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        found = f"{len(missing)} of {len(files)} listed files are not in {folder}"
        raise FileNotFoundError(f"{found}: {first_few(missing)}")
    return files


def check_labels(label: np.ndarray, num_classes: int, path: Path, ignore_label: int | None = None) -> np.ndarray:
    """Return labels as uint8; raise ValueError if one is not a class id, nor `ignore_label`."""
    classes = label if ignore_label is None else np.where(label == ignore_label, 0, label)
    low, high = classes.min(), classes.max()
    if not 0 <= low <= high < num_classes or not np.array_equal(label, label.astype(np.uint8)):
        raise ValueError(f"{path} holds labels from {low:g} to {high:g}; expected integers 0..{num_classes - 1}")
    return label.astype(np.uint8)


def neighbours(names: Sequence[str], context: int) -> list[list[int]]:
    """Return for each name the indices of the `context` slices before it, of itself, and of those after it. A slice
    without one beside it in `names` stands for that one too.

    Raises ValueError for a name without the number of a slice."""
    keys = []
    for name in names:
        match = re.fullmatch(r"(.*)_slice_?(\d+)", name)
        if match is None:
            raise ValueError(f"--context {context}: found the slice {name}, expected names such as case0005_slice012")
        keys.append((match[1], int(match[2])))
    index = {key: i for i, key in enumerate(keys)}
    around = [[i] for i in range(len(names))]
    for _ in range(context):
        for row in around:
            (before, first), (after, last) = keys[row[0]], keys[row[-1]]
            row[:] = [index.get((before, first - 1), row[0]), *row, index.get((after, last + 1), row[-1])]
    return around


class SynapseSlices(CachedDataset):
    """Slices named in `list_dir/train.txt`. dataset[key], key = index or (epoch, index), -> (image, label, name):
    float32 (2 * context + 1, size, size), int64 (size, size), such as case0005_slice012 (see RandomGenerator).

    The channels are a slice and its `neighbours`. The random decisions depend on seed, epoch and index only.

    names   of the list's slices, those to train on; None: all"""

    def __init__(
        self,
        folder: str | Path,
        list_dir: str | Path,
        transform: Callable,
        num_classes: int = 9,
        seed: int = 42,
        ignore_label: int | None = None,
        context: int = 0,
        names: list[str] | None = None,
    ):
        self.names = read_list(list_dir, "train.txt") if names is None else names
        self.around = neighbours(self.names, context) if context else None
        self.files = listed_files(folder, self.names, ".npz")
        self.transform = transform
        self.num_classes = num_classes
        self.seed = seed
        self.ignore_label = ignore_label

    def __len__(self) -> int:
        return len(self.names)

    def decode(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (image float32, label uint8), both (H, W), as stored."""
        path = self.files[index]
        image, label, _ = read_npz(path, 2)
        image = check_finite(image.astype(np.float32), f"{path}: image")
        return torch.from_numpy(image), torch.from_numpy(check_labels(label, self.num_classes, path, self.ignore_label))

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor, str]:
        epoch, index = split_key(key)
        seed = f"{self.seed}/{epoch}/{index}"
        generators = random.Random(seed), np.random.RandomState(zlib.crc32(seed.encode()))
        image, label = (tensor.numpy() for tensor in self.sample(index))
        if self.around is not None:
            images = {i: self.sample(i)[0].numpy() for i in {*self.around[index]} - {index}} | {index: image}
            for i in images:
                if images[i].shape != label.shape:
                    found = f"{images[i].shape}, but {self.files[index].name} {label.shape}"
                    raise ValueError(f"--context: {self.files[i]}: found a slice {found}; expected one size in a case")
            image = np.stack([images[i] for i in self.around[index]])
        return *self.transform(image, label, *generators), self.names[index]


class SynapseVolumes(Dataset):
    """Volumes named in `list_dir/list_name`, or `names` instead: volumes[i] -> (image, label, name, spacing).

    image float32 and label uint8, arrays (S, H, W); name such as case0008; spacing float64 (3,) in mm along the axes of
    the arrays, from the attribute `spacing` of the h5 file, None without it."""

    def __init__(
        self,
        folder: str | Path,
        list_dir: str | Path,
        num_classes: int = 9,
        list_name: str = "test_vol.txt",
        ignore_label: int | None = None,
        read: Callable[[Path], tuple[np.ndarray, np.ndarray, np.ndarray | None]] = read_h5,
        names: list[str] | None = None,
    ):
        self.names = read_list(list_dir, list_name) if names is None else names
        self.files = listed_files(folder, self.names, ".npy.h5")
        self.num_classes = num_classes
        self.ignore_label, self.read = ignore_label, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str, np.ndarray | None]:
        path = self.files[index]
        image, label, spacing = self.read(path)
        image = check_finite(image.astype(np.float32), f"{path}: image")
        spacing = None if spacing is None else checked_spacing(spacing, path)
        return image, check_labels(label, self.num_classes, path, self.ignore_label), self.names[index], spacing
