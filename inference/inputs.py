"""What a trained network can be given: image files, volumes (see volumes.py), and folders of them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from datasets.isic import EXTENSIONS, read_image
from inference.itk import import_simpleitk
from utils.files import open_image, reading

FORMATS = {"nifti": (".nii.gz", ".nii"), "h5": (".npy.h5", ".h5", ".hdf5"), "itk": (".mha", ".mhd", ".nrrd")}
VOLUME_ENDINGS = {ending: format for format, endings in FORMATS.items() for ending in endings}
EXIF_ORIENTATION = 0x0112


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


def read_picture(item: Input) -> Picture:
    """The Picture of an image file. Raises ValueError for a file of several pages."""
    with open_image(item.path) as file:
        orientation = file.getexif().get(EXIF_ORIENTATION)
    exif = Image.Exif()
    if orientation:
        exif[EXIF_ORIENTATION] = orientation
    with reading(item.path):
        return Picture(read_image(item.path), exif.tobytes() if orientation else b"")
