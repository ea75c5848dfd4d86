"""The official ISIC downloads of 2017 or 2018 (task 1) as training reads them: OUT/{train,val}/{images,masks}.

    python -m datasets.prepare_isic --source DOWNLOADS --out data/isic17

DOWNLOADS holds the official archives, zipped or unpacked. --split paper pools the training and validation sets and
splits them 7:3 as in the paper. OUT/split.csv lists a second split of the same files into train, val and test, for
`train.py --protocol holdout`; its test part is the paper split's val. --split official keeps the official training,
validation and test sets.

With the default seed the ids are those of datasets/splits/*.csv, the same for everybody; other seeds draw others.
OUT/split.csv also holds the SHA-256 of every file, OUT/duplicates.csv the images found twice
(datasets/check/duplicates.py). To complete a run that was stopped or killed, repeat the command; it checks the files
that are there.
"""

import os
import random
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.check.duplicates import Duplicate, Fingerprint, find_duplicates, fingerprint
from datasets.downloads import Download, find_downloads
from datasets.folds import SPLIT_LIST
from datasets.isic import MASK_SUFFIX, check_same_size, find_pairs, read_image, read_mask
from datasets.prepared import claim_folder, sha256
from utils.files import read_rows, repeated, some, write_rows
from utils.machine.device import available_cpus
from utils.runs.command_line import run_command

