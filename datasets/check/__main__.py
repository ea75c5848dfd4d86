"""Looks at a folder of data before training: what is in it, what is wrong with it, and pictures of it.

    python -m datasets.check data/isic17
    python -m datasets.check data/own --num-classes 3 --mask-values "#000000" "#ff0000" "#0000ff"
    python -m datasets.check data/Synapse

Images and masks (FOLDER/{train,val,test}/{images,masks} or FOLDER/{images,masks}) and the layout of Synapse are told
apart by themselves. Without --num-classes and --mask-values the values in the masks decide what the classes are, and
the report says with which flags to train.

Written to --output: report.txt, files.csv with a row for each file, and contact sheets as PNG, a sheet for each part
and one of the files that something was said about.

Exit status 0: nothing stands against training. 1: something would stop it or spoil its scores (unreadable files, files
without a partner, sizes or values that do not fit, equal pixels in two parts). 2: not a folder of data, or a wrong
flag. The unusual (empty masks, similar images in two parts) is a warning and leaves the status at 0.
"""

import itertools
import shlex
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from PIL import ExifTags
from tqdm import tqdm

from datasets.check import synapse as check_synapse
from datasets.check.contact_sheet import Cell, save_sheet, spread
from datasets.check.duplicates import find_duplicates, fingerprint
from datasets.isic import GREY_LEVELS, grey_values, match_files, parse_mask_values, read_image, read_mask
from utils.files import open_image, some, write_atomically, write_rows
from utils.machine.device import available_cpus
from utils.runs.command_line import run_command

PARTS = ("train", "val", "test")
EMPTY_CLASS = 1e-5  # share of pixels below which a class is called rare
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SMALLEST = 32  # side in pixels that the network takes


@dataclass(kw_only=True)
class Check:
    folder: Annotated[str, tyro.conf.Positional]  # the data to look at
    num_classes: int | None = None  # as in training; none: found out from the masks
    mask_values: tuple[str, ...] = ()  # as in training
    output: str | None = None  # folder for the report; none: results/check_<name of the folder>
    thumbnails: int = 96  # pictures on a contact sheet, spread evenly over the part
    debug: bool = False  # show the traceback of errors


class Report:
    """What is found: lines to read, rows of files, problems and warnings about single places."""

    def __init__(self):
        self.lines, self.rows, self.problems, self.warnings = [], [], [], []

    def say(self, *lines):
        self.lines.extend(lines)

    def problem(self, text):
        self.problems.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def text(self, shown=None):
        """The report, with all or the first `shown` problems and warnings."""
        lines = list(self.lines)
        for title, entries in (("Problems", self.problems), ("Warnings", self.warnings)):
            lines += ["", f"{title}: {len(entries) or 'none'}", *(f"  {entry}" for entry in entries[:shown])]
            more = len(entries[:shown]) - len(entries)
            lines += [f"  and {-more} more, see report.txt"] if more else []
        return "\n".join(lines) + "\n"


