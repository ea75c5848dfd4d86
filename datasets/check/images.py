"""The part of datasets.check that looks at folders of images and masks."""

import contextlib
import itertools
import shlex
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags
from tqdm import tqdm

from datasets.check.contact_sheet import Cell, save_sheet, spread
from datasets.check.duplicates import Duplicate, Fingerprint, find_duplicates, fingerprint
from datasets.check.report import Section, in_several, tally
from datasets.isic import (
    GREY_LEVELS,
    MaskValue,
    check_same_size,
    describe_unused,
    grey_values,
    is_jpeg,
    match_files,
    parse_mask_values,
    read_image,
    read_mask,
)
from utils.files import open_image, some
from utils.machine.device import available_cpus

PARTS = ("train", "val", "test")
EMPTY_CLASS = 1e-5  # share of pixels below which a class is called rare
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SMALLEST = 32  # side in pixels that the network takes


class Pair(NamedTuple):
    """A pair and the part it lies in ("" where there are no parts)."""

    part: str
    stem: str
    image: Path
    mask: Path

    @property
    def name(self) -> str:
        return f"{self.part}/{self.stem}" if self.part else self.stem


class Classes(NamedTuple):
    """What the masks are read as: the flags of train.py."""

    number: int  # 1: one object and the background
    mask_values: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[MaskValue, ...]:
        return parse_mask_values(self.mask_values, self.number)

    @property
    def flags(self) -> list[str]:
        flags = [] if self.number == 1 else ["--num-classes", str(self.number)]
        return flags + (["--mask-values", *self.mask_values] if self.mask_values else [])


@dataclass
class Seen:
    """What one pair looks like."""

    pair: Pair
    size: tuple[int, int] | None = None  # width, height
    mode: str = ""  # of the image file, Pillow's
    counts: np.ndarray | None = None  # pixels of each class
    fingerprint: Fingerprint | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_images(
    folder: Path, num_classes: int | None, mask_values: tuple[str, ...], output: Path, thumbnails: int
) -> list[Section]:
    """The report on all pairs of a folder. Writes contact sheets of at most `thumbnails` pictures into `output`.

    num_classes, mask_values: as in training; if neither is given, what the masks hold decides."""
    pairs, pairing = find_all_pairs(folder)
    if not pairs:
        reasons = "; ".join([*pairing.problems, *pairing.warnings])
        raise ValueError(f"{folder} holds no pair of an image and a mask; {reasons}")
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(available_cpus()) as pool:
        if num_classes is None and mask_values:
            num_classes = 1 if len(mask_values) == 2 else len(mask_values)
        if num_classes is None:
            masks = tqdm(pool.map(mask_values_of, [pair.mask for pair in pairs]), "masks", len(pairs), disable=None)
            classes, guess = guess_classes([found for found in masks if found is not None])
        else:
            classes, guess = Classes(num_classes, tuple(mask_values)), Section()
        values = classes.values
        looks = pool.map(lambda pair: look_at(pair, classes.number, values), pairs)
        seen = list(tqdm(looks, "pairs", len(pairs), disable=None))
    duplicates = group_duplicates(seen)
    save_sheets(output, folder.name, seen, duplicates, classes, thumbnails)
    return [
        pairing,
        describe_parts(folder, seen),
        guess,
        describe_classes(seen, classes),
        check_pairs(seen, classes.number),
        check_duplicates(duplicates),
        describe_command(folder, classes, in_parts=any(pair.part for pair in pairs)),
    ]


# ---- reading


