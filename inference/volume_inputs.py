"""Volumes as input of a trained network: NIfTI, DICOM series, h5, MetaImage, NRRD."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from datasets.array_checks import check_numbers, checked_spacing
from datasets.nifti import (
    STORED,
    affine_of_slices,
    checked_affine,
    from_slices,
    geometry_of,
    header_of,
    mm_of_unit,
    own_orientation,
    says_orientation,
    tilt,
    to_slices,
)
from datasets.synapse import ORIENTATION, h5_array
from inference.formats import StoredVolume
from inference.formats.dicom import read_series
from inference.formats.itk import read_itk_image
from inference.inputs import Input
from utils.files import reading
from utils.optional import optional

log = logging.getLogger("vmunet")

OBLIQUE = 20.0  # degrees between an axis and the patient's, above which a warning is logged
HEADER_BYTES = 65536  # the text header of a MetaImage or NRRD file lies within


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


def read_volume(item: Input, orientation: str = ORIENTATION) -> Volume:
    """Read a file or series, with axes as in `orientation`, or STORED. h5 files are read as in training.

    Raises ValueError unless it is a volume of grey values in evenly spaced slices."""
    if item.format == "h5":
        return _read_h5(item.path)
    with reading(item.path):
        if item.format == "dicom":
            stored = read_series(item.files)
        else:
            stored = (_read_nifti if item.format == "nifti" else _read_itk)(item.path)
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
    with reading(path), h5py.File(path) as file:
        stored = h5_array(file, "image")
        check_numbers(stored.shape, stored.dtype, f"{path}: image")
        slices = stored[:].astype(np.float32)
        spacing = file.attrs.get("spacing", stored.attrs.get("spacing"))
        affine = file.attrs.get("affine")  # of (column, row, slice), see prepare_synapse
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


def _read_nifti(path: Path) -> StoredVolume:
    nifti: Any = nibabel.load(path)
    dtype = nifti.get_data_dtype()
    if dtype.fields:
        raise ValueError(f"found colours {dtype.names}, expected grey values")
    check_numbers(nifti.shape, dtype, str(path))
    array = np.asarray(nifti.dataobj)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    array = array[..., None] if array.ndim == 2 else array
    header, mm = nifti.header, mm_of_unit(nifti.header)
    if says_orientation(header):
        return StoredVolume(array, np.diag([mm, mm, mm, 1]) @ nifti.affine, header=header)
    sizes = np.where(header["pixdim"][1:4] > 0, header["pixdim"][1:4], 1) * mm
    return StoredVolume(array, affine_of_slices(sizes[::-1]), measured=False, placed=False, header=header)


def _read_itk(path: Path) -> StoredVolume:
    optional("SimpleITK", "MetaImage and NRRD files")
    array, affine = read_itk_image(path)
    with open(path, "rb") as file:  # SimpleITK gives 1 mm and no rotation where the header has neither
        header = file.read(HEADER_BYTES)
    if path.name.lower().endswith(".nrrd"):
        header = header.split(b"\n\n")[0].split(b"\r\n\r\n")[0]
        units = re.search(rb"^space units:(.*)$", header, re.MULTILINE)
        if units and set(units[1].split()) - {b'"mm"'}:
            raise ValueError(f"found the space units {units[1].decode(errors='replace').strip()}, expected mm")
        measured = re.search(rb"^(space directions|spacings):", header, re.MULTILINE) is not None
        placed = re.search(rb"^space: *(left|right|[lr][ap]s)", header, re.MULTILINE | re.IGNORECASE) is not None
    else:
        header = header.split(b"ElementDataFile")[0]
        measured = re.search(rb"^Element(Spacing|Size)\b", header, re.MULTILINE) is not None
        placed = re.search(rb"^(TransformMatrix|Rotation|Orientation)\b", header, re.MULTILINE) is not None
    measured = measured and array.ndim == 3  # one slice has no thickness
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # NIfTI's axes point right and front, ITK's left and back
    return StoredVolume(array[..., None] if array.ndim == 2 else array, affine, measured, placed)
