"""Finding and reading volumes with labels: pairs of NIfTI files, folders of nnU-Net and MSD, npz and h5 files."""

import gzip
import io
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes

from datasets.array_checks import check_numbers, checked_spacing
from datasets.downloads import Download
from datasets.nifti import checked_affine, mm_of_unit, says_orientation
from datasets.synapse import read_h5, read_npz
from utils.files import first_few, list_duplicates, reading

NIFTI, ARRAYS = (".nii.gz", ".nii"), (".npz", ".npy.h5", ".h5", ".hdf5")
# Words in names such as img0001 and label0001, or scan_gt, that are not part of the case's name.
LABEL_WORDS = "labels?|seg|segmentation|masks?|gt"
WORDS = f"img|images?|{LABEL_WORDS}"
CHANNEL = r"(.*)_(\d{4})"  # nnU-Net's name of an image: case, channel
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file


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
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and not path.name.startswith(".")]
    unused += [f"{path} is no volume" for path in files if not ending_of(path)]
    return [path for path in files if ending_of(path)]


def ending_of(path: Path) -> str:
    """Return the one of NIFTI or ARRAYS with which a name ends; "" for another file."""
    return next((ending for ending in (*NIFTI, *ARRAYS) if path.name.lower().endswith(ending)), "")


def is_label(path: Path) -> bool:
    return not path.name.startswith(f"{without_words(path, LABEL_WORDS)}.")


def case_name(path: Path) -> str:
    """Return a file's name without its ending and the word for image or label; img0001.nii.gz is 0001."""
    return re.sub(r"\s+", "_", without_words(path, WORDS))  # lists allow no whitespace


def without_words(path: Path, words: str) -> str:
    stem = path.name[: -len(ending_of(path))]
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


def read_dataset_json(*folders: Path | None) -> tuple[list[str], list[str]]:
    """Return (names of the labels 1, 2, ..., names of the channels such as CT) from the dataset.json of nnU-Net or MSD
    in one of the folders; ([], []) if there is none.

    Raises ValueError for labels that are not classes of single voxels: nnU-Net's regions, and its label `ignore`."""
    path = next((folder / "dataset.json" for folder in folders if folder and (folder / "dataset.json").is_file()), None)
    if path is None:
        return [], []
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    about = content if isinstance(content, dict) else {"labels": None}
    labels, channels = about.get("labels", {}), about.get("channel_names", about.get("modality", {}))
    if not isinstance(labels, dict) or not isinstance(channels, dict):
        raise ValueError(f'{path}: expected "labels" and "channel_names" or "modality" as in nnU-Net and MSD')
    numbers: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (value, key) if isinstance(value, int) else (key, value)  # nnU-Net 2: {name: number}
        if isinstance(value, list) or "ignore" in (key, value) or not str(number).isdecimal():
            raise ValueError(f"{path}: found the label {key}: {value}, expected one number for each structure")
        numbers[int(number)] = str(name)
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError(f"{path}: found the labels {sorted(numbers)}, expected 0, 1, 2 and so on")
    return [numbers[number] for number in range(1, len(numbers))], [str(channels[key]) for key in sorted(channels)]


def read_case(files: CaseFiles, channel: int | None = None) -> RawCase:
    """Read a case. Raises ValueError, naming the file, unless it is a grey volume with a label for each voxel."""
    if isinstance(files.image, Path) and files.image == files.label:
        return read_arrays(files.image)
    image, affine = read_nifti(files.image, channel)
    label, label_affine = read_nifti(files.label)
    if image.shape != label.shape:
        raise ValueError(f"{files.image} has the shape {image.shape} but {files.label} {label.shape}")
    if affine is not None and label_affine is not None:
        corners = [(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in image.shape))]
        apart = np.linalg.norm(((affine - label_affine) @ np.transpose(corners))[:3], axis=0).max()
        if apart > voxel_sizes(affine).min() / 2:
            raise ValueError(f"{files.image} and {files.label} are up to {apart:.1f} mm apart, by their affines")
    return RawCase(image.astype(np.float32), label, affine)


def load_nifti(file: Path | Download) -> Any:
    """Return a nibabel image, whose values are not read yet."""
    if isinstance(file, Path) or file.member is None:
        return nibabel.load(file if isinstance(file, Path) else file.path)
    content = io.BytesIO(file.read_bytes())
    return nibabel.Nifti1Image.from_stream(gzip.open(content) if content.getvalue()[:2] == GZIP else content)


def read_nifti(file: Path | Download, channel: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (array (i, j, k), affine (4, 4), None if the file does not store an orientation)."""
    with reading(str(file)):
        nifti = load_nifti(file)
        check_numbers(nifti.shape, nifti.get_data_dtype(), str(file))
        shape = nifti.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (3, 4) or (len(shape) == 4 and channel is None):
            raise ValueError(f"{file} has the shape {shape}; expected three dimensions, or --channel for a fourth")
        if len(shape) == 4 and channel not in range(shape[3]):
            raise ValueError(f"--channel {channel}: {file} has the channels 0..{shape[3] - 1}")
        # one channel only: all of them may not fit into memory
        array = np.asarray(nifti.dataobj[..., channel] if len(shape) == 4 else nifti.dataobj)
        affine = affine_of(nifti.header)
    return array.reshape(shape[:3]), affine if affine is None else checked_affine(affine, file)


def affine_of(header: nibabel.Nifti1Header) -> np.ndarray | None:
    """Return the affine in mm; None if the file does not store an orientation."""
    mm = mm_of_unit(header)
    return np.diag([mm, mm, mm, 1.0]) @ header.get_best_affine() if says_orientation(header) else None


def read_arrays(path: Path) -> RawCase:
    """Read `image` and `label` (S, H, W) of an npz or h5 file, and their `spacing` (3,) in mm if it is stored."""
    image, label, spacing = read_npz(path, 3) if path.suffix.lower() == ".npz" else read_h5(path)
    spacing = None if spacing is None else checked_spacing(spacing, path)
    return RawCase(image.astype(np.float32).transpose(2, 1, 0), label.transpose(2, 1, 0), None, spacing)


def read_geometry(files: CaseFiles) -> np.ndarray | None:
    """Return the affine of a case, without reading its values; None if it is unknown."""
    if files.image == files.label:
        return None
    with reading(str(files.image)):
        return affine_of(load_nifti(files.image).header)