def find_all_pairs(folder: Path) -> tuple[list[Pair], Section]:
    """All pairs, part by part; what has no partner, or a name in two parts, is a problem."""
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if not parts and not (folder / "images").is_dir():
        raise FileNotFoundError(
            f"{folder} holds neither train/images and train/masks, nor images and masks, nor train_npz and lists "
            "(data/README.md)"
        )
    pairs: list[Pair] = []
    problems: list[str] = []
    warnings: list[str] = []
    for part in parts or [""]:
        images, masks = folder / part / "images", folder / part / "masks"
        try:
            found, wrong = match_files(images, masks)
            warnings += [*describe_unused(images), *describe_unused(masks)]
        except FileNotFoundError as error:
            found, wrong = [], [str(error)]
        pairs += [Pair(part, *pair) for pair in found]
        problems += wrong
    twice = in_several((pair.stem, pair.part) for pair in pairs)
    if twice:
        problems.append(f"{len(twice)} names are in several parts: {some(twice)}")
    return pairs, Section(problems=problems, warnings=warnings)


def look_at(pair: Pair, num_classes: int, values: tuple[MaskValue, ...]) -> Seen:
    """Reads image and mask as training does."""
    seen = Seen(pair)
    image = mask = None
    with noted(seen.problems):
        image = read_image(pair.image, training=True)
        with open_image(pair.image) as file:
            seen.mode = file.mode
            if file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                how = "is followed, in its mask too" if file.format == "TIFF" else "is not followed"
                seen.warnings.append(f"image with a note to turn it (EXIF orientation), which {how}")
    with noted(seen.problems):
        mask = read_mask(pair.mask, num_classes, values)
    if image is not None:
        seen.size, seen.fingerprint = (image.shape[2], image.shape[1]), fingerprint(image)
        if image.min() == image.max():
            seen.problems.append(f"{pair.image} has the same value in every pixel")
        if min(seen.size) < SMALLEST:
            seen.warnings.append(f"less than {SMALLEST} pixels wide or high")
    if mask is not None:
        classes = mask >= 128 if num_classes == 1 else mask
        seen.counts = np.bincount(classes.numpy().ravel(), minlength=max(num_classes, 2))
        if seen.counts[0] == 0:
            seen.warnings.append("mask without background")
        elif seen.counts[1:].sum() == 0:
            seen.warnings.append("empty mask")
    if image is not None and mask is not None:
        with noted(seen.problems):
            check_same_size(image, mask, pair.image, pair.mask)
    return seen


