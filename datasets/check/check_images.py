"""The part of datasets.check for folders of images and masks."""

import contextlib
import shlex
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags
from tqdm import tqdm

from datasets.check.contact_sheet import Cell
from datasets.check.data_report import DataReport, Inspection, collected, command_line, repeated_in
from datasets.classes import palette_colours, raw_volume
from datasets.duplicates import find_duplicates, fingerprint
from datasets.image_reading import check_training_image, read_image
from datasets.isic import Pair, describe_unused, find_masks, match_files
from datasets.masks import GREY_LEVELS, VOID, MaskReader, check_same_size, distinct, parse_mask_values, void_flags
from utils.files import first_few, open_image
from utils.machine.device import available_cpus

PARTS = ("train", "val", "test")


def check_images(
    folder: Path, num_classes: int | None, mask_values: tuple[str, ...], ignore_label: int | None = None
) -> DataReport:
    """Inspect all pairs of a folder.

    num_classes, mask_values, ignore_label: as in training; by default masks are binary, or have a class for each of
    `mask_values`."""
    report = DataReport([f"{folder}: images and masks"])
    pairs = find_all_pairs(folder, report)
    if not pairs:
        reasons = "; ".join([*report.problems, *report.warnings])
        raise ValueError(f"{folder} holds no pair of an image and a mask; {reasons}{advice_for_volumes(folder)}")
    if num_classes is None:
        num_classes = len(mask_values) if len(mask_values) > 2 else 1
    values = parse_mask_values(mask_values, num_classes)
    reader = MaskReader(find_masks(folder), num_classes, values, ignore_label)
    with ThreadPoolExecutor(available_cpus()) as pool:
        results = pool.map(lambda one: inspect_pair(one[0], one[1], reader), pairs)
        inspections = list(tqdm(results, "pairs", len(pairs), disable=None))
    check_duplicates(inspections, report)
    class_names = ["object"] if num_classes == 1 else [f"class {c}" for c in range(1, num_classes)]
    with contextlib.suppress(ValueError, OSError):  # inspect_pair has reported this mask already
        in_flags = [value for value in mask_values[1:] if value[0] == "#"]
        report.class_colours = in_flags or palette_colours(folder, num_classes)
    report.add(inspections, class_names)

    flags = ["--num-classes", str(num_classes)] if num_classes > 1 else []
    flags += ["--mask-values", *mask_values] if mask_values else []
    flags += ["--ignore-label", str(ignore_label)] if ignore_label is not None else []
    stored = [[int(v) for v in one.columns.get("values", "").split() if v.isdecimal()] for one in inspections]
    if ignore_label is None and any(map(void_flags, stored)):
        advised = void_flags({value for values in stored for value in values})
        report.warnings.append(f"{VOID} beside class ids is usually 'ignore' and no class: {advised}")
        flags = advised.split()
    report.lines += ["", f"Train with: {training_command(folder, flags, [part for part, _ in pairs])}"]
    report.lines.append(
        f"Other photographs of a lesion are found by: python -m datasets.same_lesion {shlex.quote(str(folder))}"
    )
    return report


