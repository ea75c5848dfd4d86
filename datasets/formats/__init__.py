"""Readers of volumes. They run in a separate process (reader_process.py), which does not import PyTorch."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class StoredVolume:
    """The content of a file or series, as stored."""

    array: np.ndarray  # (i, j, k)
    affine: np.ndarray  # (4, 4) in NIfTI's directions, mm
    measured: bool = True  # whether the voxel size is known along all axes
    placed: bool = True  # whether the patient's orientation is known
    header: Any = None  # of a NIfTI file, a nibabel.Nifti1Header
    slope: float = 1.0  # of a NIfTI file, by which its stored values were multiplied
    modality: str | None = None  # of a DICOM series, such as CT
