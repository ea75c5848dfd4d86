"""Volumes with labels as people keep them: pairs of NIfTI files, the folders of nnU-Net and MSD, npz and h5 files."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
from nibabel.affines import voxel_sizes

from datasets.files import check_numbers, checked_spacing
from datasets.nifti import checked_affine, mm_of_unit, says_orientation
from datasets.synapse import check_keys, check_pair, h5_array, npz_header
from utils.files import reading, some

NIFTI, ARRAYS = (".nii.gz", ".nii"), (".npz", ".npy.h5", ".h5", ".hdf5")
# What tells an image from its label in names such as img0001 and label0001, or scan_gt: not part of the case's name.
LABEL_WORDS, IMAGE_WORDS = ("labels?", "seg", "segmentation", "masks?", "gt"), ("img", "images?")
CHANNEL = r"_(\d{4})$"  # nnU-Net's, behind the name of an image
WHITESPACE = r"\s+"  # which lists can't hold


class Pair(NamedTuple):
    """The files of a case."""

    image: Path
    label: Path  # the same file if it holds both


@dataclass(frozen=True)
class About:
    """What an nnU-Net or MSD data set says of itself in dataset.json."""

    class_names: tuple[str, ...] = ()  # of the labels 1, 2, ...
    channels: tuple[str, ...] = ()  # such as CT


@dataclass
class Stored:
    """A case as its files hold it: arrays (i, j, k), or (k, j, i) transposed so."""

    image: np.ndarray  # float32
    label: np.ndarray
    affine: np.ndarray | None  # (4, 4), from (i, j, k) to mm in NIfTI's directions; None if it is not known
    spacing: np.ndarray | None  # (3,) mm along i, j, k; None if unknown


# ---- finding


def find_pairs(images: Path, labels: Path | None, channel: int | None) -> tuple[dict[str, Pair], list[str]]:
    """({case: its files}, sentences on the files of both folders that are not used).

    Raises FileNotFoundError for a folder that is missing or holds no pair, ValueError for a label without an image and
    for cases that can't be told apart."""
    unused: list[str] = []
    files = volume_files(images, unused)
    if labels is None:
        pairs = {case_name(path): Pair(path, path) for path in files if ending_of(path) in ARRAYS}
        alone = [path for path in files if ending_of(path) in NIFTI]
        if alone:
            raise ValueError(f"--labels: found none for {some(path.name for path in alone)}, expected their folder")
        check_apart(files, pairs, images)
    else:
        same = labels.resolve() == images.resolve()
        label_files = [path for path in files if is_label(path)] if same else volume_files(labels, unused)
        by_case: dict[str, Path] = {case_name(path): path for path in label_files}
        check_apart(label_files, by_case, labels)
        chosen = choose_channel([path for path in files if not (same and is_label(path))], by_case, channel)
        pairs = {case: Pair(path, by_case[case]) for case, path in chosen.items() if case in by_case}
        unused += [f"{path} has no label" for case, path in chosen.items() if case not in by_case]
        lost = sorted(by_case.keys() - chosen.keys())
        if lost:
            raise ValueError(f"{images}: found no image for the labels {some(by_case[case].name for case in lost)}")
    if not pairs:
        expected = ", ".join((*NIFTI, *ARRAYS))
        raise FileNotFoundError(f"{images} holds no image with a label; expected files that end with {expected}")
    return dict(sorted(pairs.items())), unused


def volume_files(folder: Path, unused: list[str]) -> list[Path]:
    """The volumes in a folder and below it; appends a sentence on each other file to `unused`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with volumes")
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and not path.name.startswith(".")]
    unused += [f"{path} is no volume" for path in files if not ending_of(path)]
    return [path for path in files if ending_of(path)]


def ending_of(path: Path) -> str:
    """One of NIFTI or ARRAYS; "" for another file."""
    return next((ending for ending in (*NIFTI, *ARRAYS) if path.name.lower().endswith(ending)), "")


def stem_of(path: Path) -> str:
    return path.name[: len(path.name) - len(ending_of(path))]


def is_label(path: Path) -> bool:
    return without_words(stem_of(path), LABEL_WORDS) != stem_of(path)


def case_name(path: Path) -> str:
    """The name of a file without its ending and the word that says image or label; img0001.nii.gz is 0001."""
    return re.sub(WHITESPACE, "_", without_words(stem_of(path), (*IMAGE_WORDS, *LABEL_WORDS)))


def without_words(stem: str, words: Iterable[str]) -> str:
    word = "|".join(words)
    shorter = re.sub(rf"^({word})(?=[_\-\d])[_-]?|[_-]({word})$", "", stem, flags=re.IGNORECASE)
    return shorter or stem


def choose_channel(images: list[Path], labels: Mapping[str, Path], channel: int | None) -> dict[str, Path]:
    """{case: image}. Of nnU-Net's several files of a case, CASE_0000, CASE_0001, ..., the one that `channel` says."""
    channels: dict[str, dict[int, Path]] = {}
    for path in images:
        name, number = case_name(path), 0
        match = re.search(CHANNEL, name)
        if match and name not in labels and name[: match.start()] in labels:
            name, number = name[: match.start()], int(match[1])
        if number in channels.setdefault(name, {}):
            raise ValueError(f"{channels[name][number]} and {path} are both the image of {name}; expected one")
        channels[name][number] = path
    several = {name: sorted(found) for name, found in channels.items() if len(found) > 1}
    if several and channel is None:
        name, found = next(iter(several.items()))
        raise ValueError(f"--channel: {name} has the channels {some(found)}; the network takes one, say which")
    wanted = channel or 0
    missing = [name for name, found in several.items() if wanted not in found]
    if missing:
        raise ValueError(f"--channel {wanted}: found no such channel of {some(missing)}")
    return {name: found[wanted] if name in several else next(iter(found.values())) for name, found in channels.items()}


