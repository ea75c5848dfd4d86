"""Volumes as input of a trained network: NIfTI, DICOM series, h5, MetaImage, NRRD."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.array_checks import checked_spacing
from datasets.formats.arrays import read_h5_image
from datasets.formats.dicom import read_series
from datasets.formats.metaimage_nrrd import read_metaimage_or_nrrd
from datasets.formats.reader_process import read_apart
from datasets.nifti import (
    STORED,
    affine_of_slices,
    checked_affine,
    from_slices,
    geometry_of,
    header_of,
    nibabel,
    own_orientation,
    read_nifti,
    tilt,
    to_slices,
    voxel_sizes,
)
from datasets.synapse import ORIENTATION
from inference.inputs import Input

log = logging.getLogger("vmunet")

OBLIQUE = 20.0  # degrees between an axis and the patient's, above which a warning is logged


@dataclass
class Volume:
    """Slices (S, H, W) with the axes of `orientation`, and their geometry."""

    slices: np.ndarray
    spacing: np.ndarray | None  # mm, in the order of the axes; None if unknown
    affine: np.ndarray  # (4, 4), for the array (i, j, k) as stored
    orientation: str = ORIENTATION
    modality: str | None = None  # of a DICOM series, such as CT
    header: nibabel.Nifti1Header | None = None  # of its NIfTI file
    prepared: bool = False  # from an h5 file as training reads them, with scaled values
    files: tuple[str, ...] = ()  # of its DICOM series, in the order of the array's last axis

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of a voxel: the affine's determinant, also if it is oblique or sheared; None if unknown."""
        return None if self.spacing is None else float(abs(np.linalg.det(self.affine[:3, :3])))

    def as_stored(self, array: np.ndarray) -> np.ndarray:
        """Return an array (S, H, W) with the axes (i, j, k) of the file."""
        return from_slices(array, self.affine, self.orientation)

    def to_nifti(self, array: np.ndarray, dtype: npt.DTypeLike) -> nibabel.Nifti1Image:
        """Return an array (S, H, W), or (C, S, H, W), as a NIfTI file in the volume's stored geometry."""
        stored = np.stack([self.as_stored(a) for a in array], -1) if array.ndim == 4 else self.as_stored(array)
        header = header_of(self.affine) if self.header is None else geometry_of(self.header)
        header.set_data_shape(stored.shape)  # without sform and qform the affine depends on it
        return nibabel.Nifti1Image(stored, header.get_best_affine(), header, dtype=dtype)


def read_volume(item: Input, orientation: str = ORIENTATION, channel: int | None = None) -> Volume:
    """Read a file or series, with axes as in `orientation`, or STORED. h5 files are read as in training.

    channel: of a NIfTI file with four dimensions

    Raises ValueError unless it is a volume of grey values in evenly spaced slices."""
    if item.format == "h5":
        return _read_h5(item.path)
    if item.format == "dicom":
        stored = read_apart([Path(file) for file in item.files], read_series, item.files)
    elif item.format == "nifti":
        stored = read_apart([item.path], read_nifti, item.path, channel)
    else:
        stored = read_apart([item.path], read_metaimage_or_nrrd, item.path)
    if stored.array.ndim != 3:
        raise ValueError(f"{item.path} holds an array of shape {stored.array.shape}; expected one grey volume")
    affine = checked_affine(stored.affine, item.path)
    if not stored.placed:
        log.warning(
            "%s has no orientation: its axes are taken to point to the patient's left, back and head", item.path
        )
    elif tilt(affine) > OBLIQUE:
        text = "%s: an axis is %.0f degrees off the patient's; slices are predicted without resampling"
        log.warning(text, item.path, tilt(affine))
    if not stored.measured:
        log.warning("%s has no voxel size: volumes in ml are left empty", item.path)
    orientation = own_orientation(affine) if orientation == STORED else orientation
    slices, spacing = to_slices(stored.array, affine, orientation)
    return Volume(
        *(slices, spacing if stored.measured else None, affine, orientation, stored.modality, stored.header),
        files=item.files if item.format == "dicom" else (),
    )


def _read_h5(path: Path) -> Volume:
    slices, spacing, affine = read_apart([path], read_h5_image, path)  # affine of (column, row, slice)
    if slices.ndim == 2:
        slices = slices[None]
    if slices.ndim != 3:
        raise ValueError(f"{path} holds an image {slices.shape}; expected (slices, rows, columns)")
    if spacing is not None:
        spacing = checked_spacing(spacing, path)
    if affine is None:
        affine = affine_of_slices(spacing)
    else:
        affine = checked_affine(affine, path)
        sizes = voxel_sizes(affine)[::-1]
        if spacing is not None and not np.allclose(spacing, sizes, rtol=0.01):
            raise ValueError(f"{path}: the spacing is {spacing.tolist()} but by the affine {sizes.tolist()}")
        spacing = sizes
    return Volume(slices, spacing, affine, own_orientation(affine), prepared=True)  # written as it lies
