"""Synapse abdominal CT in TransUNet's layout: slices (npz) for training, whole volumes (h5) for testing."""

import random
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.array_checks import check_finite, check_numbers, checked_spacing
from datasets.cache import CachedDataset, Key, split_key
from utils.files import check_name, first_few, list_duplicates, reading

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
    with reading(path):
        lines = path.read_text(encoding="utf-8").split()
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


def check_pair(image: np.ndarray | h5py.Dataset, label: np.ndarray | h5py.Dataset, ndim: int, path: Path) -> None:
    """Raise ValueError unless image and label hold numbers and have the same `ndim`-D shape."""
    for array, name in ((image, "image"), (label, "label")):
        check_numbers(array.shape, array.dtype, f"{path}: {name}")
    if image.shape != label.shape or len(image.shape) != ndim:
        found = f"an image {image.shape} and a label {label.shape}"
        raise ValueError(f"{path} holds {found}; expected one {ndim}-D shape")


def check_keys(arrays: Collection[str], path: Path) -> None:
    """Raise ValueError unless a file holds `image` and `label`."""
    if not {"image", "label"} <= set(arrays):
        raise ValueError(f"{path} holds {first_few(sorted(arrays)) or 'nothing'}; expected image and label")


def npz_header(arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Return an array of an npz file with its shape and type, but without its values, which may not fit into memory."""
    assert arrays.zip is not None  # it is open
    with arrays.zip.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = reader(file)
    return np.broadcast_to(np.empty((), dtype), shape)


def h5_array(file: h5py.File, name: str) -> h5py.Dataset:
    """Return an array of an h5 file; raise ValueError if its values would come from another file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is not in the file itself")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
        raise ValueError(f"{name} is no array in the file itself")
    return array


def read_npz(path: Path, ndim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read image, label and, if it is stored, spacing of an npz file with `ndim`-D arrays."""
    with reading(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        check_keys(arrays, path)
        check_pair(npz_header(arrays, "image"), npz_header(arrays, "label"), ndim, path)
        return arrays["image"], arrays["label"], arrays["spacing"] if "spacing" in arrays else None


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read image (S, H, W), label and, if it is stored, spacing of an h5 file."""
    with reading(path), h5py.File(path) as file:
        check_keys(file, path)
        image, label = h5_array(file, "image"), h5_array(file, "label")
        check_pair(image, label, 3, path)
        return image[:], label[:], file.attrs.get("spacing", image.attrs.get("spacing"))


def check_labels(label: np.ndarray, num_classes: int, path: Path) -> np.ndarray:
    """Return labels as uint8; raise ValueError if one is not a class id."""
    low, high = label.min(), label.max()
    if not 0 <= low <= high < num_classes or not np.array_equal(label, label.astype(np.uint8)):
        raise ValueError(f"{path} holds labels from {low:g} to {high:g}; expected integers 0..{num_classes - 1}")
    return label.astype(np.uint8)


class SynapseSlices(CachedDataset):
    """Slices named in `list_dir/train.txt`. dataset[key], key = index or (epoch, index), -> (image, label, name):
    float32 (1, size, size), int64 (size, size), such as case0005_slice012 (see RandomGenerator).

    The random decisions depend on seed, epoch and index only."""

    def __init__(
        self, folder: str | Path, list_dir: str | Path, transform: Callable, num_classes: int = 9, seed: int = 42
    ):
        self.names = read_list(list_dir, "train.txt")
        self.files = listed_files(folder, self.names, ".npz")
        self.transform = transform
        self.num_classes = num_classes
        self.seed = seed

    def __len__(self) -> int:
        return len(self.names)

    def decode(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (image float32, label uint8), both (H, W), as stored."""
        path = self.files[index]
        image, label, _ = read_npz(path, 2)
        image = check_finite(image.astype(np.float32), f"{path}: image")
        return torch.from_numpy(image), torch.from_numpy(check_labels(label, self.num_classes, path))

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor, str]:
        epoch, index = split_key(key)
        seed = f"{self.seed}/{epoch}/{index}"
        generators = random.Random(seed), np.random.RandomState(zlib.crc32(seed.encode()))
        image, label = (tensor.numpy() for tensor in self.sample(index))
        return *self.transform(image, label, *generators), self.names[index]


class SynapseVolumes(Dataset):
    """Volumes named in `list_dir/list_name`: volumes[i] -> (image, label, name, spacing).

    image float32 and label uint8, arrays (S, H, W); name such as case0008; spacing float64 (3,) in mm along the axes of
    the arrays, from the attribute `spacing` of the h5 file, None without it."""

    def __init__(self, folder: str | Path, list_dir: str | Path, num_classes: int = 9, list_name: str = "test_vol.txt"):
        self.names = read_list(list_dir, list_name)
        self.files = listed_files(folder, self.names, ".npy.h5")
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str, np.ndarray | None]:
        path = self.files[index]
        image, label, spacing = read_h5(path)
        image = check_finite(image.astype(np.float32), f"{path}: image")
        spacing = None if spacing is None else checked_spacing(spacing, path)
        return image, check_labels(label, self.num_classes, path), self.names[index], spacing
