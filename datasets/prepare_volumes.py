"""Own volumes with labels as training reads them: OUT/{train_npz,test_vol_h5,lists}, the layout of Synapse.

    python -m datasets.prepare_volumes --images IMAGES --labels LABELS --out data/NAME
    python -m datasets.prepare_volumes --images Dataset027_ACDC --out data/NAME   # nnU-Net, MSD: dataset.json, imagesTr
    python -m datasets.prepare_volumes --images FOLDER_OF_NPZ --out data/NAME     # files with image and label
    python train_synapse.py --dataset own --data-path data/NAME --protocol holdout

Pairs are NIfTI files of one name, but for words such as img and label, _gt or _0000. What is done to a volume:

  slices        across the axis of the thickest voxels, turned as radiologists look at it (axial, coronal, sagittal); as
                stored where the scans are oblique or the files don't say how the patient lies; nothing is resampled
  intensities   CT (in Hounsfield units) by --window; others from the --percentiles of each volume; to 0..1, float32
  labels        become 0, 1, 2, ... in the order of their numbers; names from dataset.json or --class-names
  split         by patient, drawn with --seed; or as the lists of cases in --lists say

OUT/preparation.json keeps all of it, training and prediction take it from there; OUT/cases.csv says what each case was
made of. To complete a run that was stopped or killed, repeat the command.
"""

import dataclasses
import logging
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from tqdm import tqdm

from datasets.intensities import HU_WINDOW, Scaling
from datasets.nifti import STORED, own_orientation, tilt, to_slices
from datasets.prepared import claim_folder, sha256
from datasets.synapse import read_list
from datasets.volume_files import Case, slice_files, volume_file, write_slices, write_volume
from datasets.volume_sources import About, Pair, Stored, find_pairs, read_about, read_geometry, read_pair
from utils.files import check_name, read_rows, some, write_atomically, write_rows
from utils.runs.command_line import run_command

log = logging.getLogger("vmunet")

LISTS = "list_volumes"  # the folder of the three lists
PARTS = {"train": "train.txt", "val": "val_vol.txt", "test": "test_vol.txt"}
PLANES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}  # where columns, rows and slices point to
PLANE_OF_AXIS = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}
THICKER = 1.2  # from this ratio on, an axis has thicker voxels than another
OBLIQUE = 20.0  # degrees; from here on the names of the patient's directions say little about an axis
AIR = -500  # Hounsfield units; what is below is air, and what has such values is a CT


@dataclass(kw_only=True)
class PrepareVolumes:
    images: str  # folder of volumes, searched with all below it; or of an nnU-Net or MSD data set
    labels: str | None = None  # folder of labels, may be the same; none: labelsTr, or in the files (npz, h5)
    out: str  # folder to write
    class_names: tuple[str, ...] = ()  # of the labels in the order of their numbers, without background
    channel: int | None = None  # of images with several
    intensities: Literal["auto", "window", "percentiles"] = "auto"  # auto: window for CT, percentiles for others
    window: tuple[float, float] = HU_WINDOW  # values that become 0 and 1
    percentiles: tuple[float, float] = (0.5, 99.5)  # of the values of a volume: what becomes 0 and 1
    orientation: str = "auto"  # where columns, rows and slices point to, such as LPS; stored: as in the files
    split: tuple[float, float, float] = (70, 10, 20)  # percent of the patients for training, selecting and reporting
    seed: int = 42  # of the split
    patient: str = r"^.*?\d+"  # regular expression: cases in which it matches the same text are of one patient
    lists: str | None = None  # folder with train.txt, val.txt (may be missing) and test.txt: a case in each line
    debug: bool = False  # show the traceback of errors


def main(options: PrepareVolumes) -> None:
    log.setLevel(logging.INFO)
    record, parts = prepare(options)
    counts = ", ".join(f"{len(cases)} {part}" for part, cases in parts.items())
    low, high = record["intensities"]["low"], record["intensities"]["high"]
    log.info(
        "%s: cases %s; %d classes: %s", options.out, counts, len(record["class_names"]), some(record["class_names"])
    )
    log.info("intensities by %s %g to %g, slices %s", record["intensities"]["kind"], low, high, record["orientation"])