@contextlib.contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Adds what is wrong with a file to `problems` instead of raising it."""
    try:
        yield
    except (ValueError, OSError) as error:
        problems.append(str(error))


# ---- what the masks hold


def mask_values_of(path: Path) -> tuple[set, str] | None:
    """(values, how they are stored) of a mask: grey levels or (r, g, b); None if it can't be read.

    stored: "grey", "palette" (indices, of a grey palette its levels), "colour", or "soft", an outline in grey levels.
    """
    try:
        with open_image(path) as file:
            if file.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
                counted: Any = file.convert("RGB").getcolors(256) or ()  # [(count, (r, g, b))]
                colours = {colour for _, colour in counted}
                if any(len(set(colour)) > 1 for colour in colours):
                    return colours, "colour"
            values = {int(value) for value in np.unique(grey_values(file))}
            soft = len(values) > GREY_LEVELS or is_jpeg(path)
            return values, "soft" if soft else "palette" if file.mode == "P" else "grey"
    except (ValueError, OSError):
        return None  # look_at reports it


def guess_classes(masks: list[tuple[set, str]]) -> tuple[Classes, Section]:
    """What the classes are, from what `mask_values_of` found in each mask."""
    if not masks:
        return Classes(1), Section(["Masks: none could be read"])
    stored = Counter(how for _, how in masks)
    values = set().union(*(found for found, _ in masks))
    if stored["soft"]:
        line = f"Masks: {stored['soft']} of {len(masks)} with grey outlines, read as one object with soft borders"
        return Classes(1), Section([line])
    if stored["colour"]:
        colours = {value if isinstance(value, tuple) else (value,) * 3 for value in values}
        ordered = sorted(colours, key=lambda colour: (colour != BLACK, colour != WHITE, colour))  # likely backgrounds
        names = tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in ordered)
        line = f"Masks: {len(names)} colours, {some(names)}; the first is taken for the background"
        return Classes(1 if len(names) <= 2 else len(names), names if len(names) > 1 else ()), Section([line])
    levels = sorted(values)
    kind = "indices of a palette" if stored["palette"] else "values"
    section = Section([f"Masks: {len(levels)} {kind}, {some(levels)}"])
    if set(levels) <= {0, 1, 255} and all(len(found) <= 2 for found, _ in masks):
        if len(levels) == 3:
            section.warnings.append("some masks hold 0 and 1, others 0 and 255; both are read as background and object")
        return Classes(1), section
    as_flags = tuple(map(str, levels))
    if len(levels) <= 2:
        alone = len(levels) == 2 and any(len(found) == 1 for found, _ in masks)  # such a mask needs the pair named
        return Classes(1, as_flags if alone else ()), section
    return Classes(len(levels), () if levels == list(range(len(levels))) else as_flags), section


# ---- sections of the report


def describe_parts(folder: Path, seen: list[Seen]) -> Section:
    """A line for each part: pairs, sizes, kinds of images."""
    lines = [f"{folder}: images and masks"]
    for part, members in by_part(seen).items():
        sizes = some(tally("{}x{}".format(*one.size) for one in members if one.size), 3) or "unknown"
        kinds = ", ".join(tally(one.mode for one in members if one.mode)) or "unknown"
        lines.append(f"  {part or 'all':6}{len(members):6} pairs   sizes {sizes}   images {kinds}")
    return Section(lines)


def describe_classes(seen: list[Seen], classes: Classes) -> Section:
    """A table of the classes: value in the masks, share of all pixels, images that hold the class."""
    counts = [one.counts for one in seen if one.counts is not None]
    if not counts:
        return Section()
    others = ["object"] if classes.number == 1 else [f"class {c}" for c in range(1, classes.number)]
    values = [""] * 2 if classes.number == 1 else [str(c) for c in range(classes.number)]
    total, images = np.sum(counts, 0), (np.array(counts) > 0).sum(0)
    section = Section([f"  {'class':12}{'value':>10}{'pixels':>12}{'images':>9}"])
    for c, (name, value) in enumerate(zip(["background", *others], classes.mask_values or values, strict=True)):
        share = total[c] / total.sum()
        section.lines.append(f"  {name:12}{value:>10}{100 * share:10.3f} %{images[c]:9}")
        if share < EMPTY_CLASS:
            where = "nowhere" if total[c] == 0 else f"in {100 * share:.5f} % of the pixels only"
            section.warnings.append(f"{name} is {where}")
    shares = sorted(1 - one[0] / one.sum() for one in counts)
    low, middle, high = (100 * shares[int(q * (len(shares) - 1))] for q in (0, 0.5, 1))
    section.lines.append(
        f"  all but the background covers {low:.2f} to {high:.2f} % of an image, {middle:.2f} % in the middle"
    )
    return section


def check_pairs(seen: list[Seen], num_classes: int) -> Section:
    """A row for each pair, its problems, and each kind of warning once with the pairs it is about."""
    section = Section(
        rows=[row_of(one, num_classes) for one in seen],
        problems=[text for one in seen for text in one.problems],
    )
    for text in dict.fromkeys(text for one in seen for text in one.warnings):
        names = [one.pair.name for one in seen if text in one.warnings]
        section.warnings.append(f"{text}, in {len(names)} pairs: {some(names)}")
    return section


def row_of(seen: Seen, num_classes: int) -> dict[str, Any]:
    """The row of files.csv."""
    width, height = seen.size or ("", "")
    row: dict[str, Any] = {
        "part": seen.pair.part,
        "name": seen.pair.stem,
        "width": width,
        "height": height,
        "mode": seen.mode,
    }
    for c in range(1, max(num_classes, 2)):
        row[f"class_{c}"] = "" if seen.counts is None else float(seen.counts[c] / seen.counts.sum())
    return row | {"problems": "; ".join(seen.problems), "warnings": "; ".join(seen.warnings)}


def group_duplicates(seen: list[Seen]) -> dict[tuple[str, bool], list[Duplicate]]:
    """{(kind, whether they are in different parts): the duplicates}, the gravest first."""
    found = find_duplicates({one.pair.name: one.fingerprint for one in seen if one.fingerprint is not None})
    part = {one.pair.name: one.pair.part for one in seen}
    groups = {
        (kind, apart): [d for d in found if d.kind == kind and (part[d.first] != part[d.second]) == apart]
        for kind, apart in itertools.product(("same pixels", "similar"), (True, False))
    }
    return {group: duplicates for group, duplicates in groups.items() if duplicates}


def check_duplicates(groups: dict[tuple[str, bool], list[Duplicate]]) -> Section:
    """Images that are in the data twice: a problem where equal pixels are in different parts."""
    section = Section()
    for (kind, apart), duplicates in groups.items():
        same = kind == "same pixels"
        what = "pairs of images with same pixels" if same else "similar pairs"
        where = "in different parts" if apart else "in one part"
        together = "" if apart or same else ", which k-fold keeps together by --fold-group only"
        names = some(f"{d.first} = {d.second}" for d in duplicates)
        entries = section.problems if apart and same else section.warnings
        entries.append(f"{len(duplicates)} {what} {where}{together}: {names}")
    return section


def describe_command(folder: Path, classes: Classes, in_parts: bool) -> Section:
    """The command that trains on the folder."""
    command = ["python", "train.py", "--dataset", folder.resolve().name, "--data-path", str(folder), *classes.flags]
    if not in_parts:
        command += ["--folds", "5", "--fold", "0"]
    return Section(["", f"Train with: {shlex.join(command)}"])


# ---- pictures


def save_sheets(
    output: Path,
    name: str,
    seen: list[Seen],
    duplicates: dict[tuple[str, bool], list[Duplicate]],
    classes: Classes,
    thumbnails: int,
) -> None:
    """Writes a contact sheet of each part, and suspects.png of what has a problem, a warning or a duplicate."""
    values = classes.values

    def cell(one: Seen, note: str = "") -> Cell:
        return Cell(one.pair.name, lambda: read_for_sheet(one.pair, classes.number, values), note)

    for part, members in by_part(seen).items():
        chosen = spread(members, thumbnails)
        title = f"{part or name}: {len(chosen)} of {len(members)} images"
        save_sheet(output / f"{part or 'all'}.png", title, [cell(one) for one in chosen], classes.number)
    notes = {one.pair.name: "; ".join(one.warnings) or "problem" for one in seen if one.warnings or one.problems}
    for d in itertools.chain(*duplicates.values()):  # which come side by side
        notes |= {d.first: f"{d.kind}: {d.second}", d.second: f"{d.kind}: {d.first}"}
    if notes:
        by_name = {one.pair.name: one for one in seen}
        suspects = [cell(by_name[name], note) for name, note in notes.items()][:thumbnails]
        title = f"{len(suspects)} of {len(notes)} images that something was said about"
        save_sheet(output / "suspects.png", title, suspects, classes.number)


def by_part(seen: list[Seen]) -> dict[str, list[Seen]]:
    """{part: what is in it}"""
    parts: dict[str, list[Seen]] = {}
    for one in seen:
        parts.setdefault(one.pair.part, []).append(one)
    return parts


def read_for_sheet(
    pair: Pair, num_classes: int, values: tuple[MaskValue, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(image (3, H, W), classes (H, W)) for a contact sheet; None for what can't be read or does not fit."""
    image = mask = None
    with contextlib.suppress(ValueError, OSError):  # look_at reported it
        image = read_image(pair.image)
        mask = read_mask(pair.mask, num_classes, values)[0]
    if image is None or mask is None or mask.shape != image.shape[1:]:
        return image, None
    return image, mask >= 128 if num_classes == 1 else mask
