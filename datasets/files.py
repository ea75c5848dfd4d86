"""Which files are images, and what is refused in files that come from anywhere: what nobody means to train on, and what
is too large to read."""

import contextlib
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
OTHER_PICTURES = (  # which are not read
    *(".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    *(".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".svs", ".ndpi", ".mrxs", ".dds", ".exr"),
)
MASK_SUFFIX = "_segmentation"  # of ISIC's ground truth files
MAX_VALUES = 2**29  # of an array: 2048 slices of 512 x 512


def is_superpixels(path: Path) -> bool:
    """Whether a file is one of those with ISIC's superpixels, which lie beside its images and are none."""
    return path.stem.endswith("_superpixels")


def fingerprint(files: Iterable[str | Path]) -> str:
    """A hash of the names and sizes of files, in their order: a list of images that has changed has another."""
    digest = hashlib.sha256()
    for path in map(Path, files):
        digest.update(f"{path.name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def check_training_image(file: Image.Image) -> None:
    """Raises ValueError for an image or mask that nobody trains on on purpose: transparent, or of one pixel."""
    if file.width * file.height < 2:
        raise ValueError("it has one pixel, expected an image")
    if "A" in file.getbands():
        low, high = file.getchannel("A").getextrema()
        if low != high:
            raise ValueError("it is transparent in places, expected an image without transparency")


def check_numbers(shape: tuple[int, ...], dtype: np.dtype, what: str) -> None:
    """Raises ValueError unless an array holds real numbers, some but not more than MAX_VALUES."""
    if dtype.kind not in "biuf":
        raise ValueError(f"{what} holds {dtype}, expected numbers")
    if not 0 < math.prod(shape) <= MAX_VALUES:
        raise ValueError(f"{what} has the shape {shape}, expected between 1 and {MAX_VALUES} values")


def check_finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values; raises ValueError if one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise ValueError(f"{what} holds NaN or infinite values")
    return values


def checked_spacing(spacing: Any, what: object) -> np.ndarray:
    """(3,) mm, float64; raises ValueError, naming `what`, for anything but three positive numbers."""
    with contextlib.suppress(TypeError, ValueError):  # text, or lists of several lengths
        mm = np.asarray(spacing, dtype=np.float64)
        if mm.shape == (3,) and np.isfinite(mm).all() and mm.min() > 0:
            return mm
    raise ValueError(f"{what}: the spacing is {spacing}; expected three positive numbers")