def prepare(options: PrepareVolumes) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Writes the folder; returns (what preparation.json holds, {part: its cases})."""
    root = Path(options.images)
    images, labels = (root / "imagesTr", root / "labelsTr") if (root / "imagesTr").is_dir() else (root, None)
    labels = Path(options.labels) if options.labels is not None else labels
    pairs, unused = find_pairs(images, labels, options.channel)
    for name in pairs:
        check_name(name, images)
    for sentence in unused:
        log.warning("left out: %s", sentence)
    about = read_about(root, images.parent, labels)
    parts = cases_of_lists(Path(options.lists), pairs) if options.lists else split_cases(list(pairs), options)
    pairs = {case: pairs[case] for cases in parts.values() for case in cases}
    values = label_values(pairs, options, about)
    record = {
        "dataset": "volumes",
        "class_names": list(options.class_names or about.class_names or (f"label {v}" for v in values)),
        "labels": values,
        "intensities": dataclasses.asdict(choose_scaling(pairs, options, about)),
        "orientation": choose_orientation(pairs) if options.orientation == "auto" else options.orientation,
        "parts": {part: sha256("\n".join(cases).encode()) for part, cases in parts.items()},
    }
    out = claim_folder(options.out, record)
    write_cases(out, pairs, parts, record, options)
    write_lists(out, parts)
    return record, parts


# ---- parts


def split_cases(cases: list[str], options: PrepareVolumes) -> dict[str, list[str]]:
    """{part: its cases}: all cases of a patient in one part, the patients shuffled with the seed.

    Raises ValueError for fewer than two patients, and for shares that are none."""
    share = np.array(options.split, dtype=float)
    if share.min() < 0 or share[0] == 0 or share[2] == 0 or not np.isfinite(share).all():
        raise ValueError(
            f"--split {some(share)}: expected shares for training, selecting and reporting, the first and last above 0"
        )
    patients: dict[str, list[str]] = {}
    for case in cases:
        patients.setdefault(patient_of(case, options.patient), []).append(case)
    if len(patients) < 2:
        raise ValueError(
            f"--patient {options.patient}: found {len(patients)} patient in {len(cases)} cases, expected two or more"
        )
    names = sorted(patients)
    random.Random(options.seed).shuffle(names)
    first, second = np.round(np.cumsum(share / share.sum())[:2] * len(names)).astype(int)
    first = min(max(first, 1), len(names) - 1)
    second = min(max(second, first), len(names) - 1)
    parts = {"train": names[:first], "val": names[first:second], "test": names[second:]}
    log.info(
        "%d patients in %d cases: %s", len(names), len(cases), ", ".join(f"{len(p)} {n}" for n, p in parts.items())
    )
    if not parts["val"]:
        log.warning("no patient is left to select the epoch by; train without --protocol holdout")
    return {part: sorted(case for name in of_part for case in patients[name]) for part, of_part in parts.items()}


def patient_of(case: str, pattern: str) -> str:
    """What the regular expression matches in the name of a case; the name itself where it matches nothing."""
    match = re.search(pattern, case)
    return match[0] if match else case


def cases_of_lists(folder: Path, pairs: dict[str, Pair]) -> dict[str, list[str]]:
    """{part: its cases} of train.txt, val.txt or val_vol.txt, and test.txt or test_vol.txt.

    Raises ValueError for cases that are not there, or in two lists."""
    parts: dict[str, list[str]] = {}
    for part, published in PARTS.items():
        name = published if (folder / published).is_file() else f"{part}.txt"
        parts[part] = read_list(folder, name) if part != "val" or (folder / name).is_file() else []
        missing = [case for case in parts[part] if case not in pairs]
        if missing:
            expected = some(pairs, 3)
            raise ValueError(f"{folder / name}: found no files for {some(missing)}; expected names such as {expected}")
    listed = [case for cases in parts.values() for case in cases]
    twice = sorted({case for case in listed if listed.count(case) > 1})
    if twice:
        raise ValueError(f"{folder}: {some(twice)} are in two lists; expected each case in one")
    if len(listed) < len(pairs):
        log.warning(
            "left out: %d cases that no list names: %s",
            len(pairs) - len(listed),
            some(sorted(set(pairs) - set(listed))),
        )
    return parts


def write_lists(out: Path, parts: dict[str, list[str]]) -> None:
    slices = {row["case"]: int(row["slices"]) for row in read_rows(out / "cases.csv")}
    lines = dict(parts)
    lines["train"] = [file.stem for case in parts["train"] for file in slice_files(out, case, range(slices[case]))]
    folder = out / "lists" / LISTS
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in PARTS.items():
        if lines[part]:
            write_atomically(folder / name, "".join(f"{line}\n" for line in lines[part]).encode())


# ---- what holds for all cases


def label_values(pairs: dict[str, Pair], options: PrepareVolumes, about: About) -> list[int]:
    """The numbers of the classes 1, 2, ... in the files. Without names all labels are read to find them."""
    names = options.class_names or about.class_names
    if about.class_names and options.class_names and len(about.class_names) != len(options.class_names):
        raise ValueError(
            f"--class-names: found {len(names)} names, expected {len(about.class_names)} as in dataset.json"
        )
    if about.class_names:
        return list(range(1, len(names) + 1))
    found: set[int] = set()
    for pair in tqdm(pairs.values(), "labels", unit=" cases", disable=None):
        found |= set(np.unique(integers(read_pair(pair, options.channel).label, pair.label)).tolist())
    values = sorted(found - {0})
    if not values or values[0] < 0 or len(values) > 254:
        raise ValueError(
            f"{options.images}: found the labels {some(sorted(found))}; expected 0 and 1 to 254 others above it"
        )
    if names and len(names) != len(values):
        raise ValueError(f"--class-names: found {len(names)} names for the {len(values)} labels {some(values)}")
    return values


def integers(label: np.ndarray, path: Path) -> np.ndarray:
    """Raises ValueError for labels that are no whole numbers."""
    whole = label if label.dtype.kind in "biu" else np.round(label)
    if not np.array_equal(whole, label):
        raise ValueError(f"{path} holds labels that are no whole numbers, such as {label[whole != label][0]:g}")
    return whole.astype(np.int64)


def choose_scaling(pairs: dict[str, Pair], options: PrepareVolumes, about: About) -> Scaling:
    """As the options say, as dataset.json calls the channel, or as the first case looks."""
    if options.intensities != "auto":
        of_ct = options.intensities == "window"
    elif about.channels:
        of_ct = about.channels[options.channel or 0].upper() == "CT"
    else:
        of_ct = read_pair(next(iter(pairs.values())), options.channel).image.min() < AIR
    return Scaling("window", *options.window) if of_ct else Scaling("percentiles", *options.percentiles)


def choose_orientation(pairs: dict[str, Pair]) -> str:
    """The plane across the thickest axis if all cases share it; STORED for oblique scans and unknown positions.

    Raises ValueError if the slices of a case that is left as it is would not lie across its thickest axis."""
    affines = {case: read_geometry(pair) for case, pair in pairs.items()}
    planes = {case: None if affine is None else plane_of(affine) for case, affine in affines.items()}
    if None not in planes.values():
        found = set(planes.values())
        if len(found) == 1:
            return PLANES[str(found.pop())]
    for case, affine in affines.items():
        spacing = None if affine is None else voxel_sizes(affine)
        if spacing is not None and spacing.max() > THICKER * spacing[2]:
            known = ", ".join(f"{code} ({plane})" for plane, code in PLANES.items())
            raise ValueError(
                f"--orientation: {pairs[case].image} has voxels of {some(np.round(spacing, 3))} mm, and not all cases "
                f"have the slices of one plane; give one of {known}, or {STORED}"
            )
    return STORED


def plane_of(affine: np.ndarray) -> str | None:
    """The plane whose slices lie across the thickest axis, axial where none is; None for an oblique scan."""
    if tilt(affine) > OBLIQUE:
        return None
    spacing = voxel_sizes(affine)
    thickest = int(spacing.argmax())
    if spacing[thickest] < THICKER * np.sort(spacing)[1]:
        return "axial"
    return PLANE_OF_AXIS[aff2axcodes(affine)[thickest]]


# ---- cases


def write_cases(
    out: Path, pairs: dict[str, Pair], parts: dict[str, list[str]], record: dict[str, Any], options: PrepareVolumes
) -> None:
    """Writes all cases that are not there yet, and cases.csv after each."""
    rows = {row["case"]: row for row in read_rows(out / "cases.csv")}
    part_of = {case: part for part, cases in parts.items() for case in cases}
    for case, pair in tqdm(pairs.items(), "cases", unit=" cases", disable=None):
        digests = {"image_sha256": sha256(pair.image.read_bytes()), "label_sha256": sha256(pair.label.read_bytes())}
        row = rows.get(case, {})
        numbers = range(int(row.get("slices", 0)))
        files = slice_files(out, case, numbers) if part_of[case] == "train" else [volume_file(out, case)]
        if digests.items() <= row.items() and files and all(file.is_file() for file in files):
            continue
        prepared = make_case(read_pair(pair, options.channel), pair, record)
        numbers = range(len(prepared.image))
        if part_of[case] == "train":
            write_slices(prepared, slice_files(out, case, numbers), numbers)
        else:
            write_volume(prepared, volume_file(out, case))
        patient = patient_of(case, options.patient)
        rows[case] = describe(prepared, case, patient, part_of[case], pair, record["class_names"]) | digests
        write_rows(out / "cases.csv", [rows[name] for name in sorted(rows)])


def make_case(stored: Stored, pair: Pair, record: dict[str, Any]) -> Case:
    """A case as training reads it. Raises ValueError for labels and values that were not expected."""
    scaling, orientation = Scaling(**record["intensities"]), record["orientation"]
    if scaling.kind == "window" and stored.image.min() > scaling.low:
        low, high = stored.image.min(), stored.image.max()
        raise ValueError(
            f"{pair.image} holds values from {low:g} to {high:g}, expected some below the window {scaling.low:g} to "
            f"{scaling.high:g}, as in the others; --window, or --intensities percentiles"
        )
    label = integers(stored.label, pair.label)
    classes = np.array([0, *record["labels"]])
    position = np.clip(np.searchsorted(classes, label), 0, len(classes) - 1)
    unknown = classes[position] != label
    if unknown.any():
        raise ValueError(f"{pair.label} holds the label {label[unknown][0]}, expected {some(classes)}")
    image, label = scaling(stored.image, pair.image), position.astype(np.uint8)
    if stored.affine is None:
        if orientation != STORED:
            raise ValueError(
                f"{pair.image} does not say how the patient lies, expected so for --orientation {orientation}"
            )
        spacing = None if stored.spacing is None else stored.spacing[::-1]
        return Case(image.transpose(2, 1, 0), label.transpose(2, 1, 0), spacing, None, None)
    codes = own_orientation(stored.affine) if orientation == STORED else orientation
    slices, spacing = to_slices(image, stored.affine, codes)
    turned = ornt_transform(io_orientation(stored.affine), axcodes2ornt(codes))
    affine = stored.affine @ inv_ornt_aff(turned, image.shape)
    return Case(slices, to_slices(label, stored.affine, codes)[0], spacing, affine, codes)


def describe(case: Case, name: str, patient: str, part: str, pair: Pair, class_names: list[str]) -> dict[str, Any]:
    """The row of cases.csv, without the hashes of its sources."""
    slices, rows, columns = case.image.shape
    spacing = ["", "", ""] if case.spacing is None else [round(float(mm), 6) for mm in case.spacing]
    present = [structure for number, structure in enumerate(class_names, 1) if (case.label == number).any()]
    return {
        "case": name,
        "patient": patient,
        "part": part,
        "image": pair.image.name,
        "slices": slices,
        "rows": rows,
        "columns": columns,
        **dict(zip(("slice_mm", "row_mm", "column_mm"), spacing, strict=True)),
        "structures": "; ".join(present),
    }


if __name__ == "__main__":
    run_command(main, PrepareVolumes)
