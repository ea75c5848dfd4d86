"""Splitting a folder's pairs into train, val and test: by subfolders, by a list in the folder, or by k folds. Those of
volumes are nnU-Net's."""

import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.isic import Pair, find_pairs
from datasets.lesions import SAME_LESION, components, lesion_of
from utils.files import first_few, list_duplicates, normal_name, read_rows

log = logging.getLogger("vmunet")

SPLIT_LIST = "split.csv"  # written by datasets.prepare_isic: a row for each id, a column for each protocol


def find_split(root: str | Path, split: str, config: Any) -> list[Pair]:
    """Return [(stem, image path, mask path)] of "train", "val" or "test", sorted by stem.

    These are the pairs of root/split, with two exceptions:
      config.folds       train and val are drawn from all pairs outside of root/test, by `fold_of`; the images of a
                         lesion stay together if root holds a list of them (datasets/lesions.py)
      protocol holdout   without a folder root/test, the column `holdout` of root/split.csv assigns the pairs"""
    root = Path(root)
    if config.folds and split != "test":
        pairs = pooled_pairs(root)
        stems, lesions = [stem for stem, _, _ in pairs], lesion_of(root / SAME_LESION)
        absent = sorted(lesions.keys() - set(stems))
        if absent and len(absent) == len(lesions):
            expected = f"expected images of {root}, without their endings"
            raise ValueError(f"{root / SAME_LESION}: found only other names: {first_few(absent)}; {expected}")
        if split == "train" and lesions:
            shown = [lesions[stem] for stem in stems if stem in lesions]
            together = f"{len(shown)} images of {len(set(shown))} lesions stay together in folds"
            others = f"; {len(absent)} names are not among the images: {first_few(absent)}" if absent else ""
            log.info("%s: %s", root / SAME_LESION, together + others)
        fold = fold_of(stems, config.folds, config.fold_seed, config.fold_group, lesions)
        return [pair for pair in pairs if (fold[pair[0]] == config.fold) == (split == "val")]
    if config.protocol == "holdout" and not config.folds and not (root / "test").is_dir():
        return listed_pairs(root, split)
    return find_pairs(root / split / "images", root / split / "masks")


def pooled_pairs(root: str | Path) -> list[Pair]:
    """Return the pairs of root/{images,masks}, or of root/train and root/val together."""
    split = [Path(root, part) for part in ("train", "val") if Path(root, part).is_dir()]
    parts = [Path(root)] if Path(root, "images").is_dir() else split
    if not parts:
        raise FileNotFoundError(f"{root} has no images and masks, nor train/images and train/masks (data/README.md)")
    pairs = sorted(pair for part in parts for pair in find_pairs(part / "images", part / "masks"))
    twice = list_duplicates(stem for stem, _, _ in pairs)
    if twice:
        found = f"{len(twice)} names are in both train and val of {root}"
        raise ValueError(f"{found}: {first_few(twice)}; expected each once")
    return pairs


def listed_pairs(root: str | Path, split: str) -> list[Pair]:
    """Return the pairs whose column `holdout` in root/split.csv is `split`."""
    path = Path(root, SPLIT_LIST)
    if not path.is_file():
        expected = f"train, val and test, or a {SPLIT_LIST} from datasets.prepare_isic (data/README.md)"
        raise FileNotFoundError(f"--protocol holdout: {root} has no folder test; expected {expected}")
    wanted = {normal_name(row["id"]) for row in read_rows(path, "id", "holdout") if row["holdout"] == split}
    pairs = [pair for pair in pooled_pairs(root) if pair[0] in wanted]
    missing = sorted(wanted - {stem for stem, _, _ in pairs})
    if missing or not wanted:
        found = f"{len(wanted)} pairs for {split}, {len(missing)} of them missing"
        raise ValueError(f"{path} lists {found}: {first_few(missing)}")
    return pairs


def fold_of(
    stems: Iterable[str], folds: int, seed: int = 42, group: str = "", lesions: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return {stem: fold}: `folds` parts of nearly equal size, drawn by seed, the same on every machine.

    group: a regular expression. Stems in which it matches the same text (its first parenthesis, if it has one) stay
    together, for example all images of a patient. lesions: {stem: lesion}; groups that show a lesion in common stay
    together too. Larger groups are placed first, each in the smallest part so far, as in scikit-learn's GroupKFold,
    which may reorder groups of equal size from version to version."""
    name_of = {stem: group_of(stem, group) for stem in sorted(stems)}
    shown: dict[str, str] = {}  # {lesion: the first group that shows it}
    linked = components(
        (name, shown.setdefault((lesions or {}).get(stem, stem), name)) for stem, name in name_of.items()
    )
    groups = defaultdict(list)
    for stem, name in name_of.items():
        groups[linked[name]].append(stem)
    if not 2 <= folds <= len(groups):
        what = f"groups of {sum(map(len, groups.values()))} images" if group or lesions else "images"
        raise ValueError(f"--folds: found {folds}, expected 2..{len(groups)}, the number of {what}")
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    sizes = [0] * folds
    fold: dict[str, int] = {}
    for name in sorted(names, key=lambda name: -len(groups[name])):  # stable: equal sizes stay shuffled
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(groups[name])
        fold |= dict.fromkeys(groups[name], smallest)
    return fold


def nnunet_folds(cases: Mapping[str, str], folds: int, seed: int) -> dict[str, int]:
    """Return {case: fold} of {case: its group}, which stays in one fold. If each case is a group, 5 and 12345 give the
    folds of nnU-Net: scikit-learn's KFold(folds, shuffle=True, random_state=seed) over the sorted names."""
    groups = sorted({*cases.values()})
    if not 2 <= folds <= len(groups):
        raise ValueError(f"--folds: found {folds}, expected 2..{len(groups)}, the number of patients")
    parts = np.array_split(np.random.RandomState(seed).permutation(len(groups)), folds)
    fold = {groups[i]: number for number, part in enumerate(parts) for i in part}
    return {case: fold[group] for case, group in cases.items()}


def group_of(stem: str, group: str) -> str:
    """Return the text that `group` matches in a stem; the stem itself without a group."""
    if not group:
        return stem
    try:
        match = re.search(group, stem)
    except re.error as error:
        raise ValueError(f"--fold-group: found {group!r}, expected a regular expression: {error}") from None
    if match is None:
        raise ValueError(f"--fold-group {group!r}: found no match in {stem}, expected one in every name")
    return match[1] if match.re.groups else match[0]