def training_command(folder: Path, flags: Sequence[str], parts: Sequence[str]) -> str:
    """Return a command that trains on an unchanged folder with pairs in these parts, without a download."""
    number = parts.count("train")
    flags = [*flags]
    if not {"train", "val"} <= set(parts):
        pool = len(parts) - parts.count("test")
        flags += ["--folds", "5", "--fold", "0"]
        number = pool - -(-pool // 5)
    return command_line("python train.py", folder, flags, number)


def find_all_pairs(folder: Path, report: DataReport) -> list[tuple[str, Pair]]:
    """Return [(part, pair)]. Files without a partner and names in two parts are problems."""
    parts = {part: folder / part for part in PARTS if (folder / part).is_dir()}
    if not parts and not (folder / "images").is_dir():
        expected = "train/images and train/masks, or images and masks, or train_npz and lists (data/README.md)"
        raise FileNotFoundError(f"{folder} is no folder of data; expected {expected}{advice_for_volumes(folder)}")
    pairs: list[tuple[str, Pair]] = []
    for part, place in (parts or {"all": folder}).items():
        with collected(report.problems):
            found, problems = match_files(place / "images", place / "masks")
            report.problems += problems
            report.warnings += [*describe_unused(place / "images"), *describe_unused(place / "masks")]
            pairs += [(part, pair) for pair in found]
    twice = repeated_in((stem, part) for part, (stem, *_) in pairs)
    if twice:
        report.problems.append(f"{len(twice)} names are in several parts: {first_few(twice)}")
    return pairs


def advice_for_volumes(folder: Path) -> str:
    """Return advice on preparing the volumes in a folder; "" if it holds no NIfTI file."""
    volume, command = raw_volume(folder)
    return f". It holds volumes, such as {volume}: prepare them with {command}" * (volume is not None)


def inspect_pair(part: str, pair: Pair, reader: MaskReader) -> Inspection:
    """Read image and mask as training does."""
    stem, image_path, mask_path = pair
    found = Inspection(part, stem, cells=[Cell(stem, lambda: read_pair(pair, reader, []))])
    image, classes = read_pair(pair, reader, found.problems)
    if image is not None:
        found.fingerprint = fingerprint(image)
        found.columns["size"] = f"{image.shape[2]}x{image.shape[1]}"
        if image.min() == image.max():
            found.problems.append(f"{image_path} has the same value in every pixel, expected an image")
        with collected(found.problems), open_image(image_path) as file:
            found.columns["mode"] = file.mode
            if file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                how = "applied, to the mask too" if file.format == "TIFF" else "ignored"
                found.warnings.append(f"image with an orientation tag, which is {how}")
            check_training_image(file)
    with contextlib.suppress(ValueError, OSError):  # read_pair reported it
        found.columns["values"] = stored_values(mask_path, reader)
    if classes is not None:
        number = max(reader.num_classes, 2)
        found.counts = np.bincount(classes.numpy().ravel(), minlength=number)[:number]
        if not found.counts[0]:
            found.warnings.append("mask without background")
        elif not found.counts[1:].any():
            found.warnings.append("empty mask")
    return found


def stored_values(path: Path, reader: MaskReader) -> str:
    """Return the distinct grey levels, palette indices or colours in a mask file, such as "0 255"."""
    with open_image(path) as file:
        if file.mode in ("RGB", "RGBA") or (file.mode == "P" and isinstance((*reader.mask_values, 0)[0], tuple)):
            colours: Any = file.convert("RGB").getcolors(GREY_LEVELS) or ()  # [(count, (r, g, b))]
            if any(len(set(colour)) > 1 for _, colour in colours):
                return " ".join(sorted(f"#{bytes(colour).hex()}" for _, colour in colours))
        values = distinct(reader.values(file))
    return "many" if len(values) > GREY_LEVELS else " ".join(map(str, values))


def check_duplicates(inspections: Sequence[Inspection], report: DataReport) -> None:
    """Find images that occur twice. Equal pixels in different parts are a problem."""
    by_name = {f"{one.part}/{one.name}": one for one in inspections}
    fingerprints = {name: one.fingerprint for name, one in by_name.items() if one.fingerprint is not None}
    groups = defaultdict(list)
    for first, second, kind, _ in find_duplicates(fingerprints):
        groups[kind, by_name[first].part != by_name[second].part].append(f"{first} = {second}")
        for name, other in ((first, second), (second, first)):
            by_name[name].duplicate = f"{kind}: {other}"
    for (kind, apart), names in sorted(groups.items()):
        entries = report.problems if kind == "same pixels" and apart else report.warnings
        where = "different parts" if apart else "one part"
        entries.append(f"{len(names)} pairs of images in {where} ({kind}): {first_few(names)}")


def read_pair(pair: Pair, reader: MaskReader, problems: list[str]) -> tuple[Any, Any]:
    """Return (image (3, H, W), classes (H, W)); None for a file with an error, which is added to `problems`."""
    _, image_path, mask_path = pair
    image = classes = None
    with collected(problems):
        image = read_image(image_path)
    with collected(problems):
        mask = reader.read(mask_path)
        classes = mask[0] >= 128 if reader.num_classes == 1 else mask[0]
        if image is not None:
            check_same_size(image, mask, image_path, mask_path)
    return image, classes
