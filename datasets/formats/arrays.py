"""Arrays of npz and h5 files: image and label in the layout of Synapse."""

import math
from collections.abc import Collection
from pathlib import Path

import h5py
import numpy as np

from datasets.array_checks import check_numbers
from utils.files import first_few, reading

LARGEST_ATTRIBUTE = 16  # numbers; an affine has 16


def check_pair(image: np.ndarray | h5py.Dataset, label: np.ndarray | h5py.Dataset, ndim: int, path: Path) -> None:
    """Raise ValueError unless image and label hold numbers and have the same `ndim`-D shape."""
    for array, name in ((image, "image"), (label, "label")):
        check_numbers(array.shape, array.dtype, f"{path}: {name}", path.stat().st_size)
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


def read_npz(path: Path, ndim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read image, label and, if it is stored, spacing of an npz file with `ndim`-D arrays."""
    with reading(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        check_keys(arrays, path)
        check_pair(npz_header(arrays, "image"), npz_header(arrays, "label"), ndim, path)
        if "spacing" not in arrays:
            return arrays["image"], arrays["label"], None
        check_attribute(npz_header(arrays, "spacing"), "spacing")
        return arrays["image"], arrays["label"], arrays["spacing"]


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read image (S, H, W), label and, if it is stored, spacing of an h5 file."""
    with reading(path), h5py.File(path, locking=False) as file:  # not every file system has locks
        check_keys(file, path)
        image, label = h5_array(file, "image"), h5_array(file, "label")
        check_pair(image, label, 3, path)
        return image[:], label[:], h5_attribute(file, "spacing")


def read_h5_image(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the image of an h5 file, float32 (S, H, W), and its spacing and affine as they are stored, or None."""
    with reading(path), h5py.File(path, locking=False) as file:
        stored = h5_array(file, "image")
        check_numbers(stored.shape, stored.dtype, f"{path}: image", path.stat().st_size)
        return stored[:].astype(np.float32), h5_attribute(file, "spacing"), h5_attribute(file, "affine")


def h5_array(file: h5py.File, name: str) -> h5py.Dataset:
    """Return an array of an h5 file; raise ValueError if its values would come from another file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is not in the file itself")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
        raise ValueError(f"{name} is no array in the file itself")
    return array


def h5_attribute(file: h5py.File, name: str) -> np.ndarray | None:
    """Return an attribute of numbers of an h5 file or its image; None if it is not stored.

    The type is checked first: HDF5 may never return from a damaged attribute of variable length, such as text."""
    for owner in (file, file["image"]):
        if name in owner.attrs:
            check_attribute(owner.attrs.get_id(name), name)
            return owner.attrs[name]
    return None


def check_attribute(stored: h5py.h5a.AttrID | np.ndarray, name: str) -> None:
    """Raise ValueError unless an attribute holds a few numbers."""
    if stored.dtype.kind not in "iuf" or math.prod(stored.shape) > LARGEST_ATTRIBUTE:
        raise ValueError(f"{name} is stored as {stored.dtype} of the shape {stored.shape}; expected a few numbers")
