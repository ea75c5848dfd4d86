"""What a trained network can be given: image files, CT volumes (NIfTI, DICOM, h5, MetaImage, NRRD), folders of them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
import torch
from nibabel.orientations import aff2axcodes
from PIL import Image

from datasets.files import check_numbers
from datasets.isic import EXTENSIONS, read_image
from datasets.nifti import affine_of_slices, from_slices, to_slices
from datasets.synapse import ORIENTATION, h5_array
from utils.files import open_image, reading

FORMATS = {"nifti": (".nii.gz", ".nii"), "h5": (".npy.h5", ".h5", ".hdf5"), "itk": (".mha", ".mhd", ".nrrd")}
VOLUME_ENDINGS = {ending: format for format, endings in FORMATS.items() for ending in endings}
EXIF_ORIENTATION = 0x0112
SLICE_TOLERANCE = 0.02  # of the distance between two slices, by which the others may differ
Stored = tuple[np.ndarray, np.ndarray, str | None]  # array (i, j, k), affine (4, 4), modality of a DICOM series


@dataclass(frozen=True)
class Input:
    """One image or volume: a file, or the files of a DICOM series."""

    path: Path  # the file; of a series the folder, and its name if there are several in the folder
    format: str  # image, nifti, h5, itk, dicom
    files: tuple[str, ...] = ()  # of a DICOM series, in the order of its slices

    @property
    def is_volume(self) -> bool:
        return self.format != "image"

    @property
    def stem(self) -> str:
        """The name of the file without its ending, or of the series."""
        return without_ending(self.path) if self.format != "dicom" or self.path.is_file() else self.path.name


def without_ending(path: Path) -> str:
    """A file's name without .nii.gz, .npy.h5 or its last suffix."""
    ending = next((e for e in VOLUME_ENDINGS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


# ---- finding


def find_inputs(paths: Iterable[str | os.PathLike[str]]) -> list[Input]:
    """The inputs that files and folders stand for, in order and each once; folders are searched with all below them.

    Raises FileNotFoundError, ValueError for a file of an unknown kind and a folder without any of a known one."""
    found: dict[tuple[Path, tuple[str, ...]], Input] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inputs = [i for folder in (path, *_folders_below(path)) for i in _inputs_of_folder(folder)]
            if not inputs:
                raise ValueError(f"{path} holds no input; expected {_known()} or DICOM files")
        elif path.is_file():
            inputs = [_input_of_file(path)]
        else:
            raise FileNotFoundError(f"{path}: there is no such file or folder")
        for item in inputs:
            found.setdefault((item.path.resolve(), item.files), item)
    return list(found.values())


def _known() -> str:
    return ", ".join((*EXTENSIONS, *VOLUME_ENDINGS))


def _folders_below(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_dir() and not _hidden(f.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _format(path: Path) -> str | None:
    """`Input.format` of a file, None if it is of an unknown kind."""
    ending = next((e for e in VOLUME_ENDINGS if path.name.lower().endswith(e)), None)
    if ending:
        return VOLUME_ENDINGS[ending]
    if path.suffix.lower() in EXTENSIONS:
        return "image"
    return "dicom" if _is_dicom(path) else None


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _input_of_file(path: Path) -> Input:
    kind = _format(path)
    if kind is None:
        raise ValueError(f"{path} is of an unknown kind; expected {_known()} or DICOM")
    return Input(path, kind, (str(path),) if kind == "dicom" else ())


def _inputs_of_folder(folder: Path) -> list[Input]:
    """The inputs directly in a folder."""
    formats = {p: _format(p) for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")}
    inputs = [Input(path, kind) for path, kind in formats.items() if kind is not None and kind != "dicom"]
    if "dicom" in formats.values():
        series = import_simpleitk().ImageSeriesReader
        names = series.GetGDCMSeriesIDs(str(folder))
        for name in names:
            path = folder / name if len(names) > 1 else folder
            inputs.append(Input(path, "dicom", series.GetGDCMSeriesFileNames(str(folder), name)))
    return inputs


def unique_names(inputs: Sequence[Input]) -> list[str]:
    """A name for the outputs of each input: its stem; where several share one (also if only the case differs), as much
    of the path as tells them apart."""
    names, depth = [i.stem for i in inputs], 0
    while True:
        groups: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            groups.setdefault(name.casefold(), []).append(number)
        shared = [number for group in groups.values() if len(group) > 1 for number in group]
        if not shared:
            return names
        depth += 1
        for number in shared:
            parts = inputs[number].path.resolve().parts[-depth:]
            deepest = depth > len(inputs[number].path.resolve().parts)
            names[number] = "_".join((*parts, str(number)) if deepest else parts).strip("/\\")


# ---- reading


@dataclass
class Picture:
    """An image as training reads it: uint8 (3, H, W), in the order of the stored pixels."""

    pixels: torch.Tensor
    exif: bytes = b""  # how viewers turn the picture, to be passed on to pictures in its geometry


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


def read_picture(item: Input) -> Picture:
    """The Picture of an image file. Raises ValueError for a file of several pages."""
    with open_image(item.path) as file:
        orientation = file.getexif().get(EXIF_ORIENTATION)
    exif = Image.Exif()
    if orientation:
        exif[EXIF_ORIENTATION] = orientation
    with reading(item.path):
        return Picture(read_image(item.path), exif.tobytes() if orientation else b"")


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


def import_simpleitk() -> ModuleType:
    """SimpleITK. Raises ValueError with the command that installs it."""
    try:
        import SimpleITK
    except ModuleNotFoundError as error:
        raise ValueError(
            "DICOM, MetaImage and NRRD files need SimpleITK; pip install -r requirements-extra.txt"
        ) from error
    return SimpleITK
