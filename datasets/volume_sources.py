"""Finding and reading volumes with labels: pairs of NIfTI files, folders of nnU-Net and MSD, npz and h5 files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.array_checks import checked_spacing
from datasets.downloads import Download
from datasets.formats.arrays import read_h5, read_npz
from datasets.formats.reader_process import read_apart
from datasets.nifti import check_same_place, read_affine, read_nifti
from utils.files import files_below, first_few, list_duplicates, read_json

NIFTI, ARRAYS = (".nii.gz", ".nii"), (".npz", ".npy.h5", ".h5", ".hdf5")
# Words in names such as img0001 and label0001, or scan_gt, that are not part of the case's name.
LABEL_WORDS = "labels?|labelmaps?|lbl|d?seg|segmentations?|masks?|msk|gt|ground_?truth|truth|annotations?"
WORDS = f"img|images?|{LABEL_WORDS}"
CHANNEL = r"(.*)_(\d{4})"  # nnU-Net's name of an image: case, channel


class CaseFiles(NamedTuple):
    """The files of a case; both are the same npz or h5 file if it holds image and label."""

    image: Path | Download
    label: Path | Download


class RawCase(NamedTuple):
    """A case as its files hold it: arrays (i, j, k); those of npz and h5 files, (k, j, i), are transposed."""

    image: np.ndarray  # float32
    label: np.ndarray
    affine: np.ndarray | None  # (4, 4), from (i, j, k) to mm in NIfTI's directions; None if unknown
    spacing: np.ndarray | None = None  # (3,) mm along k, j, i, of a file without affine; None if unknown
    note: str = ""  # of what is doubtful about its files
    label_slope: float = 1.0  # by which the stored labels were multiplied


def find_cases(images: Path, labels: Path | None, channel: int | None) -> tuple[dict[str, CaseFiles], list[str]]:
    """Return ({case: its files}, sentences about the files that are not used).

    Raises FileNotFoundError for a folder that is missing or holds no pair, ValueError for a label without an image and
    for files that would be the same case."""
    unused: list[str] = []
    files = volume_files(images, unused)
    if labels is None:
        alone = [path.name for path in files if ending_of(path) in NIFTI]
        if alone:
            raise ValueError(f"--labels: found none for {first_few(alone)}, expected their folder")
        check_distinct(files, images)
        cases = {case_name(path): CaseFiles(path, path) for path in files}
    else:
        if labels.resolve() == images.resolve():
            label_files = [path for path in files if is_label(path)]
            files = [path for path in files if not is_label(path)]
        else:
            label_files = volume_files(labels, unused)
        by_case = {case_name(path): path for path in label_files}
        check_distinct(label_files, labels)
        chosen = choose_channel(files, by_case, channel)
        cases = {case: CaseFiles(path, by_case[case]) for case, path in chosen.items() if case in by_case}
        unused += [f"{path} has no label" for case, path in chosen.items() if case not in by_case]
        missing = [by_case[case].name for case in sorted(by_case.keys() - chosen.keys())]
        if missing:
            raise ValueError(f"{images}: found no image for the labels {first_few(missing)}")
    if not cases:
        expected = ", ".join((*NIFTI, *ARRAYS))
        raise FileNotFoundError(f"{images} holds no image with a label; expected files that end with {expected}")
    return dict(sorted(cases.items())), unused


def volume_files(folder: Path, unused: list[str]) -> list[Path]:
    """Return the volumes in a folder and its subfolders; append a sentence about each other file to `unused`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with volumes")
    files = [path for path in files_below(folder) if not path.name.startswith(".")]
    volumes = [path for path in files if ending_of(path) and path.is_file()]
    unused += [f"{path} is no volume" for path in sorted({*files} - {*volumes})]
    return volumes


def ending_of(path: Path) -> str:
    """Return the one of NIFTI or ARRAYS with which a name ends; "" for another file."""
    return next((ending for ending in (*NIFTI, *ARRAYS) if path.name.lower().endswith(ending)), "")


def stem_of(path: Path) -> str:
    """Return a file's name without its ending."""
    return path.name[: -len(ending_of(path))] if ending_of(path) else path.stem


def is_label(path: Path) -> bool:
    """Return whether a file holds labels by its name: label0001, scan_gt, scan.seg, liver-seg001, segmentation."""
    pattern = rf"({LABEL_WORDS})([_\-\d].*)?|.*[_.\-]({LABEL_WORDS})[_-]?\d*"
    return re.fullmatch(pattern, stem_of(path), flags=re.IGNORECASE) is not None


def case_name(path: Path) -> str:
    """Return a file's name without its ending and the word for image or label; img0001.nii.gz is 0001."""
    return re.sub(r"\s+", "_", without_words(path, WORDS))  # lists allow no whitespace


def without_words(path: Path, words: str) -> str:
    stem = stem_of(path)
    return re.sub(rf"^({words})(?=[_\-\d])[_-]?|[_-]({words})$", "", stem, flags=re.IGNORECASE) or stem


