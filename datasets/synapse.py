"""Synapse abdominal CT as TransUNet prepared it: slices (npz) for training, whole volumes (h5) for testing."""

import random
import zlib
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.cache import CachedDataset, split_key
from datasets.files import reading, some

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")  # 1..8


def read_list(list_dir, name):
    """The lines of a list file, such as train.txt or test_vol.txt."""
    path = Path(list_dir, name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a list as in lists/list_Synapse (data/README.md)")
    lines = path.read_text().split()
    if not lines:
        raise ValueError(f"{path} is empty; expected one name a line")
    return lines


def listed_files(folder, names, ending):
    """The files of all names in a folder; raises FileNotFoundError naming those that are missing."""
    files = [Path(folder, name + ending) for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(files)} listed files are not in {folder}: {some(missing)}")
    return files


def check_labels(label, num_classes, path):
    """Labels as uint8; raises ValueError if one is not a class id."""
    low, high = label.min(), label.max()
    if low < 0 or high >= num_classes or not np.array_equal(label, label.astype(np.uint8)):
        raise ValueError(f"{path} holds labels from {low:g} to {high:g}; expected integers 0..{num_classes - 1}")
    return label.astype(np.uint8)


class SynapseSlices(CachedDataset):
    """Slices named in `list_dir/train.txt`. dataset[key], key = index or (epoch, index), -> (image, label, name):
    float32 (1, size, size), int64 (size, size), such as case0005_slice012 (see RandomGenerator).

    The random decisions depend on seed, epoch and index only.
    """

    def __init__(self, folder, list_dir, transform, num_classes=9, seed=42):
        self.names = read_list(list_dir, "train.txt")
        self.files = listed_files(folder, self.names, ".npz")
        self.transform = transform
        self.num_classes = num_classes
        self.seed = seed

    def __len__(self):
        return len(self.names)

    def decode(self, index):
        """(image float32, label uint8), both (H, W), as stored."""
        path = self.files[index]
        with reading(path), open(path, "rb") as file, np.load(file) as arrays:
            image, label = arrays["image"].astype(np.float32), arrays["label"]
        if image.shape != label.shape:
            raise ValueError(f"{path} holds an image {image.shape} but a label {label.shape}")
        return torch.from_numpy(image), torch.from_numpy(check_labels(label, self.num_classes, path))

    def __getitem__(self, key):
        epoch, index = split_key(key)
        seed = f"{self.seed}/{epoch}/{index}"
        generators = random.Random(seed), np.random.RandomState(zlib.crc32(seed.encode()))
        image, label = (tensor.numpy() for tensor in self.sample(index))
        return *self.transform(image, label, *generators), self.names[index]


class SynapseVolumes(Dataset):
    """Volumes named in `list_dir/list_name`: volumes[i] -> (image, label, name, spacing).

    image float32 and label uint8, arrays (S, H, W); name such as case0008; spacing float64 (3,) in mm along the axes of
    the arrays, from the attribute `spacing` of the h5 file, None without it.
    """

    def __init__(self, folder, list_dir, num_classes=9, list_name="test_vol.txt"):
        self.names = read_list(list_dir, list_name)
        self.files = listed_files(folder, self.names, ".npy.h5")
        self.num_classes = num_classes

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        path = self.files[index]
        with reading(path), h5py.File(path) as file:
            image, label = file["image"][:].astype(np.float32), file["label"][:]
            spacing = file.attrs.get("spacing", file["image"].attrs.get("spacing"))
        if image.shape != label.shape or image.ndim != 3:
            raise ValueError(f"{path} holds an image {image.shape} and a label {label.shape}; expected one 3-D shape")
        if spacing is not None:
            spacing = np.asarray(spacing, dtype=np.float64)
        return image, check_labels(label, self.num_classes, path), self.names[index], spacing