def main(options):
    folder = Path(options.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with data to train on (data/README.md)")
    output = Path(options.output or Path("results", f"check_{folder.resolve().name}"))
    report = Report()
    if check_synapse.is_synapse(folder):
        check_synapse.check(folder, options.num_classes or 9, output, options.thumbnails, report)
    else:
        check_images(folder, options, output, report)
    write_rows(output / "files.csv", report.rows)
    write_atomically(output / "report.txt", report.text().encode())
    print(report.text(shown=20), end="")
    print(f"\nContact sheets, report.txt and files.csv are in {output}")
    return 1 if report.problems else 0


# ---- images and masks


class Pair(NamedTuple):
    """A pair and the part it lies in ("" where there are no parts)."""

    part: str
    stem: str
    image: Path
    mask: Path

    @property
    def name(self):
        return f"{self.part}/{self.stem}" if self.part else self.stem


@dataclass
class Seen:
    """What one pair looks like."""

    pair: Pair
    size: tuple[int, int] | None = None  # width, height
    mode: str = ""  # of the image file, Pillow's
    counts: np.ndarray | None = None  # pixels of each class
    fingerprint: object = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_images(folder, options, output, report):
    """Looks at all pairs of a folder of images and masks."""
    pairs = find_all_pairs(folder, report)
    if not pairs:
        raise ValueError(f"{folder} holds no pair of an image and a mask; {some(report.problems)}")
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(available_cpus()) as pool:
        num_classes, mask_values = options.num_classes, options.mask_values
        if num_classes is None:
            num_classes = 1 if len(mask_values) == 2 else len(mask_values) or None
        if num_classes is None:
            masks = list(progress(pool.map(mask_values_of, [pair.mask for pair in pairs]), "masks", len(pairs)))
            num_classes, mask_values = guess_classes([found for found in masks if found is not None], report)
        values = parse_mask_values(mask_values, num_classes)
        seen = list(progress(pool.map(lambda p: look_at(p, num_classes, values), pairs), "pairs", len(pairs)))
    describe_parts(folder, seen, report)
    describe_classes(seen, num_classes, mask_values, report)
    for one in seen:
        report.problems += one.problems
        report.rows.append(row_of(one, num_classes))
    for text in dict.fromkeys(text for one in seen for text in one.warnings):
        names = [one.pair.name for one in seen if text in one.warnings]
        report.warn(f"{text}, in {len(names)} pairs: {some(names)}")
    alike = describe_duplicates(seen, report)
    flags = shlex.join(flags_of(num_classes, mask_values))
    pool_flags = "" if any(pair.part for pair in pairs) else " --folds 5 --fold 0"
    report.say("", f"Train with: python train.py --dataset {shlex.quote(folder.resolve().name)} "
               f"--data-path {shlex.quote(str(folder))}{' ' + flags if flags else ''}{pool_flags}")  # fmt: skip

    def cell(one, note=""):
        return Cell(one.pair.name, lambda: read_for_sheet(one.pair, num_classes, values), note)

    for part in dict.fromkeys(pair.part for pair in pairs):
        members = [one for one in seen if one.pair.part == part]
        chosen = spread(members, options.thumbnails)
        title = f"{part or folder.name}: {len(chosen)} of {len(members)} images"
        save_sheet(output / f"{part or 'all'}.png", title, [cell(one) for one in chosen], num_classes)
    notes = {one.pair.name: "; ".join(one.warnings) or "problem" for one in seen if one.warnings or one.problems}
    notes |= alike
    by_name = {one.pair.name: one for one in seen}
    suspects = [cell(by_name[name], note) for name, note in notes.items()]  # duplicates side by side
    if suspects:
        title = f"{min(len(suspects), options.thumbnails)} of {len(suspects)} images that something was said about"
        save_sheet(output / "suspects.png", title, suspects[: options.thumbnails], num_classes)


def find_all_pairs(folder, report):
    """All pairs, part by part; what has no partner is a problem."""
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if not parts and not (folder / "images").is_dir():
        raise FileNotFoundError(
            f"{folder} holds neither train/images and train/masks, nor images and masks, nor train_npz and lists "
            "(data/README.md)"
        )
    pairs = []
    for part in parts or [""]:
        try:
            found, problems = match_files(folder / part / "images", folder / part / "masks")
        except FileNotFoundError as error:
            found, problems = [], [str(error)]
        pairs += [Pair(part, *pair) for pair in found]
        report.problems += problems
    where = defaultdict(list)
    for pair in pairs:
        where[pair.stem].append(pair.part)
    twice = [f"{stem} ({' and '.join(found)})" for stem, found in where.items() if len(found) > 1]
    if twice:
        report.problem(f"{len(twice)} names are in several parts: {some(twice)}")
    return pairs


def look_at(pair, num_classes, values):
    """Seen: reads image and mask as training does."""
    seen = Seen(pair)
    image = mask = None
    try:
        image = read_image(pair.image, training=True)
        with open_image(pair.image) as file:
            seen.mode = file.mode
            if file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                seen.warnings.append("image with a note to turn it (EXIF orientation), which is not followed")
    except (ValueError, OSError) as error:
        seen.problems.append(str(error))
    try:
        mask = read_mask(pair.mask, num_classes, values)
    except (ValueError, OSError) as error:
        seen.problems.append(str(error))
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
    if image is not None and mask is not None and image.shape[1:] != mask.shape[1:]:
        sizes = ["{1}x{0}".format(*tensor.shape[1:]) for tensor in (image, mask)]
        seen.problems.append(f"{pair.image} is {sizes[0]} but its mask {pair.mask} is {sizes[1]} (width x height)")
    return seen


def read_for_sheet(pair, num_classes, values):
    """(image (3, H, W), classes (H, W)) for a contact sheet; a part that can't be read is None."""
    image = mask = None
    try:
        image = read_image(pair.image)
        mask = read_mask(pair.mask, num_classes, values)[0].numpy()
    except (ValueError, OSError):
        return image, None  # look_at reported it
    fits = mask.shape == tuple(image.shape[1:])
    return image, (mask >= 128 if num_classes == 1 else mask) if fits else None


# ---- what the masks hold


def mask_values_of(path):
    """(values, how they are stored) of a mask: grey levels or (r, g, b); None if it can't be read or has many.

    stored: "grey", "palette" (indices, of a grey palette its levels), "colour", or "soft", an outline in grey levels.
    """
    try:
        with open_image(path) as file:
            if file.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
                colours = {colour for _, colour in file.convert("RGB").getcolors(256) or ()}
                if any(len(set(colour)) > 1 for colour in colours):
                    return colours, "colour"
            values = {int(value) for value in np.unique(grey_values(file))}
            soft = len(values) > GREY_LEVELS or path.suffix.lower() in (".jpg", ".jpeg")
            return values, "soft" if soft else "palette" if file.mode == "P" else "grey"
    except (ValueError, OSError):
        return None  # look_at reports it


def guess_classes(masks, report):
    """(num_classes, mask_values as flags) from what all masks hold."""
    stored = Counter(how for _, how in masks)
    if stored["soft"]:
        report.say(f"Masks: {stored['soft']} of {len(masks)} with grey outlines, read as one object with soft borders")
        return 1, ()
    values = set().union(*(found for found, _ in masks))
    if stored["colour"]:
        colours = {value if isinstance(value, tuple) else (value,) * 3 for value in values}
        colours = sorted(colours, key=lambda colour: (colour != BLACK, colour != WHITE, colour))  # likely backgrounds
        names = tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours)
        report.say(f"Masks: {len(names)} colours, {some(names)}; the first is taken for the background")
        return (1 if len(names) <= 2 else len(names)), names if len(names) > 1 else ()
    levels = sorted(values)
    report.say(f"Masks: {len(levels)} {'indices of a palette' if stored['palette'] else 'values'}, {some(levels)}")
    if set(levels) <= {0, 1, 255} and all(len(found) <= 2 for found, _ in masks):
        if len(levels) == 3:
            report.warn("some masks hold 0 and 1, others 0 and 255; both are read as background and object")
        return 1, ()
    if len(levels) <= 2:
        alone = len(levels) == 2 and any(len(found) == 1 for found, _ in masks)  # such a mask needs the pair named
        return 1, tuple(map(str, levels)) if alone else ()
    return len(levels), () if levels == list(range(len(levels))) else tuple(map(str, levels))


