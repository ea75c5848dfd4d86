"""File formats of volumes and masks that need optional packages."""

from dataclasses import dataclass

import nibabel
import numpy as np


@dataclass
class StoredVolume:
    """The content of a file or series, as stored."""

    array: np.ndarray  # (i, j, k)
    affine: np.ndarray  # (4, 4) in NIfTI's directions, mm
    measured: bool = True  # whether the voxel size is known along all axes
    placed: bool = True  # whether the patient's orientation is known
    header: nibabel.Nifti1Header | None = None  # of a NIfTI file
    modality: str | None = None  # of a DICOM series, such as CT