OFFICIAL = {  # set: (images, masks)
    "isic17": {
        "training": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
        "validation": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
        "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
    },
    "isic18": {
        "training": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
        "validation": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
        "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    },
}
# Draws of a data set: (official sets, pairs in them, how many of these are for training). The paper's 1886 + 808 of
# 2018 are two draws, so that whoever has only the training set gets the same 1815 + 779 of it.
DRAWS: dict[str, list[tuple[tuple[str, ...], int, int]]] = {
    "isic17": [(("training", "validation"), 2150, 1500)],
    "isic18": [(("training",), 2594, 1815), (("validation",), 100, 71)],
}
HOLDOUT_VAL = 0.15  # share of the larger part that selects the epoch in the three-way split
SEED = 42  # of the lists in SPLITS
SPLITS = Path(__file__).parent / "splits"
# Found by datasets.check.duplicates in all 2150 images of 2017; the first two have equal pixels. Most are in 2018.
KNOWN_DUPLICATES = (
    ("ISIC_0012127", "ISIC_0012970"),
    ("ISIC_0012290", "ISIC_0013594"),
    ("ISIC_0012672", "ISIC_0012673"),
    ("ISIC_0012756", "ISIC_0013184"),
)
FILTERS = {name: getattr(Image.Resampling, name.upper()) for name in ("box", "bilinear", "bicubic", "lanczos")}


@dataclass(kw_only=True)
class PrepareISIC:
    source: str  # folder that holds the official archives, or folders
    out: str  # folder to write, such as data/isic17
    dataset: Literal["isic17", "isic18"] | None = None  # needed only if the source holds both
    split: Literal["paper", "official"] = "paper"  # 7:3 of training and validation set, or the official sets
    seed: int = SEED  # of the paper split
    resize: int | None = None  # side in pixels: smaller, faster files than the official ones, as PNG
    filter: Literal["box", "bilinear", "bicubic", "lanczos"] = "bilinear"  # Pillow's, antialiased; of --resize
    link: bool = False  # symbolic links to unpacked files instead of copies
    debug: bool = False  # show the traceback of errors


class Pair(NamedTuple):
    """The official files of an id."""

    image: Download
    mask: Download


class Placed(NamedTuple):
    """What split.csv and the search for duplicates need to know of a pair."""

    row: dict[str, str]
    fingerprint: Fingerprint


def prepare(options: PrepareISIC) -> dict[str, int]:
    """Writes the folder; returns {part: number of pairs}."""
    if options.resize is not None and not 16 <= options.resize <= 4096:
        raise ValueError(f"--resize {options.resize}; expected a side of 16 to 4096 pixels")
    if options.resize is not None and options.link:
        raise ValueError("--link and --resize exclude each other: a link cannot change the size of a file")
    name, sets = find_sets(options.source, options.dataset, options.split)
    pairs = {id: pair for found in sets.values() for id, pair in found.items()}
    if options.split == "official":
        parts = {"training": "train", "validation": "val", "test": "test"}
        splits = {"official": {id: parts[key] for key, found in sets.items() for id in found}}
    else:
        splits = draw_splits(name, sets, options.seed)
    folders = splits[options.split]

    out = claim_folder(options.out, record_of(options, name, sorted(pairs)))
    for part in sorted(set(folders.values())):
        for kind in ("images", "masks"):
            (out / part / kind).mkdir(parents=True, exist_ok=True)
    staging = out / ".partial"
    staging.mkdir(exist_ok=True)

    def place(id: str) -> Placed:
        return place_pair(id, pairs[id], out / folders[id], staging, options)

    try:
        with ThreadPoolExecutor(available_cpus()) as pool:
            progress = tqdm(pool.map(place, pairs), name, len(pairs), unit=" pairs", disable=None)
            placed = dict(zip(pairs, progress, strict=True))
    finally:
        shutil.rmtree(staging)
    check_folders(out, folders)

    duplicates = find_duplicates({id: pair.fingerprint for id, pair in placed.items()})
    if "holdout" in splits:
        leave_out(splits["holdout"], [(found.first, found.second) for found in duplicates])
    report(out, duplicates, splits)
    columns = [{"id": id} | {key: split[id] for key, split in splits.items()} for id in sorted(pairs)]
    write_rows(out / SPLIT_LIST, [row | placed[row["id"]].row for row in columns])
    return {part: list(folders.values()).count(part) for part in ("train", "val", "test") if part in folders.values()}


# ---- official files


def find_sets(
    source: str | Path, dataset: str | None = None, split: str = "paper"
) -> tuple[str, dict[str, dict[str, Pair]]]:
    """(data set, {set: {id: Pair}}) of the official sets in `source`.

    Raises FileNotFoundError if sets, or the masks of one, are missing; ValueError if files have no partner.
    """
    wanted = ("training", "validation") if split == "paper" else ("training", "validation", "test")
    years: dict[str, dict[str, dict[str, Pair]]] = {}
    for year in [dataset] if dataset else OFFICIAL:
        for key in wanted:
            found = [
                find_downloads(source, OFFICIAL[year][key][0], r"ISIC_\d{7}\.jpg"),
                find_downloads(source, OFFICIAL[year][key][1], rf"ISIC_\d{{7}}{MASK_SUFFIX}\.png"),
            ]
            if found != [None, None]:
                years.setdefault(year, {})[key] = pair_downloads(source, *OFFICIAL[year][key], *found)
    if len(years) > 1:
        raise ValueError(f"{source} holds ISIC 2017 and 2018; choose one with --dataset isic17 or --dataset isic18")
    if not years:
        expected = "; ".join(" and ".join(OFFICIAL[year]["training"]) for year in ([dataset] if dataset else OFFICIAL))
        raise FileNotFoundError(f"{source} holds none of the official folders or zip archives; expected {expected}")
    name, sets = next(iter(years.items()))
    missing = [key for key in wanted if key not in sets]
    if "training" in missing or (missing and split == "official"):
        needed = "; ".join(" and ".join(OFFICIAL[name][key]) for key in missing)
        raise FileNotFoundError(f"{source} has no {' and no '.join(missing)} set; --split {split} needs {needed}")
    twice = sorted(repeated(id for pairs in sets.values() for id in pairs))
    if twice:
        raise ValueError(f"{len(twice)} images are in more than one official set of {source}: {some(twice)}")
    return name, sets


def pair_downloads(
    source: str | Path,
    image_folder: str,
    mask_folder: str,
    images: dict[str, Download] | None,
    masks: dict[str, Download] | None,
) -> dict[str, Pair]:
    """{id: Pair} of the files of one official set."""
    if not images or not masks:
        folder, found = (mask_folder, masks) if images else (image_folder, images)
        what = "no folder or zip archive" if found is None else "no official file in"
        raise FileNotFoundError(f"{source} has {what} {folder}; images and masks are both needed")
    images = {name.removesuffix(".jpg"): file for name, file in images.items()}
    masks = {name.removesuffix(f"{MASK_SUFFIX}.png"): file for name, file in masks.items()}
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        raise ValueError(f"{len(alone)} ids are in only one of {image_folder} and {mask_folder}: {some(alone)}")
    return {id: Pair(images[id], masks[id]) for id in sorted(images)}


# ---- splits


def draw_splits(name: str, sets: Mapping[str, Iterable[str]], seed: int = SEED) -> dict[str, dict[str, str]]:
    """{"paper": {id: "train" or "val"}, "holdout": {id: "train", "val", "test" or "" (left out)}}.

    sets: {"training": ids, "validation": ids}. With the default seed an id is in the part that the data set's list in
    SPLITS says, so that an incomplete download is split as a complete one.
    """
    listed = published_split(name) if seed == SEED else {}
    parts: dict[str, tuple[str, str]] = {}
    for keys, complete, train in DRAWS[name]:
        ids = sorted(id for key in keys for id in sets.get(key, ()))
        if not ids:
            continue
        if len(ids) != complete:
            print(f"note: {len(ids)} of the {complete} official pairs of {name}, {' and '.join(keys)}, are here")
        if listed.keys() >= set(ids):
            parts |= {id: listed[id] for id in ids}
        else:
            parts |= draw(ids, train if len(ids) == complete else int(0.7 * len(ids)), seed)
    ids = sorted(parts)
    splits = {"paper": {id: parts[id][0] for id in ids}, "holdout": {id: parts[id][1] for id in ids}}
    leave_out(splits["holdout"], KNOWN_DUPLICATES)
    return splits


def draw(ids: Collection[str], train: int, seed: int) -> dict[str, tuple[str, str]]:
    """{id: (part of the paper split, part of the holdout split)}: `train` ids drawn by seed to learn from."""
    shuffled = sorted(ids)
    random.Random(seed).shuffle(shuffled)
    chosen = round((1 - HOLDOUT_VAL) * train)
    parts = [("train", "train")] * chosen + [("train", "val")] * (train - chosen)
    return dict(zip(shuffled, parts + [("val", "test")] * (len(ids) - train), strict=True))


def leave_out(holdout: dict[str, str], pairs: Iterable[tuple[str, str]]) -> None:
    """Empties the part of each id whose duplicate lies in a part that counts more: test before val before train."""
    weight = {"": 0, "train": 1, "val": 2, "test": 3}
    for pair in pairs:
        less, more = sorted(pair, key=lambda id: weight[holdout.get(id, "")])
        if holdout.get(less) and holdout[less] != holdout[more]:
            holdout[less] = ""


def published_split(name: str) -> dict[str, tuple[str, str]]:
    """{id: (part of the paper split, part of the holdout split)} of the list in SPLITS."""
    return {row["id"]: (row["paper"], row["holdout"]) for row in read_rows(SPLITS / f"{name}.csv")}


# ---- files


def record_of(options: PrepareISIC, name: str, ids: list[str]) -> dict:
    """What the folder is made of."""
    return {
        "dataset": name,
        "split": options.split,
        "seed": options.seed if options.split == "paper" else None,
        "resize": options.resize,
        "filter": options.filter if options.resize else None,
        "link": options.link,
        "pairs": len(ids),
        "ids_sha256": sha256("\n".join(ids).encode()),
    }


def place_pair(id: str, pair: Pair, folder: Path, staging: Path, options: PrepareISIC) -> Placed:
    """Puts the files of a pair into folder/images and folder/masks, decodes and checks them.

    Every file is written in `staging` and then renamed, so that all files in `folder` are whole.
    """
    contents = [file.read() for file in pair]
    official = [sha256(content) for content in contents]
    staged = [staging / file.name for file in pair]
    if options.resize:
        targets = [folder / "images" / f"{id}.png", folder / "masks" / f"{id}{MASK_SUFFIX}.png"]
    else:
        targets = [folder / "images" / pair.image.name, folder / "masks" / pair.mask.name]
    done = all(target.is_file() for target in targets)  # each was renamed when it was whole
    if done and not options.resize:
        done = [sha256(target.read_bytes()) for target in targets] == official
    if done:
        image, _ = decode(targets, targets)
    else:
        for path, content in zip(staged, contents, strict=True):
            path.write_bytes(content)
        image, mask = decode(staged, [file.origin for file in pair])
        if options.resize:
            image, mask = resize_pair(image, mask, options.resize, FILTERS[options.filter])
            staged = [path.with_name(f"resized-{path.name}").with_suffix(".png") for path in staged]
            for path, array in zip(staged, (image.permute(1, 2, 0), mask[0]), strict=True):
                Image.fromarray(array.numpy()).save(path)
        for file, path, target in zip(pair, staged, targets, strict=True):
            if options.link:
                if file.member is not None:
                    raise ValueError(f"--link needs unpacked files; {file.path} is an archive")
                path.unlink()
                path.symlink_to(file.path.resolve())
            os.replace(path, target)
    row = {}
    for kind, target, digest in zip(("image", "mask"), targets, official, strict=True):
        row |= {kind: str(target.relative_to(folder.parent)), f"{kind}_sha256": sha256(target.read_bytes())}
        row |= {f"official_{kind}_sha256": digest} if options.resize else {}
    return Placed(row, fingerprint(image))


def decode(paths: Sequence[Path], origins: Sequence[Path | str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(image (3, H, W), mask (1, H, W)), uint8, of two files; errors name `origins` instead of `paths`."""
    try:
        image, mask = read_image(paths[0]), read_mask(paths[1])
    except ValueError as error:
        text = str(error)
        for path, origin in zip(paths, origins, strict=True):
            text = text.replace(str(path), str(origin))
        raise ValueError(text) from error
    check_same_size(image, mask, *origins)
    return image, mask


def resize_pair(
    image: torch.Tensor, mask: torch.Tensor, size: int, filter: Image.Resampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair at size x size, not keeping the aspect ratio, as training resizes; uint8.

    The image is resized by one of Pillow's filters, which average when they shrink. A pixel of the mask becomes lesion
    if the larger part of its area was.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), filter)
    area = Image.fromarray(mask[0].numpy()).resize((size, size), Image.Resampling.BOX)
    majority = (np.asarray(area) >= 128) * np.uint8(255)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1), torch.from_numpy(majority)[None]


def check_folders(out: Path, folders: dict[str, str]) -> None:
    """Raises ValueError if a folder holds pairs that do not belong there."""
    for part in sorted(set(folders.values())):
        found = {stem for stem, _, _ in find_pairs(out / part / "images", out / part / "masks")}
        extra = sorted(found - {id for id, where in folders.items() if where == part})
        if extra:
            raise ValueError(f"{out / part} holds {len(extra)} pairs that do not belong there: {some(extra)}")


def report(out: Path, duplicates: list[Duplicate], splits: dict[str, dict[str, str]]) -> None:
    """Writes duplicates.csv; prints those on both sides of a split."""
    rows = []
    for found in duplicates:
        sides = {key: f"{split[found.first]}|{split[found.second]}" for key, split in splits.items()}
        rows.append(found._asdict() | sides)
        for key, split in splits.items():
            here = {split[found.first], split[found.second]}
            if len(here) > 1:
                what = "left out of the holdout split" if "" in here else f"on both sides of the {key} split"
                where = f"{found.first} ({split[found.first] or '-'}), {found.second} ({split[found.second] or '-'})"
                print(f"duplicate, {found.kind}, {what}: {where}")
    write_rows(out / "duplicates.csv", rows)


def main(options: PrepareISIC) -> None:
    counts = prepare(options)
    print(f"{options.out}: " + ", ".join(f"{part} {count} pairs" for part, count in counts.items()))


if __name__ == "__main__":
    run_command(main, PrepareISIC)
