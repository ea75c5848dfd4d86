"""Prepare the official ISIC downloads of 2017 or 2018 (task 1) for training: OUT/{train,val}/{images,masks}.

    python -m datasets.prepare_isic --source DOWNLOADS --out data/isic17

DOWNLOADS holds the official archives, zipped or unpacked. --split paper pools the training and validation sets and
splits them 7:3 as in the paper; --split grouped keeps all photographs of a lesion on one side. OUT/split.csv also lists
a split of the same files into train, val and test, for `train.py --protocol holdout`: its test part is the paper
split's val, and no lesion is in two parts. --split official keeps the official sets.

With the default seed the ids are those of datasets/splits/*.csv. OUT/split.csv also holds the SHA-256 of every file,
OUT/duplicates.csv the images that occur twice (datasets/duplicates.py), OUT/same_lesion.csv those that show one lesion
(datasets/lesions.py). To complete a run that was stopped or killed, repeat the command; it checks the files that exist.
"""

from utils.start import run_process

import itertools
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.downloads import Download, check_source, find_downloads
from datasets.duplicates import Duplicate, Fingerprint, find_duplicates, fingerprint
from datasets.folds import SPLIT_LIST
from datasets.image_reading import MASK_SUFFIX, read_image
from datasets.isic import find_pairs
from datasets.lesions import LISTED, SAME_LESION, components, lesion_of
from datasets.masks import MaskReader, check_same_size
from datasets.preparation_record import claim_folder, sha256
from utils.files import first_few, list_duplicates, read_rows, write_rows
from utils.machine.device import available_cpus
from utils.runs.command_line import run

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
PARTS = {"training": "train", "validation": "val", "test": "test"}
# Draws of a data set: (official sets, pairs in them, number of these for training). The paper's 1886 + 808 of 2018 are
# two draws, so that the training set alone gives the same 1815 + 779.
DRAWS: dict[str, list[tuple[tuple[str, ...], int, int]]] = {
    "isic17": [(("training", "validation"), 2150, 1500)],
    "isic18": [(("training",), 2594, 1815), (("validation",), 100, 71)],
}
OfficialPair = tuple[Download, Download]  # image, mask
HOLDOUT_VAL = 0.15  # share of the paper split's train part that selects the epoch in the three-way split
SEED = 42  # of the lists in SPLITS
SPLITS = Path(__file__).parent / "splits"
DRAWN = ("paper", "holdout", "grouped")  # splits of the training and validation set together


@dataclass(kw_only=True)
class PrepareISIC:
    source: str  # folder that holds the official archives, or folders
    out: str  # folder to write, such as data/isic17
    dataset: Literal["isic17", "isic18"] | None = None  # needed only if the source holds both
    split: Literal["paper", "grouped", "official"] = "paper"  # 7:3 of images or of lesions, or the official sets
    seed: int = SEED  # of the 7:3 splits
    resize: int | None = None  # side in pixels: PNG files that are smaller and faster to load than the official ones
    filter: Literal["box", "bilinear", "bicubic", "lanczos"] = "bilinear"  # of --resize: Pillow's, antialiased
    link: bool = False  # write symbolic links to unpacked files instead of copies
    debug: bool = False  # show the traceback of errors


