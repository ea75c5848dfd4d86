"""Prepare your own volumes with labels for training: OUT/{train_npz,test_vol_h5,lists}, the layout of Synapse.

    python -m datasets.prepare_volumes --images IMAGES --labels LABELS --out data/NAME
    python -m datasets.prepare_volumes --images Dataset027_ACDC --out data/NAME   # nnU-Net, MSD: dataset.json, imagesTr
    python -m datasets.prepare_volumes --images FOLDER_OF_NPZ --out data/NAME     # files with image and label
    python train_synapse.py --dataset own --data-path data/NAME --protocol holdout

NIfTI files are paired by name; words such as img and label, _gt or _0000 are ignored. Each volume is converted as
follows:

  slices        across the axis of the thickest voxels, in the radiological view (axial, coronal, sagittal); as stored
                if the scans are oblique or the files store no orientation; nothing is resampled
  intensities   CT (in Hounsfield units) by --window; others by the --percentiles of each volume; to 0..1, float32
  labels        become 0, 1, 2, ... in the order of their numbers; 255, which counts nowhere: nnU-Net's `ignore`, and
                255 beside class numbers; names from dataset.json or --class-names
  split         by patient, drawn with --seed; or by the lists of cases in --lists; --split 100 0 0: one pool for
                train_synapse.py --folds 5, of which each case is written as slices and as a volume

OUT/preparation.json stores these settings for training and prediction; OUT/cases.csv describes each case. To complete a
run that was stopped or killed, repeat the command.
"""

from utils.start import run_process

import dataclasses
import itertools
import logging
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from datasets.intensities import AIR, HU_WINDOW, Scaling
from datasets.masks import void_flags
from datasets.nifti import STORED, own_orientation, tilt, voxel_sizes
from datasets.preparation_record import claim_folder, sha256
from datasets.synapse import read_list
from datasets.volume_sources import CaseFiles, RawCase, find_cases, read_case, read_dataset_json, read_geometry
from datasets.volume_writing import (
    Conversion,
    Task,
    present_classes,
    size_columns,
    slice_files,
    whole_numbers,
    write_cases,
    write_list,
)
from utils.files import check_name, first_few, list_duplicates, read_rows
from utils.runs.command_line import run

log = logging.getLogger("vmunet")

LISTS = "list_volumes"  # folder of the three lists
PARTS = {"train": "train.txt", "val": "val_vol.txt", "test": "test_vol.txt"}
PLANES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}  # directions of columns, rows and slices
PLANE_OF_AXIS = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}
THICKER = 1.2  # ratio from which on the voxels along one axis count as thicker than along another
IGNORE_LABEL = 255  # of voxels that count in no loss and no score: nnU-Net's label `ignore`
MOST_NUMBERS = 9  # in a case's name, that can end the name of its patient
OBLIQUE = 20.0  # degrees; from here on, an axis matches no direction of the patient


@dataclass(kw_only=True)
class PrepareVolumes:
    images: str  # folder of volumes, searched recursively; or of an nnU-Net or MSD data set
    labels: str | None = None  # folder of labels, may be the same; none: labelsTr, or in the files (npz, h5)
    out: str  # folder to write
    class_names: tuple[str, ...] = ()  # of the labels in the order of their numbers, without background
    channel: int | None = None  # of images with several
    intensities: Literal["auto", "window", "percentiles"] = "auto"  # auto: window for CT, percentiles for others
    window: tuple[float, float] = HU_WINDOW  # values that become 0 and 1
    percentiles: tuple[float, float] = (0.5, 99.5)  # of the values of a volume, that become 0 and 1
    orientation: str = "auto"  # directions of columns, rows and slices, such as LPS; stored: as in the files
    split: tuple[float, float, float] = (70, 10, 20)  # percent of the patients for training, validation and testing
    seed: int = 42  # of the split
    patient: str | None = None  # regular expression: it matches the same text in all cases of a patient; none: guessed
    lists: str | None = None  # folder with train.txt, val.txt (optional) and test.txt, one case a line
    debug: bool = False  # show the traceback of errors


