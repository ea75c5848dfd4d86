"""Writing volumes with labels as training reads them: train_npz with a file per slice, test_vol_h5, cases.csv."""

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from datasets.nifti import STORED, own_orientation, tilt, to_slices, turned_affine
from datasets.preparation_record import sha256
from datasets.volume_sources import CaseFiles, RawCase
from utils.files import first_few, read_rows, write_atomically, write_rows

log = logging.getLogger("vmunet")

ROUNDING = 1e-3  # how far a label may be from a whole number


class TrainingCase(NamedTuple):
    """A volume as training reads it. Arrays are (S, H, W): slices, rows, columns."""

    image: np.ndarray  # float32, 0..1
    label: np.ndarray
    spacing: np.ndarray | None  # (3,) mm between slices, rows, columns; None if unknown
    affine: np.ndarray | None  # (4, 4), from (column, row, slice) to the scanner's mm; None if unknown
    orientation: str | None  # directions of columns, rows and slices in the patient, such as LPS; None if unknown


class Task(NamedTuple):
    """A case to prepare, and the files to write for it."""

    name: str
    files: CaseFiles
    slices: Sequence[int] | None  # numbers of the slices to train on; None: all
    volume: bool  # whether to write the whole volume


@dataclass(frozen=True)
class Conversion:
    """How a RawCase becomes a TrainingCase."""

    scale: Callable[[np.ndarray, object], np.ndarray]  # (values, name of the file) -> float32, 0..1
    classes: Mapping[int, int]  # {label in the files: class}
    orientation: str  # directions of columns, rows and slices, or STORED
    label_type: npt.DTypeLike = np.uint8
    largest_tilt: float | None = None  # degrees that an axis may differ from the patient's

    def __call__(self, raw: RawCase, files: CaseFiles) -> TrainingCase:
        """Raises ValueError that names the file with an unexpected label, value or orientation."""
        orientation, affine = self.orientation, raw.affine
        if affine is None and orientation != STORED:
            raise ValueError(f"{files.image} does not store an orientation, expected one for slices {orientation}")
        if affine is not None and self.largest_tilt is not None and tilt(affine) > self.largest_tilt:
            found, expected = f"{tilt(affine):.1f} degrees off the patient's", f"at most {self.largest_tilt:g}"
            raise ValueError(f"{files.image} is oblique: an axis is {found}, expected {expected}; resample it first")
        label, image = self.to_classes(raw.label, files.label), self.scale(raw.image, files.image)
        if affine is None:
            return TrainingCase(image.transpose(2, 1, 0), label.transpose(2, 1, 0), raw.spacing, None, None)
        codes = own_orientation(affine) if orientation == STORED else orientation
        slices, spacing = to_slices(image, affine, codes)
        turned = turned_affine(affine, codes, image.shape)
        return TrainingCase(slices, to_slices(label, affine, codes)[0], spacing, turned, codes)

    def to_classes(self, label: np.ndarray, what: object) -> np.ndarray:
        label, known = whole_numbers(label, what), np.array(sorted(self.classes))
        position = np.clip(np.searchsorted(known, label), 0, len(known) - 1)
        unknown = np.unique(label[known[position] != label])
        if len(unknown):
            raise ValueError(f"{what} holds the label {first_few(unknown)}; expected one of {first_few(known, 20)}")
        return np.array([self.classes[number] for number in known], dtype=self.label_type)[position]


def whole_numbers(label: np.ndarray, what: object) -> np.ndarray:
    """Return labels as int64; raise ValueError unless they are whole numbers, up to the error of a NIfTI's slope."""
    whole = label if label.dtype.kind in "biu" else np.round(label)
    other = label[whole != label]
    if len(other):
        if not np.abs(other - np.round(other)).max() <= ROUNDING:
            raise ValueError(f"{what} holds the label {other[0]:.9g}, expected whole numbers")
        log.info("%s: labels such as %.9g are rounded", what, other[0])
    return whole.astype(np.int64)


def write_cases(
    out: Path,
    tasks: Iterable[Task],
    read: Callable[[CaseFiles], RawCase],
    convert: Conversion,
    describe: Callable[[Task, RawCase, TrainingCase], dict[str, Any]],
) -> None:
    """Write all cases that are not complete yet, and cases.csv after each.

    describe: returns the row of cases.csv, to which the hashes of the source files are added."""
    rows = {row["case"]: row for row in read_rows(out / "cases.csv", "case")}
    for task in tqdm(list(tasks), "cases", unit=" cases", disable=None):
        row = rows.get(task.name, {})
        digests = {f"{kind}_sha256": sha256(file.read_bytes()) for kind, file in task.files._asdict().items()}
        numbers = range(int(row.get("slices", 0))) if task.slices is None else task.slices
        files = [*slice_files(out, task.name, numbers), *[volume_file(out, task.name)] * task.volume]
        if digests.items() <= row.items() and files and all(file.is_file() for file in files):
            continue
        raw = read(task.files)
        case = convert(raw, task.files)
        write_slices(case, out, task)
        if task.volume:
            write_volume(case, volume_file(out, task.name))
        rows[task.name] = describe(task, raw, case) | digests
        write_rows(out / "cases.csv", [rows[name] for name in sorted(rows)])


def size_columns(case: TrainingCase) -> dict[str, Any]:
    """Return the columns of cases.csv with size and spacing."""
    spacing = ["", "", ""] if case.spacing is None else [round(float(mm), 6) for mm in case.spacing]
    names = ("slices", "rows", "columns", "slice_mm", "row_mm", "column_mm")
    return dict(zip(names, (*case.image.shape, *spacing), strict=True))


def present_classes(case: TrainingCase, class_names: Sequence[str]) -> str:
    """Return the names of the classes 1, 2, ... that a case holds."""
    return "; ".join(name for number, name in enumerate(class_names, 1) if (case.label == number).any())


def slice_files(out: Path, name: str, numbers: Sequence[int]) -> list[Path]:
    """Return the paths of a case's slices."""
    return [out / "train_npz" / f"{name}_slice{number:03d}.npz" for number in numbers]


def volume_file(out: Path, name: str) -> Path:
    """Return the path of a whole case."""
    return out / "test_vol_h5" / f"{name}.npy.h5"


def write_slices(case: TrainingCase, out: Path, task: Task) -> None:
    """Write the slices of a task, each in one step. Raises ValueError if the case has fewer than it lists."""
    count = len(case.image)
    numbers = range(count) if task.slices is None else task.slices
    if max(numbers, default=-1) >= count:
        listed = f"train.txt lists slice {max(numbers):03d} of {task.name}"
        raise ValueError(f"{task.files.image} has {count} slices, but {listed}")
    if 0 < len(numbers) < count:
        log.warning("%s has %d slices, of which train.txt lists %d", task.name, count, len(numbers))
    for file, number in zip(slice_files(out, task.name, numbers), numbers, strict=True):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, image=case.image[number], label=case.label[number])
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())


def write_volume(case: TrainingCase, path: Path) -> None:
    """Write a whole case in one step, with its geometry as h5 attributes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for kind, data in (("image", case.image), ("label", case.label)):
            file.create_dataset(kind, data=data, compression="gzip", chunks=(1, *data.shape[1:]))
        known = {"spacing": case.spacing, "affine": case.affine, "orientation": case.orientation}
        file.attrs.update({name: value for name, value in known.items() if value is not None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def write_list(path: Path, lines: Iterable[str]) -> None:
    """Write a list file, one name a line, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
