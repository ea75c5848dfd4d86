"""Which pairs of a folder belong to train, val and test: by its subfolders, by a list in it, or by k folds."""

import random
import re
from collections.abc import Iterable
from pathlib import Path

from configs.config_setting import ISICConfig
from datasets.isic import Pair, find_pairs
from utils.files import read_rows, repeated, some

SPLIT_LIST = "split.csv"  # written by datasets.prepare_isic: a row for each id, a column for each protocol


def find_split(root: str | Path, split: str, config: ISICConfig) -> list[Pair]:
    """[(stem, image path, mask path)] of "train", "val" or "test", sorted by stem.

    They are the pairs of root/split, except that
      with config.folds       train and val are drawn from all pairs outside of root/test, by `fold_of`
      with protocol holdout   and no folder root/test, the column `holdout` of root/split.csv says who belongs where
    """
    root = Path(root)
    if config.folds and split != "test":
        pairs = pooled_pairs(root)
        fold = fold_of([stem for stem, _, _ in pairs], config.folds, config.fold_seed, config.fold_group)
        if not isinstance(config.fold, int) or not 0 <= config.fold < config.folds:
            raise ValueError(f"fold is {config.fold}; expected 0..{config.folds - 1} for folds {config.folds}")
        return [pair for pair in pairs if (fold[pair[0]] == config.fold) == (split == "val")]
    if config.protocol == "holdout" and not config.folds and not (root / "test").is_dir():
        return listed_pairs(root, split)
    return find_pairs(root / split / "images", root / split / "masks")


def pooled_pairs(root: str | Path) -> list[Pair]:
    """The pairs of root/{images,masks}, or of root/train and root/val together."""
    parts = [Path(root)] if Path(root, "images").is_dir() else [Path(root, part) for part in ("train", "val")]
    parts = [part for part in parts if part == Path(root) or part.is_dir()]
    if not parts:
        raise FileNotFoundError(f"{root} has no images and masks, nor train/images and train/masks (data/README.md)")
    pairs = sorted(pair for part in parts for pair in find_pairs(part / "images", part / "masks"))
    twice = repeated(stem for stem, _, _ in pairs)
    if twice:
        raise ValueError(f"{len(twice)} names are in both train and val of {root}: {some(twice)}; expected each once")
    return pairs


def listed_pairs(root: str | Path, split: str) -> list[Pair]:
    """The pairs whose column `holdout` in root/split.csv is `split`."""
    path = Path(root, SPLIT_LIST)
    if not path.is_file():
        raise FileNotFoundError(
            f"--protocol holdout: {root} has no folder test; expected train, val and test, or a list {SPLIT_LIST} of "
            "datasets.prepare_isic (data/README.md)"
        )
    rows = read_rows(path)
    if not rows or not {"id", "holdout"} <= rows[0].keys():
        raise ValueError(f"{path} has no columns id and holdout; expected a list of datasets.prepare_isic")
    wanted = {row["id"] for row in rows if row["holdout"] == split}
    pairs = [pair for pair in pooled_pairs(root) if pair[0] in wanted]
    missing = sorted(wanted - {stem for stem, _, _ in pairs})
    if missing or not wanted:
        raise ValueError(f"{path} lists {len(wanted)} pairs for {split}, {len(missing)} are not there: {some(missing)}")
    return pairs


def fold_of(stems: Iterable[str], folds: int, seed: int = 42, group: str = "") -> dict[str, int]:
    """{stem: fold}: `folds` parts of nearly equal size, drawn by seed, the same on every machine.

    group: a regular expression; stems in which it matches the same text (its first parenthesis, if it has one) belong
    together, for example all images of a patient. Larger groups are placed first, each in the smallest part so far.
    scikit-learn's GroupKFold deals in the same way, but can't be used: with its own shuffle it balances the numbers of
    groups, not of images, and after ours the parts depend on its version, which may reorder groups of equal size.
    """
    stems = sorted(stems)
    groups: dict[str, list[str]] = {}
    for stem in stems:
        groups.setdefault(group_of(stem, group), []).append(stem)
    if not 2 <= folds <= len(groups):
        what = f"groups of {len(stems)} images" if group else "images"
        raise ValueError(f"folds is {folds}; expected 2..{len(groups)}, the number of {what}")
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    sizes = [0] * folds
    fold: dict[str, int] = {}
    for name in sorted(names, key=lambda name: -len(groups[name])):  # stable: equal sizes stay shuffled
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(groups[name])
        fold |= dict.fromkeys(groups[name], smallest)
    return fold


def group_of(stem: str, group: str) -> str:
    """What `fold_group` matches in a stem; the stem itself without a group."""
    if not group:
        return stem
    try:
        match = re.search(group, stem)
    except re.error as error:
        raise ValueError(f"fold_group is {group!r}, not a regular expression: {error}") from None
    if match is None:
        raise ValueError(f"fold_group {group!r} matches nothing in the name {stem}; expected a match in every name")
    return match[1] if match.re.groups else match[0]