def check_apart(files: list[Path], cases: Mapping[str, Any], folder: Path) -> None:
    if len(cases) < len(files):
        names: dict[str, list[str]] = {}
        for path in files:
            names.setdefault(case_name(path), []).append(path.name)
        twice = next(found for found in names.values() if len(found) > 1)
        raise ValueError(f"{folder}: {some(twice)} would be one case; expected names that differ")


def read_about(*folders: Path | None) -> About:
    """The dataset.json in one of the folders; an empty About if there is none.

    Raises ValueError for labels that are no classes of single voxels: nnU-Net's regions, and its label `ignore`."""
    path = next((folder / "dataset.json" for folder in folders if folder and (folder / "dataset.json").is_file()), None)
    if path is None:
        return About()
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    labels = content.get("labels", {}) if isinstance(content, dict) else None
    channels = content.get("channel_names", content.get("modality", {})) if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not isinstance(channels, dict):
        raise ValueError(f'{path}: expected "labels" and "channel_names" or "modality" as in nnU-Net and MSD')
    numbers: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (value, key) if isinstance(value, int) else (key, value)  # nnU-Net 2: {name: number}
        if isinstance(value, list) or "ignore" in (key, value):
            raise ValueError(f"{path}: found the label {key}: {value}; expected one number for each structure")
        if not str(number).isdecimal():
            raise ValueError(f"{path}: found the label {key}: {value}; expected a name and a number")
        numbers[int(number)] = str(name)
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError(f"{path}: found the labels {sorted(numbers)}; expected 0, 1, 2 and so on")
    names = tuple(numbers[number] for number in sorted(numbers))[1:]
    return About(names, tuple(str(channels[key]) for key in sorted(channels)))


# ---- reading


def read_pair(pair: Pair, channel: int | None = None) -> Stored:
    """Raises ValueError that names the file for what is no grey volume with a label for each voxel."""
    if pair.image == pair.label:
        return read_arrays(pair.image)
    image, affine = read_nifti(pair.image, channel)
    label, of_label = read_nifti(pair.label)
    if image.shape != label.shape:
        raise ValueError(f"{pair.image} has the shape {image.shape} but {pair.label} {label.shape}")
    if affine is not None and of_label is not None:
        corners = np.array([(i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)]).T
        corners[:3] *= np.array(image.shape)[:, None] - 1
        apart = np.linalg.norm(((affine - of_label) @ corners)[:3], axis=0).max()
        if apart > voxel_sizes(affine).min() / 2:
            raise ValueError(f"{pair.image} and {pair.label} are up to {apart:.1f} mm apart, by their affines")
    spacing = voxel_sizes(affine) if affine is not None else None
    return Stored(image.astype(np.float32), label, affine, spacing)


def read_nifti(path: Path, channel: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """(array (i, j, k), affine (4, 4) or None where the file does not say how the patient lies)."""
    with reading(path):
        nifti: Any = nibabel.load(path)
        check_numbers(nifti.shape, nifti.get_data_dtype(), str(path))
        shape = nifti.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) == 4 and channel is None:
            raise ValueError(
                f"{path} has the shape {shape}; expected three dimensions, or --channel for one of the last"
            )
        if len(shape) == 4 and not (channel is not None and 0 <= channel < shape[3]):
            raise ValueError(f"--channel {channel}: {path} has the channels 0..{shape[3] - 1}")
        if len(shape) not in (3, 4):
            raise ValueError(f"{path} has the shape {shape}; expected three dimensions")
        # one channel only: all of them may not fit into memory
        array = np.asarray(nifti.dataobj[..., channel]) if len(shape) == 4 else np.asarray(nifti.dataobj)
        affine = affine_of(nifti.header)
    return array.reshape(shape[:3]), affine if affine is None else checked_affine(affine, path)


def affine_of(header: nibabel.Nifti1Header) -> np.ndarray | None:
    """The affine in mm; None if the file does not say how the patient lies."""
    mm = mm_of_unit(header)
    return np.diag([mm, mm, mm, 1.0]) @ header.get_best_affine() if says_orientation(header) else None


def read_arrays(path: Path) -> Stored:
    """`image` and `label` (S, H, W) of an npz or h5 file, with `spacing` in mm along these axes where it is stored."""
    with reading(path):
        if path.suffix.lower() == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                check_keys(arrays, path)
                check_pair(npz_header(arrays, "image"), npz_header(arrays, "label"), 3, path)
                image, label = arrays["image"], arrays["label"]
                spacing = arrays["spacing"] if "spacing" in arrays else None
        else:
            with h5py.File(path) as file:
                check_keys(file, path)
                check_pair(h5_array(file, "image"), h5_array(file, "label"), 3, path)
                image, label = file["image"][:], file["label"][:]
                spacing = file.attrs.get("spacing")
    if spacing is not None:
        spacing = checked_spacing(spacing, path)[::-1]
    return Stored(image.astype(np.float32).transpose(2, 1, 0), label.transpose(2, 1, 0), None, spacing)


def read_geometry(pair: Pair) -> np.ndarray | None:
    """The affine of a case, without reading its values; None if it is unknown."""
    if pair.image == pair.label:
        return None
    with reading(pair.image):
        header: Any = nibabel.load(pair.image).header
        return affine_of(header)