def choose_channel(images: list[Path], labels: Mapping[str, Path], channel: int | None) -> dict[str, Path]:
    """Return {case: image}; `channel` selects one of nnU-Net's files of a case, CASE_0000, CASE_0001, ..."""
    channels: dict[str, dict[int, Path]] = {}
    for path in images:
        name, number = case_name(path), 0
        match = re.fullmatch(CHANNEL, name)
        if match and name not in labels and match[1] in labels:
            name, number = match[1], int(match[2])
        other = channels.setdefault(name, {}).setdefault(number, path)
        if other is not path:
            raise ValueError(f"{other} and {path} are both the image of {name}; expected one")
    chosen, missing = {}, []
    for name, found in channels.items():
        if len(found) > 1 and channel is None:
            raise ValueError(f"--channel: {name} has the channels {first_few(sorted(found))}, expected one of them")
        if len(found) > 1 and channel not in found:
            missing.append(name)
        chosen[name] = found.get(channel or 0) or next(iter(found.values()))
    if missing:
        raise ValueError(f"--channel {channel}: found no such channel of {first_few(missing)}")
    return chosen


def check_distinct(files: list[Path], folder: Path) -> None:
    """Raise ValueError if several files have the same case name."""
    for case in list_duplicates(map(case_name, files)):
        names = first_few(path.name for path in files if case_name(path) == case)
        raise ValueError(f"{folder}: {names} would be one case, {case}; expected different names")


def read_dataset_json(*folders: Path | None) -> tuple[dict[int, str], dict[int, str], int | None]:
    """Return ({label: name of its structure}, {channel: its name, such as CT}, nnU-Net's label `ignore`) from the
    dataset.json of nnU-Net or MSD in one of the folders; ({}, {}, None) if there is none.

    Raises ValueError for labels that are not classes of single voxels: nnU-Net's regions."""
    path = next((folder / "dataset.json" for folder in folders if folder and (folder / "dataset.json").is_file()), None)
    if path is None:
        return {}, {}, None
    expected = '"labels" and "channel_names" or "modality" as in nnU-Net and MSD'
    about = read_json(path, expected)
    labels, channels = about.get("labels", {}), about.get("channel_names", about.get("modality", {}))
    if not isinstance(labels, dict) or not isinstance(channels, dict):
        raise ValueError(f"{path}: expected {expected}")
    numbers: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (value, key) if isinstance(value, int) else (key, value)  # nnU-Net 2: {name: number}
        if isinstance(value, list) or not str(number).isdecimal() or int(number) in numbers:
            raise ValueError(f"{path}: found the label {key}: {value}, expected one number for each structure")
        numbers[int(number)] = str(name)
    ignored = max(numbers) if numbers and numbers[max(numbers)] == "ignore" else None  # the last one in nnU-Net
    names = {number: name for number, name in numbers.items() if number not in (0, ignored)}
    if numbers and not (0 in numbers and 1 <= len(names) <= 254):
        raise ValueError(f"{path}: found the labels {sorted(numbers)}, expected 0 and those of 1 to 254 structures")
    in_order = sorted(channels, key=lambda key: (len(key), key))  # "2" before "10"
    return names, dict(enumerate(str(channels[key]) for key in in_order)), ignored


def read_case(files: CaseFiles, channel: int | None = None) -> RawCase:
    """Read a case in the reader process.

    Raises ValueError, naming the file, unless it is a grey volume with a label for each voxel."""
    return read_apart([file if isinstance(file, Path) else file.path for file in files], read_pair, files, channel)


def read_pair(files: CaseFiles, channel: int | None = None) -> RawCase:
    """Read a case in this process, see `read_case`."""
    if isinstance(files.image, Path) and files.image == files.label:
        return read_arrays(files.image)
    stored, stored_label = read_nifti(files.image, channel), read_nifti(files.label)
    affine, label_affine = (one.affine if one.placed else None for one in (stored, stored_label))
    image, label = stored.array, stored_label.array
    if image.shape != label.shape:
        raise ValueError(f"{files.image} has the shape {image.shape} but {files.label} {label.shape}")
    if affine is not None and label_affine is not None:
        check_same_place((affine, label_affine), image.shape, files)
    same = (affine is None) == (label_affine is None)
    note = "" if same else f"{files.image} or {files.label} has no orientation: their voxels are paired as stored"
    return RawCase(image.astype(np.float32), label, affine, note=note, label_slope=stored_label.slope)


def read_arrays(path: Path) -> RawCase:
    """Read `image` and `label` (S, H, W) of an npz or h5 file, and their `spacing` (3,) in mm if it is stored."""
    image, label, spacing = read_npz(path, 3) if path.suffix.lower() == ".npz" else read_h5(path)
    spacing = None if spacing is None else checked_spacing(spacing, path)
    return RawCase(image.astype(np.float32).transpose(2, 1, 0), label.transpose(2, 1, 0), None, spacing)


def read_geometry(files: CaseFiles) -> np.ndarray | None:
    """Return the affine of a case, without reading its values; None if it is unknown."""
    if files.image == files.label:
        return None
    path = files.image if isinstance(files.image, Path) else files.image.path
    return read_apart([path], read_affine, files.image)
