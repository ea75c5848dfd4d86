"""Volumes with labels as training reads them: a slice each in train_npz, whole ones in test_vol_h5, lists of both."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from utils.files import write_atomically


class Case(NamedTuple):
    """A volume as it is stored. Arrays are (S, H, W): slices, rows, columns."""

    image: np.ndarray  # float32, 0..1
    label: np.ndarray
    spacing: np.ndarray | None  # (3,) mm between slices, rows, columns; None if unknown
    affine: np.ndarray | None  # (4, 4), from (column, row, slice) to the scanner's mm; None if unknown
    orientation: str | None  # where columns, rows and slices point to in the patient, such as LPS; None if unknown


def slice_files(out: Path, name: str, numbers: Sequence[int]) -> list[Path]:
    """Where the slices of a case are stored."""
    return [out / "train_npz" / f"{name}_slice{number:03d}.npz" for number in numbers]


def volume_file(out: Path, name: str) -> Path:
    """Where a whole case is stored."""
    return out / "test_vol_h5" / f"{name}.npy.h5"


def write_slices(case: Case, files: Sequence[Path], numbers: Sequence[int]) -> None:
    """Writes slices of a case to `files`, each in one step."""
    for file, number in zip(files, numbers, strict=True):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, image=case.image[number], label=case.label[number])
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())


def write_volume(case: Case, path: Path) -> None:
    """Writes a whole case with its geometry as h5 attributes, in one step."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for kind, data in (("image", case.image), ("label", case.label)):
            file.create_dataset(kind, data=data, compression="gzip", chunks=(1, *data.shape[1:]))
        known = {"spacing": case.spacing, "affine": case.affine, "orientation": case.orientation}
        file.attrs.update({name: value for name, value in known.items() if value is not None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
