"""Checks of the shape, type and values of arrays that were read from files."""

import contextlib
import math
from typing import Any

import numpy as np

MAX_VALUES = 2**29  # in an array: 2048 slices of 512 x 512
DEFLATE_RATIO = 1032  # largest ratio of the sizes before and after compression; HDF5 stores empty blocks as nothing
SMALL_ARRAY = 2**28  # bytes; a file of any size may hold an array this large


def check_numbers(shape: tuple[int, ...], dtype: np.dtype, what: str, stored: int | None = None) -> None:
    """Raise ValueError unless an array holds between 1 and MAX_VALUES real numbers, and no more than a compressed file
    of `stored` bytes can hold."""
    if dtype.kind not in "biuf":
        raise ValueError(f"{what} holds {dtype}, expected numbers")
    if not 0 < math.prod(shape) <= MAX_VALUES:
        raise ValueError(f"{what} has the shape {shape}, expected between 1 and {MAX_VALUES} values")
    size = math.prod(shape) * dtype.itemsize
    if stored is not None and size > max(SMALL_ARRAY, DEFLATE_RATIO * stored):
        found = f"a size of {size / 1e9:.1f} GB in a file of {stored / 1e6:.3g} MB"
        raise ValueError(f"{what} has {found}, expected at most {DEFLATE_RATIO} times that of the file")


def check_finite(values: np.ndarray, what: str) -> np.ndarray:
    """Return the values; raise ValueError if one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise ValueError(f"{what} holds NaN or infinite values, expected finite values")
    return values


def checked_spacing(spacing: Any, what: object) -> np.ndarray:
    """Return a spacing as float64 (3,), in mm; raise ValueError, naming `what`, unless it is three positive numbers."""
    with contextlib.suppress(TypeError, ValueError):  # text, or lists of several lengths
        mm = np.asarray(spacing, dtype=np.float64)
        if mm.shape == (3,) and np.isfinite(mm).all() and mm.min() > 0:
            return mm
    raise ValueError(f"{what}: the spacing is {spacing}; expected three positive numbers")
