"""The part of datasets.check that looks at slices and volumes in the layout of Synapse."""

import hashlib
import itertools
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.check.contact_sheet import Cell, save_sheet, spread
from datasets.check.report import Section, in_several, tally
from datasets.intensities import OVERSHOOT
from datasets.synapse import SynapseSlices, SynapseVolumes, case_of_slice, read_list
from datasets.transforms import RandomGenerator
from utils.files import some

PICTURES_OF_VOLUME = 4


@dataclass
class Seen:
    """What one file looks like."""

    name: str
    shape: tuple[int, ...]
    counts: np.ndarray  # pixels of each class
    spacing: str = ""  # of a volume
    slices: dict[str, str] = field(default_factory=dict)  # {SHA-256: title} of the slices that are not constant
    cells: list[Cell] = field(default_factory=list)  # candidates for the contact sheet
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Kind(NamedTuple):
    """What a list names: slices or volumes."""

    files: str
    shown: str  # which pictures its contact sheet has
    open: Callable  # (folder, list_dir, list_name, num_classes) -> data set
    look_at: Callable  # (data set, index) -> Seen
    choose_cells: Callable  # [Seen] -> [Cell]


def check_synapse(folder: Path, class_names: list[str], output: Path, thumbnails: int) -> list[Section]:
    """The report on all listed files of a folder with the classes 1, 2, ... of these names. Writes a contact sheet of
    each list into `output`."""
    num_classes = len(class_names) + 1
    output.mkdir(parents=True, exist_ok=True)
    list_dirs = sorted(path for path in (folder / "lists").glob("*") if (path / "train.txt").is_file())
    of_lists = []
    seen: dict[str, list[Seen]] = {}  # {list: files that can be read}; one that several folders list is read once
    for list_dir in list_dirs:
        of_lists.append(check_overlap(list_dir))
        for list_name in LISTS:
            if (list_dir / list_name).is_file():
                known = {one.name for one in seen.get(list_name, [])}
                found, section = check_files(folder, list_dir, list_name, num_classes, known)
                if found:
                    seen.setdefault(list_name, []).extend(found)
                of_lists.append(section)
    save_sheets(output, seen, class_names, thumbnails)
    return [
        check_lists(folder, list_dirs),
        *of_lists,
        describe_lists(seen),
        describe_classes(seen, class_names),
        *(check_duplicates(list_dir, seen) for list_dir in list_dirs),
    ]


def is_synapse(folder: Path) -> bool:
    return (folder / "train_npz").is_dir() or (folder / "test_vol_h5").is_dir()


# ---- slices and volumes


def open_slices(folder: Path, list_dir: Path, list_name: str, num_classes: int) -> SynapseSlices:
    return SynapseSlices(folder / "train_npz", list_dir, RandomGenerator(32), num_classes)


def open_volumes(folder: Path, list_dir: Path, list_name: str, num_classes: int) -> SynapseVolumes:
    return SynapseVolumes(folder / "test_vol_h5", list_dir, num_classes, list_name)


def look_at_slice(dataset: SynapseSlices, index: int) -> Seen:
    image, label = (tensor.numpy() for tensor in dataset.decode(index))
    seen = look_at_arrays(dataset.names[index], image, label, dataset.num_classes, dataset.files[index])
    seen.slices = titles_by_hash({seen.name: image})
    seen.cells = [Cell(seen.name, lambda: dataset.decode(index))]  # read again: few of many slices are shown
    return seen


def look_at_volume(dataset: SynapseVolumes, index: int) -> Seen:
    image, label, name, spacing = dataset[index]
    seen = look_at_arrays(name, image, label, dataset.num_classes, dataset.files[index])
    seen.spacing = "unknown" if spacing is None else " x ".join(f"{mm:.3g}" for mm in spacing)
    if spacing is None:
        seen.warnings.append("no spacing, so HD95 is in voxels in both protocols")
    titles = [f"{name} slice {i}" for i in range(len(image))]
    seen.slices = titles_by_hash(dict(zip(titles, image, strict=True)))
    with_organs = [i for i in range(len(image)) if label[i].any()] or range(len(image))
    seen.cells = [cell_of(titles[i], image[i], label[i]) for i in spread(with_organs, PICTURES_OF_VOLUME)]
    return seen


def cell_of(title: str, image: np.ndarray, label: np.ndarray) -> Cell:
    """The picture of a slice; copied, so that its volume need not stay in memory."""
    picture = image.copy(), label.copy()
    return Cell(title, lambda: picture)


def look_at_arrays(name: str, image: np.ndarray, label: np.ndarray, num_classes: int, path: Path) -> Seen:
    """What slices and volumes have in common."""
    seen = Seen(name, image.shape, np.bincount(label.ravel(), minlength=num_classes))
    low, high = image.min(), image.max()
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        seen.problems.append(f"{path} holds values from {low:g} to {high:g}; expected 0..1")
    elif low == high:
        seen.warnings.append("constant image")
    return seen


def titles_by_hash(slices: dict[str, np.ndarray]) -> dict[str, str]:
    """{title: slice} as {SHA-256: title}, without constant slices."""
    return {
        hashlib.sha256(np.ascontiguousarray(image).data).hexdigest(): title
        for title, image in slices.items()
        if image.min() < image.max()
    }


def fullest_of_each_case(seen: list[Seen]) -> list[Cell]:
    cases: dict[str, list[Seen]] = {}
    for one in seen:
        cases.setdefault(case_of_slice(one.name), []).append(one)
    fullest = (max(slices, key=lambda one: one.counts[1:].sum()) for slices in cases.values())
    return [cell for one in fullest for cell in one.cells]