def prepare(options: PrepareISIC) -> dict[str, int]:
    """Write the folder; return {part: number of pairs}."""
    if options.resize is not None and not 16 <= options.resize <= 4096:
        raise ValueError(f"--resize: found {options.resize}, expected a side of 16 to 4096 pixels")
    if options.resize is not None and options.link:
        raise ValueError("--link and --resize: found both, expected one: a link cannot change the size of a file")
    name, sets = find_sets(options.source, options.dataset, options.split)
    pairs = {id: pair for found in sets.values() for id, pair in found.items()}
    if options.split == "official":
        splits = {"official": {id: PARTS[key] for key, found in sets.items() for id in found}}
    else:
        splits = draw_splits(name, sets, options.seed)
    folders = splits[options.split]

    record = {
        "dataset": name,
        "split": options.split,
        "seed": None if options.split == "official" else options.seed,
        "resize": options.resize,
        "filter": options.filter if options.resize else None,
        "link": options.link,
        "pairs": len(pairs),
        "ids_sha256": sha256("\n".join(sorted(pairs)).encode()),
    }
    out = claim_folder(options.out, record)
    parts = [part for part in PARTS.values() if part in folders.values()]
    for part, kind in itertools.product(parts, ("images", "masks")):
        (out / part / kind).mkdir(parents=True, exist_ok=True)
    staging = out / ".partial"
    staging.mkdir(exist_ok=True)
    try:
        with ThreadPoolExecutor(available_cpus()) as pool:
            tasks = pool.map(lambda id: write_pair(id, pairs[id], out / folders[id], staging, options), pairs)
            written = dict(zip(pairs, tqdm(tasks, name, len(pairs), unit=" pairs", disable=None), strict=True))
    finally:
        shutil.rmtree(staging)
    for part in parts:
        found = {stem for stem, *_ in find_pairs(out / part / "images", out / part / "masks")}
        extra = sorted(found - {id for id, where in folders.items() if where == part})
        if extra:
            raise ValueError(f"{out / part} holds {len(extra)} pairs that do not belong there: {first_few(extra)}")

    duplicates = find_duplicates({id: fingerprint for id, (_, fingerprint) in written.items()})
    if "holdout" in splits:
        found = [(first, second) for first, second, *_ in duplicates]
        keep_apart(splits["holdout"], components([*lesion_of().items(), *found]))
    report_duplicates(out, duplicates, splits)
    report_lesions(out, splits)
    rows = [{"id": id, **{key: split[id] for key, split in splits.items()}, **written[id][0]} for id in sorted(pairs)]
    write_rows(out / SPLIT_LIST, rows)
    return {part: list(folders.values()).count(part) for part in parts}


def find_sets(
    source: str | Path, dataset: str | None = None, split: str = "paper"
) -> tuple[str, dict[str, dict[str, OfficialPair]]]:
    """Return (data set, {set: {id: OfficialPair}}) of the official sets in `source`.

    Raises FileNotFoundError if sets, or the masks of one, are missing; ValueError if files have no partner."""
    check_source(source)
    wanted = [key for key in PARTS if split == "official" or key != "test"]
    datasets = [dataset] if dataset else list(OFFICIAL)
    years: dict[str, dict[str, dict[str, OfficialPair]]] = {}
    for year, key in itertools.product(datasets, wanted):
        pairs = find_set(source, *OFFICIAL[year][key])
        if pairs is not None:
            years.setdefault(year, {})[key] = pairs
    if len(years) > 1:
        raise ValueError(f"{source} holds ISIC 2017 and 2018; expected --dataset isic17 or --dataset isic18")
    if not years:
        expected = "; ".join(" and ".join(OFFICIAL[year]["training"]) for year in datasets)
        raise FileNotFoundError(f"{source} holds none of the official folders or zip archives; expected {expected}")
    name, sets = next(iter(years.items()))
    missing = [key for key in wanted if key not in sets]
    if "training" in missing or (missing and split == "official"):
        needed = "; ".join(" and ".join(OFFICIAL[name][key]) for key in missing)
        raise FileNotFoundError(f"{source} has no {' and no '.join(missing)} set; --split {split} needs {needed}")
    twice = sorted(list_duplicates(id for pairs in sets.values() for id in pairs))
    if twice:
        raise ValueError(f"{len(twice)} images are in more than one official set of {source}: {first_few(twice)}")
    return name, sets


def find_set(source: str | Path, image_folder: str, mask_folder: str) -> dict[str, OfficialPair] | None:
    """Return {id: OfficialPair} of one official set, None if neither its images nor its masks are there."""
    images = find_downloads(source, image_folder, r"ISIC_\d{7}\.jpg")
    masks = find_downloads(source, mask_folder, rf"ISIC_\d{{7}}{MASK_SUFFIX}\.png")
    if images is None and masks is None:
        return None
    for folder, files in ((image_folder, images), (mask_folder, masks)):
        if not files:
            what = "no folder or zip archive" if files is None else "no official file in"
            raise FileNotFoundError(f"{source} has {what} {folder}; images and masks are both needed")
    by_id = [{name[: len("ISIC_0000000")]: file for name, file in (found or {}).items()} for found in (images, masks)]
    alone = sorted(by_id[0].keys() ^ by_id[1].keys())
    if alone:
        raise ValueError(f"{len(alone)} ids are in only one of {image_folder} and {mask_folder}: {first_few(alone)}")
    return {id: (by_id[0][id], by_id[1][id]) for id in sorted(by_id[0])}


