"""Volumes that a trained network can be given: NIfTI, DICOM series, h5, MetaImage, NRRD."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes

from datasets.files import check_numbers
from datasets.nifti import affine_of_slices, from_slices, to_slices
from datasets.synapse import ORIENTATION, h5_array
from inference.inputs import Input
from inference.itk import import_simpleitk
from utils.files import reading

SLICE_TOLERANCE = 0.02  # of the distance between two slices, by which the others may differ
Stored = tuple[np.ndarray, np.ndarray, str | None]  # array (i, j, k), affine (4, 4), modality of a DICOM series


@dataclass
class Volume:
    """Slices (S, H, W) with the axes of `orientation`, and where they are in the patient."""

    slices: np.ndarray
    spacing: np.ndarray | None  # mm, in the order of the axes; None if unknown
    affine: np.ndarray  # (4, 4), of the array (i, j, k) as stored
    orientation: str = ORIENTATION
    scaled: bool = False  # already as the network was trained on
    modality: str | None = None  # of a DICOM series, such as CT

    def to_nifti(self, array: np.ndarray, dtype: npt.DTypeLike) -> nibabel.Nifti1Image:
        """An array (S, H, W), or (C, S, H, W), as a NIfTI file in the geometry that the volume was stored in."""
        if array.ndim == 4:
            stored = np.stack([from_slices(a, self.affine, self.orientation) for a in array], -1)
        else:
            stored = from_slices(array, self.affine, self.orientation)
        nifti = nibabel.Nifti1Image(stored, self.affine, dtype=dtype)
        nifti.header.set_xyzt_units("mm")
        nifti.set_sform(self.affine, code="scanner")
        nifti.set_qform(self.affine, code="scanner")
        return nifti


def read_volume(item: Input, orientation: str = ORIENTATION) -> Volume:
    """The Volume of a file or series, with axes as in `orientation`; h5 files are taken as training takes them.

    Raises ValueError for what is no volume of grey values in even slices."""
    if item.format == "h5":
        return _read_h5(item.path)
    read = {"nifti": _read_nifti, "itk": _read_itk, "dicom": _read_dicom}[item.format]
    with reading(item.path):
        array, affine, modality = read(item)
    if array.ndim != 3:
        raise ValueError(f"{item.path} holds an array of shape {array.shape}; expected one grey volume")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"{item.path} has the affine {affine.tolist()}; expected one that spans three axes")
    slices, spacing = to_slices(array, affine, orientation)
    return Volume(slices, spacing, affine, orientation, modality=modality)


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
        spacing = np.asarray(spacing, dtype=np.float64)
    affine = affine_of_slices(spacing) if affine is None else np.asarray(affine, dtype=np.float64)
    return Volume(slices, spacing, affine, "".join(aff2axcodes(affine)), scaled=True)  # written as it lies


def _read_nifti(item: Input) -> Stored:
    nifti: Any = nibabel.load(item.path)
    dtype = nifti.get_data_dtype()
    if dtype.fields:
        raise ValueError(f"found colours {dtype.names}, expected grey values")
    check_numbers(nifti.shape, dtype, str(item.path))
    array = np.asarray(nifti.dataobj)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array[..., None] if array.ndim == 2 else array, nifti.affine, None


def _read_itk(item: Input) -> Stored:
    image = import_simpleitk().ReadImage(str(item.path))
    return _array(image), _affine(image), None


def _read_dicom(item: Input) -> Stored:
    sitk = import_simpleitk()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(item.files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    affine, count = _affine(image), len(item.files)
    modality = reader.GetMetaData(0, "0008|0060").strip() if reader.HasMetaDataKey(0, "0008|0060") else None
    if count > 1 and all(reader.HasMetaDataKey(i, "0020|0032") for i in range(count)):
        # From the slices' own positions, because the reader's geometry assumes that they follow each other evenly and
        # at right angles, which a tilted gantry breaks.
        corners = np.array([reader.GetMetaData(i, "0020|0032").split("\\") for i in range(count)], dtype=float)
        distances = np.linalg.norm(np.diff(corners, axis=0), axis=1)
        middle = np.median(distances)
        if middle == 0 or np.abs(distances - middle).max() > SLICE_TOLERANCE * middle:
            raise ValueError(
                f"found slices {distances.min():g} to {distances.max():g} mm apart, expected an even distance: slices "
                "are missing, or several acquisitions are mixed"
            )
        step = (corners[-1] - corners[0]) / (count - 1)
        affine[:3, 2] = step * (-1, -1, 1)
        affine[:3, 3] = corners[0] * (-1, -1, 1)
    return _array(image), affine, modality


def _array(image: Any) -> np.ndarray:
    """A SimpleITK image as array (i, j, k)."""
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError(f"found {image.GetNumberOfComponentsPerPixel()} values a pixel, expected grey values")
    array = import_simpleitk().GetArrayFromImage(image).T
    return array[..., None] if array.ndim == 2 else array


def _affine(image: Any) -> np.ndarray:
    """NIfTI's affine of a SimpleITK image, whose axes point left and back where NIfTI's point right and front."""
    dimensions = image.GetDimension()
    affine = np.eye(4)
    affine[:dimensions, :dimensions] = np.reshape(image.GetDirection(), (dimensions, dimensions)) * image.GetSpacing()
    affine[:dimensions, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
