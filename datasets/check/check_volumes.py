"""The part of datasets.check for slices and volumes in the layout of Synapse."""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.check.contact_sheet import Cell, spread
from datasets.check.data_report import DataReport, Inspection, collected, command_line, repeated_in
from datasets.classes import preparation, prepared_names
from datasets.formats.arrays import read_h5
from datasets.formats.reader_process import read_apart
from datasets.intensities import OVERSHOOT
from datasets.synapse import ORGANS, SynapseSlices, SynapseVolumes, case_of_slice, cases_of_slices, read_list
from datasets.transforms import RandomGenerator
from utils.files import first_few, printable

LISTS = ("train.txt", "val_vol.txt", "test_vol.txt")
REQUIRED = ("train.txt", "test_vol.txt")
PICTURES_OF_VOLUME = 4


def check_volumes(folder: Path, num_classes: int | None) -> DataReport:
    """Inspect all listed files of a folder."""
    class_names = class_names_of(folder, num_classes)
    number, ignored = len(class_names) + 1, preparation(folder)[1].get("ignore_label")
    report = DataReport([f"{folder}: slices and volumes in the layout of Synapse"])
    list_dirs = sorted(path for path in (folder / "lists").glob("*") if (path / "train.txt").is_file())
    if not list_dirs:
        report.problems.append(f"{folder / 'lists'} holds no folder with {' and '.join(REQUIRED)}")
    found: dict[tuple[str, str], Inspection] = {}  # {(list, name): inspection}; a file in several folders' lists once
    for list_dir in list_dirs:
        listed = {name: read_list(list_dir, name) for name in LISTS if (list_dir / name).is_file()}
        check_overlap(list_dir, listed, report)
        for list_name in listed:
            with collected(report.problems):
                dataset: SynapseSlices | SynapseVolumes = (
                    SynapseSlices(folder / "train_npz", list_dir, RandomGenerator(32), number, ignore_label=ignored)
                    if list_name == "train.txt"
                    else SynapseVolumes(folder / "test_vol_h5", list_dir, number, list_name, ignored, read_h5_apart)
                )
                title = printable(f"{list_dir.name}/{list_name}")
                for index, name in enumerate(tqdm(dataset.names, title, disable=None)):
                    if (list_name, name) not in found:
                        found[list_name, name] = inspect_file(dataset, index, list_name)
        check_equal_slices(list_dir, listed, found, report)
    keep_fullest([one for one in found.values() if one.part == "train.txt"])
    report.add(list(found.values()), class_names)
    slices = sum(list_name == "train.txt" for list_name, _ in found)
    report.lines += ["", f"Train with: {training_command(folder, num_classes, slices, list_dirs)}"]
    return report


def training_command(folder: Path, num_classes: int | None, slices: int, list_dirs: Sequence[Path]) -> str:
    """Return a command that trains on all `slices` of a folder, which has the organs of Synapse unless it says so."""
    flags = ["--num-classes", str(num_classes)] if num_classes is not None else []
    holdout = any((list_dir / "val_vol.txt").is_file() for list_dir in list_dirs)
    flags += ["--protocol", "holdout"] if holdout else []
    flags += ["--folds", "5", "--fold", "all"] if any(map(is_pool, list_dirs)) else []
    organs = "intensities" not in preparation(folder)[1] and num_classes in (None, len(ORGANS) + 1)
    return command_line("python train_synapse.py", folder, flags, slices, "synapse" if organs else None)


def is_pool(list_dir: Path) -> bool:
    """Return whether all cases of train.txt are volumes too and there is no other list: --folds divides them."""
    if any((list_dir / name).is_file() for name in LISTS[1:]) or not (list_dir / LISTS[0]).is_file():
        return False
    cases, volumes = cases_of_slices(read_list(list_dir, LISTS[0])), list_dir.parents[1] / "test_vol_h5"
    return all((volumes / f"{case}.npy.h5").is_file() for case in cases)