def main(options: PrepareVolumes) -> None:
    log.setLevel(logging.INFO)
    record, parts = prepare(options)
    names = record["class_names"]
    log.info("%s: cases %s; %d classes: %s", options.out, sizes_of(parts), len(names), first_few(names))
    scaling = "{kind} {low:g} to {high:g}".format(**record["intensities"])
    log.info("intensities by %s, slices %s", scaling, record["orientation"])


def sizes_of(parts: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{len(names)} {part}" for part, names in parts.items())


def prepare(options: PrepareVolumes) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Write the folder; return (content of preparation.json, {part: its cases})."""
    root = Path(options.images)
    images, labels = (root / "imagesTr", root / "labelsTr") if (root / "imagesTr").is_dir() else (root, None)
    labels = Path(options.labels) if options.labels is not None else labels
    cases, unused = find_cases(images, labels, options.channel)
    for name in cases:
        check_name(name, images)
    for sentence in unused:
        log.warning("not used: %s", sentence)
    known, channels, ignored = read_dataset_json(root, images.parent, labels)
    listed = parts_from_lists(Path(options.lists), cases) if options.lists else None
    patients, parts = divide(list(cases), options, listed)
    part_of = {case: part for part, names in parts.items() for case in names}
    cases = {case: cases[case] for case in part_of}
    values, ignored = (sorted(known), ignored) if known else label_values(cases, options)
    if len(options.class_names) not in (0, len(values)):
        raise ValueError(f"--class-names: found {len(options.class_names)} names, expected {len(values)} for {values}")
    scaling = choose_scaling(cases, options, channels)
    class_names = list(options.class_names or (known.get(value, f"label {value}") for value in values))
    record: dict[str, Any] = {
        "dataset": "volumes",
        "class_names": class_names,
        "labels": values,
        "intensities": dataclasses.asdict(scaling),
        "orientation": choose_orientation(cases) if options.orientation == "auto" else options.orientation,
        "parts": {part: sha256("\n".join(names).encode()) for part, names in parts.items()},
    }
    if options.channel is not None:
        record["channel"] = options.channel
    unknown = {} if ignored is None else {ignored: IGNORE_LABEL}
    if unknown:
        record["ignore_label"] = IGNORE_LABEL
    out = claim_folder(options.out, record)
    sloped: list[str] = []

    def read(files: CaseFiles) -> RawCase:
        raw = read_case(files, options.channel)
        if raw.note:
            log.warning("%s", raw.note)
        if raw.label_slope != 1:
            sloped.append(f"{files.label.name} ({raw.label_slope:g})")
        if options.intensities == "auto" and scaling.kind == "percentiles" and raw.image.min() < AIR:
            kind = channels.get(options.channel or 0, "another kind")  # as dataset.json calls it
            found = f"values down to {raw.image.min():g}, as in CT, among cases of {kind}"
            raise ValueError(f"{files.image}: found {found}; expected one kind, or --intensities")
        return raw

    write_cases(
        out,
        [
            Task(case, cases[case], None if part == "train" else [], part != "train" or not parts["test"])
            for case, part in part_of.items()
        ],
        read,
        Conversion(
            scaling,
            {value: number for number, value in enumerate([0, *values])} | unknown,
            record["orientation"],
        ),
        lambda task, raw, case: {
            "case": task.name,
            "patient": patients[task.name],
            "part": part_of[task.name],
            "image": task.files.image.name,
            **size_columns(case),
            "structures": present_classes(case, class_names),
        },
    )
    if sloped:
        log.info("the slope in the header was applied to the labels of %d cases: %s", len(sloped), first_few(sloped, 3))
    slices = {row["case"]: range(int(row["slices"])) for row in read_rows(out / "cases.csv")}
    train = [file.stem for case in parts["train"] for file in slice_files(out, case, slices[case])]
    for part, lines in (parts | {"train": train}).items():
        if lines:
            write_list(out / "lists" / LISTS / PARTS[part], lines)
    return record, parts


def divide(
    cases: list[str], options: PrepareVolumes, listed: dict[str, list[str]] | None = None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return ({case: its patient}, {part: its cases}), of which the parts may be `listed`.

    Without --patient, a patient's name is the shortest beginning of a case's name, up to the end of a number, by which
    no part is empty and no patient in two. Raises ValueError if two parts then share the longest number in a name, as
    T1_patient000 and T2_patient000 do, or in one pool two patients, and for fewer than two patients."""
    found = f"found 1 patient in {len(cases)} cases"
    guesses = [rf"^(?:\D*\d+(?!\d)){{{n}}}" for n in range(1, MOST_NUMBERS + 1)]
    patterns = guesses if options.patient is None else [options.patient]
    for complete, pattern in itertools.product((True, False), patterns):
        patients = {case: patient_of(case, pattern) for case in cases}
        if len({*patients.values()}) < 2:
            continue
        parts = split_cases(patients, options) if listed is None else listed
        shared = in_two_parts(parts, patients.__getitem__)
        if not shared and options.patient is None:
            pool = {name: [case for case in cases if patients[case] == name] for name in patients.values()}
            shared = in_two_parts(parts if parts["test"] else pool, longest_number)
        if shared:
            found = f"found {shared}, which look like one patient"
        elif parts["val"] or listed or options.split[1] == 0 or not complete:
            break
    else:
        called = "--patient" if options.patient is None else f"--patient {options.patient}"
        expected = r"two or more, each in one part; it is a regular expression for their names, such as patient\d+"
        raise ValueError(f"{called}: {found}; expected {expected}")
    of_patients: dict[str, list[str]] = {}
    for case, patient in patients.items():
        of_patients.setdefault(patient, []).append(case)
    examples = "; ".join(f"patient {name} has {first_few(of_patients[name], 3)}" for name in sorted(of_patients)[:3])
    log.info("%d patients in %d cases: %s; %s (--patient)", len(of_patients), len(cases), sizes_of(parts), examples)
    if not parts["test"]:
        log.info("one pool: train with --folds 5 --fold all")
    elif not parts["val"]:
        log.warning("no patient is left for validation; train without --protocol holdout, or change --split")
    return patients, parts


def split_cases(patients: Mapping[str, str], options: PrepareVolumes) -> dict[str, list[str]]:
    """Return {part: its cases}: the patients are shuffled with the seed, all cases of a patient are in one part.

    patients  {case: its patient}, of two or more. Raises ValueError for invalid shares."""
    share = np.array(options.split, dtype=float)
    if share.min() < 0 or share[0] == 0 or share[2] == 0 < share[1] or not np.isfinite(share).all():
        expected = "shares for training, validation and testing, the first and last above 0, or 100 0 0 for --folds"
        raise ValueError(f"--split {first_few(share)}: expected {expected}")
    names = sorted({*patients.values()})
    random.Random(options.seed).shuffle(names)
    first, second = np.round(np.cumsum(share / share.sum())[:2] * len(names)).astype(int)
    most = len(names) - int(share[2] > 0)
    first = min(max(first, 1), most)
    second = min(max(second, first), most)
    if share[1] > 0 and second == first and len(names) > 2:  # rounding must not leave validation without a patient
        first = min(first, len(names) - 2)
        second = first + 1
    parts = {"train": names[:first], "val": names[first:second], "test": names[second:]}
    return {part: sorted(case for case in patients if patients[case] in of_part) for part, of_part in parts.items()}


def in_two_parts(parts: Mapping[str, list[str]], key: Callable[[str], object]) -> str:
    """Return two cases with the same key that are in different parts, as text; "" if there are none."""
    first: dict[object, tuple[str, str]] = {}
    for part, names in parts.items():
        for name in names:
            other, its_part = first.setdefault(key(name), (name, part))
            if its_part != part:
                return f"{other} ({its_part}) and {name} ({part})"
    return ""


def longest_number(case: str) -> int | str:
    """Return the first of the longest numbers in a name; the name itself without one."""
    numbers = re.findall(r"\d+", case)
    return int(max(numbers, key=len)) if numbers else case


def patient_of(case: str, pattern: str) -> str:
    """Return the text that the regular expression matches in the name of a case; the name itself without a match."""
    match = re.search(pattern, case)
    return match[0] if match else case


def parts_from_lists(folder: Path, cases: Mapping[str, CaseFiles]) -> dict[str, list[str]]:
    """Return {part: its cases} from train.txt, val.txt or val_vol.txt, and test.txt or test_vol.txt.

    Raises ValueError for cases that do not exist or are in two lists."""
    parts: dict[str, list[str]] = {}
    for part, published in PARTS.items():
        name = published if (folder / published).is_file() else f"{part}.txt"
        parts[part] = read_list(folder, name) if part != "val" or (folder / name).is_file() else []
        missing = [case for case in parts[part] if case not in cases]
        if missing:
            expected = f"names such as {first_few(cases, 3)}"
            raise ValueError(f"{folder / name}: found no files for {first_few(missing)}; expected {expected}")
    listed = [case for names in parts.values() for case in names]
    twice = list_duplicates(listed)
    if twice:
        raise ValueError(f"{folder}: {first_few(twice)} are in two lists; expected each case in one")
    unlisted = sorted(set(cases) - set(listed))
    if unlisted:
        log.warning("not used: %d cases that are in no list: %s", len(unlisted), first_few(unlisted))
    return parts


def label_values(cases: dict[str, CaseFiles], options: PrepareVolumes) -> tuple[list[int], int | None]:
    """Read all labels; return (those of the classes 1, 2, ..., the one that counts nowhere or None)."""
    found = set[int]()
    for files in tqdm(cases.values(), "labels", unit=" cases", disable=None):
        found |= set(np.unique(whole_numbers(read_case(files, options.channel).label, files.label)).tolist())
    values = sorted(found - {0})
    if not values or values[0] < 0 or len(values) > 254:
        labels = first_few(sorted(found))
        raise ValueError(f"{options.images}: found the labels {labels}; expected 0 and 1 to 254 larger numbers")
    ignored = IGNORE_LABEL if void_flags(found) and len(options.class_names) != len(values) else None
    if ignored is not None:
        values.remove(ignored)
        text = "the label %d beside class numbers is usually 'ignore', and counts nowhere; as a class, it needs %s"
        log.warning(text, ignored, f"one of {len(values) + 1} --class-names")
    return values, ignored


def choose_scaling(cases: dict[str, CaseFiles], options: PrepareVolumes, channels: Mapping[int, str]) -> Scaling:
    """Choose by the options, by the channel's name in dataset.json, or by the values of the first case."""
    if options.intensities != "auto":
        ct = options.intensities == "window"
    elif channels:
        ct = "CT" in (name.upper() for number, name in channels.items() if number == (options.channel or 0))
    else:
        ct = read_case(next(iter(cases.values())), options.channel).image.min() < AIR
    return Scaling("window", *options.window) if ct else Scaling("percentiles", *options.percentiles)


def choose_orientation(cases: dict[str, CaseFiles]) -> str:
    """Return the plane across the thickest axis if all cases share it; STORED for oblique scans and unknown geometry.

    Raises ValueError if the slices of a case would then not lie across its thickest axis."""
    affines = {files.image: read_geometry(files) for files in cases.values()}
    planes = {None if affine is None else plane_of(affine) for affine in affines.values()}
    if len(planes) == 1 and None not in planes:
        return PLANES[str(planes.pop())]
    unknown = [file for file, affine in affines.items() if affine is None]
    if 0 < len(unknown) < len(affines):
        log.warning("%s without orientation: the slices of all cases are those stored", first_few(unknown))
    for file, affine in affines.items():
        spacing = np.ones(3) if affine is None else voxel_sizes(affine)
        if spacing.max() > THICKER * spacing[2]:
            found = f"{file} has voxels of {first_few(np.round(spacing, 3))} mm, and the cases differ in their planes"
            known = ", ".join(f"{code} ({plane})" for plane, code in PLANES.items())
            raise ValueError(f"--orientation: {found}; expected one of {known}, or {STORED}")
    return STORED


def plane_of(affine: np.ndarray) -> str | None:
    """Return the plane whose slices lie across the thickest axis, axial if none is thicker; None for oblique scans."""
    if tilt(affine) > OBLIQUE:
        return None
    spacing = voxel_sizes(affine)
    thickest = int(spacing.argmax())
    if spacing[thickest] < THICKER * np.sort(spacing)[1]:
        return "axial"
    return PLANE_OF_AXIS[own_orientation(affine)[thickest]]


def command() -> None:
    run(main, PrepareVolumes)


if __name__ == "__main__":
    run_process(command)