def flags_of(num_classes, mask_values):
    """The flags of train.py for these classes."""
    flags = [] if num_classes == 1 else ["--num-classes", str(num_classes)]
    return flags + (["--mask-values", *mask_values] if mask_values else [])


# ---- what is said


def describe_parts(folder, seen, report):
    """A line for each part: pairs, sizes, kinds of images."""
    report.lines.insert(0, f"{folder}: images and masks")
    for position, part in enumerate(dict.fromkeys(one.pair.part for one in seen), 1):
        members = [one for one in seen if one.pair.part == part]
        sizes = Counter("{}x{}".format(*one.size) for one in members if one.size)
        modes = Counter(one.mode for one in members if one.mode)
        most = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3))
        more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        kinds = ", ".join(f"{mode} ({count})" for mode, count in modes.most_common())
        line = (
            f"  {part or 'all':6}{len(members):6} pairs   sizes {most or 'unknown'}{more}   images {kinds or 'unknown'}"
        )
        report.lines.insert(position, line)


def describe_classes(seen, num_classes, mask_values, report):
    """A table of the classes: value in the masks, share of all pixels, images that hold the class."""
    counts = [one.counts for one in seen if one.counts is not None]
    if not counts:
        return
    names = (
        ["background", "object"] if num_classes == 1 else ["background", *(f"class {c}" for c in range(1, num_classes))]
    )
    total, images = np.sum(counts, 0), (np.array(counts) > 0).sum(0)
    report.say(f"  {'class':12}{'value':>10}{'pixels':>12}{'images':>9}")
    for c, name in enumerate(names):
        share = total[c] / total.sum()
        value = mask_values[c] if mask_values else "" if num_classes == 1 else str(c)
        report.say(f"  {name:12}{value:>10}{100 * share:10.3f} %{images[c]:9}")
        if share < EMPTY_CLASS:
            report.warn(f"{name} is {'nowhere' if total[c] == 0 else f'in {100 * share:.5f} % of the pixels only'}")
    shares = sorted(1 - one[0] / one.sum() for one in counts)
    low, middle, high = (100 * shares[int(q * (len(shares) - 1))] for q in (0, 0.5, 1))
    report.say(f"  all but the background covers {low:.2f} to {high:.2f} % of an image, {middle:.2f} % in the middle")


def describe_duplicates(seen, report):
    """Reports images that are in the data twice; returns {name: note} of those to look at."""
    found = find_duplicates({one.pair.name: one.fingerprint for one in seen if one.fingerprint is not None})
    part = {one.pair.name: one.pair.part for one in seen}
    notes = {}
    for kind, apart in itertools.product(("same pixels", "similar"), (True, False)):
        pairs = [d for d in found if d.kind == kind and (part[d.first] != part[d.second]) == apart]
        if not pairs:
            continue
        names = some(f"{d.first} = {d.second}" for d in pairs)
        text = f"{len(pairs)} pairs of images with {kind}" if kind == "same pixels" else f"{len(pairs)} similar pairs"
        together = "" if apart or kind == "same pixels" else ", which k-fold keeps together by --fold-group only"
        text += f" {'in different parts' if apart else 'in one part'}{together}: {names}"
        (report.problem if apart and kind == "same pixels" else report.warn)(text)
        for d in pairs:
            notes |= {d.first: f"{kind}: {d.second}", d.second: f"{kind}: {d.first}"}
    return notes


def row_of(seen, num_classes):
    """The row of files.csv."""
    width, height = seen.size or ("", "")
    row = {"part": seen.pair.part, "name": seen.pair.stem, "width": width, "height": height, "mode": seen.mode}
    for c in range(1, max(num_classes, 2)):
        row[f"class_{c}"] = "" if seen.counts is None else float(seen.counts[c] / seen.counts.sum())
    return row | {"problems": "; ".join(seen.problems), "warnings": "; ".join(seen.warnings)}


def progress(items, what, total):
    return tqdm(items, what, total, disable=None)


def command(options):
    sys.exit(main(options))


if __name__ == "__main__":
    run_command(command, Check)