def read_h5_apart(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Call `read_h5` in the reader process, because the files to check may be damaged."""
    return read_apart([path], read_h5, path)


def class_names_of(folder: Path, num_classes: int | None) -> Sequence[str]:
    """Return the names of the classes 1, 2, ... from preparation.json, or for `num_classes` (default: the organs)."""
    path, record = preparation(folder)
    prepared = prepared_names(path, record)
    names = prepared or ORGANS
    if num_classes in (None, len(names) + 1):
        return names
    if prepared:
        raise ValueError(f"--num-classes: found {num_classes}, expected {len(names) + 1} as in {path}")
    return [f"class {c}" for c in range(1, num_classes)]


def check_overlap(list_dir: Path, listed: dict[str, list[str]], report: DataReport) -> None:
    """Report missing lists, and cases in more than one list."""
    pool = is_pool(list_dir)
    report.problems += [f"{list_dir} has no {name}" for name in REQUIRED if name not in listed and not pool]
    cases = {name: dict.fromkeys(map(case_of_slice, lines)) for name, lines in listed.items()}
    twice = repeated_in((case, name) for name, of_list in cases.items() for case in of_list)
    if twice:
        report.problems.append(f"{list_dir}: {len(twice)} cases are in several lists: {first_few(twice)}")


def inspect_file(dataset: SynapseSlices | SynapseVolumes, index: int, list_name: str) -> Inspection:
    """Read a file as training does."""
    name, path = dataset.names[index], dataset.files[index]
    found, titles = Inspection(list_name, name), [name]
    with collected(found.problems):
        if isinstance(dataset, SynapseVolumes):
            image, label, _, spacing = dataset[index]
            titles = [f"{name} slice {number}" for number in range(len(image))]
            found.columns["spacing"] = "unknown" if spacing is None else " x ".join(f"{mm:.3g}" for mm in spacing)
            if spacing is None:
                found.warnings.append("no spacing, so HD95 is in voxels in both protocols")
        else:
            image, label = (tensor.numpy()[None] for tensor in dataset.decode(index))
    if found.problems:
        return found
    found.columns["size"] = "x".join(map(str, image.shape))
    found.counts = np.bincount(label.ravel(), minlength=dataset.num_classes)
    low, high = image.min(), image.max()
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        found.problems.append(f"{path} holds values from {low:g} to {high:g}; expected 0..1")
    elif low == high:
        found.warnings.append("constant image")
    if isinstance(dataset, SynapseSlices):
        found.cells = [Cell(name, lambda: dataset.decode(index))]  # few of many slices are shown
    else:
        with_classes = [number for number in range(len(image)) if label[number].any()] or range(len(image))
        for number in spread(with_classes, PICTURES_OF_VOLUME):
            picture = image[number].copy(), label[number].copy()  # so that the volume need not stay in memory
            found.cells.append(Cell(titles[number], functools.partial(tuple, picture)))
    for pixels, title in zip(image, titles, strict=True):
        if pixels.min() < pixels.max():
            found.slices[hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()] = title
    return found


def keep_fullest(slices: list[Inspection]) -> None:
    """Keep the picture of one slice of each case: the one with most pixels of the classes."""
    counted = sorted((one.counts[1:].sum(), i) for i, one in enumerate(slices) if one.counts is not None)
    fullest = {case_of_slice(slices[i].name): slices[i] for _, i in counted}
    for one in slices:
        if one is not fullest.get(case_of_slice(one.name)):
            one.cells = []


def check_equal_slices(
    list_dir: Path, listed: dict[str, list[str]], found: dict[tuple[str, str], Inspection], report: DataReport
) -> None:
    """Report slices with equal values in two lists of a folder."""
    titles: dict[str, dict[str, str]] = {name: {} for name in listed}
    for list_name, names in listed.items():
        for name in names:
            titles[list_name] |= found[list_name, name].slices if (list_name, name) in found else {}
    for one, other in itertools.combinations(titles, 2):
        pairs = [f"{title} = {titles[other][d]}" for d, title in titles[one].items() if d in titles[other]]
        if pairs:
            counted = f"{len(pairs)} slices with equal values are in {one} and {other}"
            report.problems.append(f"{list_dir}: {counted}: {first_few(pairs)}")