def draw_splits(name: str, sets: Mapping[str, Iterable[str]], seed: int = SEED) -> dict[str, dict[str, str]]:
    """Return the splits DRAWN: paper and grouped {id: "train" or "val"}, holdout {id: "train", "val", "test" or ""}.

    An id with "" is in no part. sets: {"training": ids, "validation": ids}. With the default seed the lists in SPLITS
    assign the parts, so that an incomplete download is split like a complete one."""
    listed = published_split(name) if seed == SEED else {}
    parts: dict[str, tuple[str, ...]] = {}
    for keys, complete, train in DRAWS[name]:
        ids = sorted(id for key in keys for id in sets.get(key, ()))
        if not ids:
            continue
        number = train if len(ids) == complete else int(0.7 * len(ids))
        if len(ids) != complete:
            print(f"note: found {len(ids)} of the {complete} official pairs of {name}, {' and '.join(keys)}")
        drawn = listed if listed.keys() >= set(ids) else draw(ids, number, seed)
        parts |= {id: drawn[id] for id in ids}
    splits = {key: {id: parts[id][i] for id in sorted(parts)} for i, key in enumerate(DRAWN)}
    keep_apart(splits["holdout"], lesion_of())
    return splits


def draw(ids: Collection[str], train: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Return {id: its parts of the splits DRAWN}, with `train` ids drawn for training."""
    shuffled = sorted(ids)
    random.Random(seed).shuffle(shuffled)
    chosen = round((1 - HOLDOUT_VAL) * train)
    parts = [("train", "train")] * chosen + [("train", "val")] * (train - chosen)
    parts += [("val", "test")] * (len(ids) - train)
    grouped = draw_lesions(ids, train, seed)
    return {id: (*pair, grouped[id]) for id, pair in zip(shuffled, parts, strict=True)}


def draw_lesions(ids: Iterable[str], train: int, seed: int) -> dict[str, str]:
    """Return {id: "train" or "val"}: lesions are drawn for training while they fit into `train` images."""
    lesions, groups = lesion_of(), defaultdict(list)
    for id in sorted(ids):
        groups[lesions.get(id, id)].append(id)
    names, parts = sorted(groups), {}
    random.Random(seed).shuffle(names)
    for name in names:
        fits = len(groups[name]) <= train
        train -= fits * len(groups[name])
        parts |= dict.fromkeys(groups[name], "train" if fits else "val")
    return parts


def keep_apart(holdout: dict[str, str], lesions: Mapping[str, str]) -> None:
    """Take each id out of the split whose lesion is in a more important part too: test before val before train."""
    weights = ("", "train", "val", "test")
    most: dict[str, str] = {}
    for id, part in holdout.items():
        if id in lesions:
            most[lesions[id]] = max(part, most.get(lesions[id], ""), key=weights.index)
    for id in holdout.keys() & lesions.keys():
        if holdout[id] != most[lesions[id]]:
            holdout[id] = ""


def published_split(name: str) -> dict[str, tuple[str, ...]]:
    """Return {id: its parts of the splits DRAWN} of the list in SPLITS."""
    return {row["id"]: tuple(row[key] for key in DRAWN) for row in read_rows(SPLITS / f"{name}.csv")}


def write_pair(
    id: str, pair: OfficialPair, folder: Path, staging: Path, options: PrepareISIC
) -> tuple[dict[str, str], Fingerprint]:
    """Write and check the files of a pair. Return its columns of split.csv and its fingerprint.

    Every file is written in `staging` and then renamed, so that all files in `folder` are complete."""
    contents = [file.read_bytes() for file in pair]
    official = [sha256(content) for content in contents]
    names = [f"{id}.png", f"{id}{MASK_SUFFIX}.png"] if options.resize else [file.name for file in pair]
    targets = [folder / "images" / names[0], folder / "masks" / names[1]]
    done = all(target.is_file() for target in targets)  # each was renamed when it was complete
    if done and not options.resize:
        done = [sha256(target.read_bytes()) for target in targets] == official
    if done:
        image, _ = decode(targets, targets)
    else:
        staged = [staging / file.name for file in pair]
        for path, content in zip(staged, contents, strict=True):
            path.write_bytes(content)
        image, mask = decode(staged, [str(file) for file in pair])
        if options.resize:
            staged = [staging / f"resized-{name}" for name in names]
            for path, picture in zip(staged, resize_pair(image, mask, options.resize, options.filter), strict=True):
                picture.save(path)
            image = read_image(staged[0])
        for file, path, target in zip(pair, staged, targets, strict=True):
            if options.link:
                if file.member is not None:
                    raise ValueError(f"--link: found the archive {file.path}, expected unpacked files")
                path.unlink()
                path.symlink_to(file.path.resolve())
            os.replace(path, target)
    row = {}
    for kind, target, digest in zip(("image", "mask"), targets, official, strict=True):
        row |= {kind: str(target.relative_to(folder.parent)), f"{kind}_sha256": sha256(target.read_bytes())}
        row |= {f"official_{kind}_sha256": digest} if options.resize else {}
    return row, fingerprint(image)


def decode(paths: Sequence[Path], origins: Sequence[Path | str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (image (3, H, W), mask (1, H, W)), uint8; errors name `origins` instead of `paths`."""
    try:
        image, mask = read_image(paths[0]), MaskReader().read(paths[1])
    except ValueError as error:
        text = str(error)
        for path, origin in zip(paths, origins, strict=True):
            text = text.replace(str(path), str(origin))
        raise ValueError(text) from error
    check_same_size(image, mask, *origins)
    return image, mask


def resize_pair(image: torch.Tensor, mask: torch.Tensor, size: int, filter: str) -> tuple[Image.Image, Image.Image]:
    """Resize a pair to size x size, ignoring the aspect ratio, as in training.

    The image is resized by one of Pillow's filters, which average when they shrink. A pixel of the mask becomes lesion
    if the larger part of its area was."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    area = Image.fromarray(mask[0].numpy()).resize((size, size), Image.Resampling.BOX)
    majority = (np.asarray(area) >= 128) * np.uint8(255)
    return picture.resize((size, size), Image.Resampling[filter.upper()]), Image.fromarray(majority)


def report_duplicates(out: Path, duplicates: list[Duplicate], splits: dict[str, dict[str, str]]) -> None:
    """Write duplicates.csv; print those on both sides of a split."""
    rows = []
    for found in duplicates:
        row = found._asdict()
        for key, split in splits.items():
            first, second = split[found.first], split[found.second]
            row[key] = f"{first}|{second}"
            if first != second:
                removed = "" in (first, second)
                what = "removed from the holdout split" if removed else f"on both sides of the {key} split"
                where = f"{found.first} ({first or '-'}), {found.second} ({second or '-'})"
                print(f"duplicate, {found.kind}, {what}: {where}")
        rows.append(row)
    write_rows(out / "duplicates.csv", rows)


def report_lesions(out: Path, splits: Mapping[str, Mapping[str, str]]) -> None:
    """Write the pairs of datasets/splits/same_lesion.csv whose lesion several images show; print those on two sides."""
    lesions, ids = lesion_of(), next(iter(splits.values())).keys()
    images = Counter(lesions[id] for id in ids & lesions.keys())
    rows = [row for row in read_rows(LISTED) if images[lesions[row["first"]]] > 1]
    write_rows(out / SAME_LESION, rows)
    for key, split in splits.items():
        sides = [(row, {split.get(row["first"], ""), split.get(row["second"], "")} - {""}) for row in rows]
        apart = [f"{row['first']} = {row['second']}" for row, parts in sides if len(parts) > 1]
        if apart:
            print(f"same lesion on both sides of the {key} split, {len(apart)} pairs: {first_few(apart)}")


def main(options: PrepareISIC) -> None:
    counts = prepare(options)
    print(f"{options.out}: " + ", ".join(f"{part} {count} pairs" for part, count in counts.items()))


def command() -> None:
    run(main, PrepareISIC)


if __name__ == "__main__":
    run_process(command)