def all_cells(seen: list[Seen]) -> list[Cell]:
    return [cell for one in seen for cell in one.cells]


SLICES = Kind("slices", "of each case the slice with most organs", open_slices, look_at_slice, fullest_of_each_case)
VOLUMES = Kind("volumes", "spread over the volumes", open_volumes, look_at_volume, all_cells)
LISTS = {"train.txt": SLICES, "val_vol.txt": VOLUMES, "test_vol.txt": VOLUMES}
REQUIRED = ("train.txt", "test_vol.txt")


# ---- sections of the report


def check_lists(folder: Path, list_dirs: list[Path]) -> Section:
    """What the folder is, and whether there are lists."""
    section = Section([f"{folder}: slices and volumes in the layout of Synapse"])
    if not list_dirs:
        section.problems.append(f"{folder / 'lists'} holds no folder with train.txt and test_vol.txt")
    return section


def check_overlap(list_dir: Path) -> Section:
    """A case must be in one list only."""
    problems = [f"{list_dir} has no {name}" for name in REQUIRED if not (list_dir / name).is_file()]
    names = {name: read_list(list_dir, name) for name in LISTS if (list_dir / name).is_file()}
    cases = {name: dict.fromkeys(map(case_of_slice, lines)) for name, lines in names.items()}
    twice = in_several((case, name) for name, found in cases.items() for case in found)
    if twice:
        problems.append(f"{list_dir}: {len(twice)} cases are in several lists: {some(twice)}")
    return Section(problems=problems)


def check_files(
    folder: Path, list_dir: Path, list_name: str, num_classes: int, known: Container[str]
) -> tuple[list[Seen], Section]:
    """Looks at the files of a list that are not `known`. Returns those that can be read, and what is said of all."""
    kind = LISTS[list_name]
    try:
        dataset = kind.open(folder, list_dir, list_name, num_classes)
    except (ValueError, OSError) as error:
        return [], Section(problems=[str(error)])
    found, section = [], Section()
    for index, name in enumerate(tqdm(dataset.names, f"{list_dir.name}/{list_name}", disable=None)):
        if name in known:
            continue
        try:
            seen = kind.look_at(dataset, index)
        except (ValueError, OSError) as error:
            section.rows.append({"list": list_name, "name": name, "problems": str(error)})
            section.problems.append(str(error))
            continue
        found.append(seen)
        section.rows.append(row_of(seen, list_name))
        section.problems += seen.problems
        section.warnings += [f"{name}: {text}" for text in seen.warnings]
    return found, section


def row_of(seen: Seen, list_name: str) -> dict:
    """The row of files.csv."""
    *slices, rows, columns = seen.shape
    size = {"slices": slices[0] if slices else 1, "rows": rows, "columns": columns, "spacing": seen.spacing}
    shares = {f"class_{c}": float(share) for c, share in enumerate(seen.counts / seen.counts.sum()) if c > 0}
    said = {"problems": "; ".join(seen.problems), "warnings": "; ".join(seen.warnings)}
    return {"list": list_name, "name": seen.name, **size, **shares, **said}


def describe_lists(seen: dict[str, list[Seen]]) -> Section:
    """A line for each list: files, sizes, spacings."""
    section = Section()
    for name, files in seen.items():
        sizes = some(tally("x".join(map(str, one.shape)) for one in files), 3)
        line = f"  {name:13}{len(files):6} {LISTS[name].files}   sizes {sizes}"
        spacings = tally(one.spacing for one in files if one.spacing)[:3]
        section.lines.append(line + (f"   spacing in mm {', '.join(spacings)}" if spacings else ""))
    return section


def describe_classes(seen: dict[str, list[Seen]], class_names: list[str]) -> Section:
    """A table of the organs: share of all voxels, and slices or volumes that hold them, for each list."""
    if not seen:
        return Section()
    section = Section([f"  {'class':16}" + "".join(f"{name + ' voxels':>22}{'in':>8}" for name in seen)])
    for c, organ in enumerate(["background", *class_names]):
        line = f"  {organ:16}"
        for name, files in seen.items():
            counts = np.array([one.counts for one in files])
            holding = (counts[:, c] > 0).sum()
            line += f"{100 * (counts[:, c].sum() / counts.sum()):20.3f} %{holding:8}"
            if holding == 0:
                section.warnings.append(f"{organ} is nowhere in {name}")
        section.lines.append(line)
    return section


def check_duplicates(list_dir: Path, seen: dict[str, list[Seen]]) -> Section:
    """Slices of equal values in two lists of a folder."""
    section = Section()
    titles = {}  # {list: {SHA-256: title}}
    for list_name, files in seen.items():
        slices = {one.name: one.slices for one in files}
        names = read_list(list_dir, list_name) if (list_dir / list_name).is_file() else []
        titles[list_name] = {key: title for name in names for key, title in slices.get(name, {}).items()}
    for (one, of_one), (other, of_other) in itertools.combinations(titles.items(), 2):
        common = sorted(of_one.keys() & of_other.keys(), key=lambda key: of_one[key])
        if common:
            names = some(f"{of_one[key]} = {of_other[key]}" for key in common)
            section.problems.append(
                f"{list_dir}: {len(common)} slices with equal values are in {one} and {other}: {names}"
            )
    return section


# ---- pictures


def save_sheets(output: Path, seen: dict[str, list[Seen]], class_names: list[str], thumbnails: int) -> None:
    for name, files in seen.items():
        kind = LISTS[name]
        cells = spread(kind.choose_cells(files), thumbnails)
        title = f"{name}, {kind.shown}: {len(cells)} slices"
        save_sheet(output / f"{name.removesuffix('.txt')}.png", title, cells, len(class_names) + 1, class_names)
