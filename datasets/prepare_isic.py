"""Split the official ISIC training and validation sets 7:3 into the layout that training reads.

    python -m datasets.prepare_isic --source FOLDER --out data/isic17 --seed 42

FOLDER holds the official folders of ISIC 2017 or of ISIC 2018 (task 1) as they unpack. Both sets are pooled as in the
original's experiments: ISIC17 2150 pairs = 1500 + 650, ISIC18 2694 = 1886 + 808. The original's split is not published.
With --three-way the smaller part becomes `test`, and 15 % of the larger one `val` (config protocol "holdout").
The command can be repeated after an interruption: files that are there are kept.
"""

import argparse
import json
import os
import random
import shutil
from pathlib import Path

from datasets.files import some
from datasets.isic import find_pairs

# name: ((images, masks), ...), number of pairs, of which for training
OFFICIAL = {
    "isic17": (
        (
            ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
            ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
        ),
        2150,
        1500,
    ),
    "isic18": (
        (
            ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
            ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
        ),
        2694,
        1886,
    ),
}


def official_folders(source):
    """(data set name, [(images, masks)]) of the official folders in `source`; raises FileNotFoundError without them."""
    for name, (folders, _, _) in OFFICIAL.items():
        present = [pair for pair in folders if any((Path(source) / folder).is_dir() for folder in pair)]
        for folder in (folder for pair in present for folder in pair):
            if not (Path(source) / folder).is_dir():
                raise FileNotFoundError(f"{source} has no folder {folder}; images and masks are both needed")
        if present:
            return name, [tuple(Path(source) / folder for folder in pair) for pair in present]
    expected = "; ".join(folder for folders, _, _ in OFFICIAL.values() for pair in folders for folder in pair)
    raise FileNotFoundError(f"{source} holds none of the official folders; expected {expected}")


def split_pairs(pairs, name, seed, three_way=False):
    """{"train": pairs, "val": pairs}, each sorted: drawn by seed, of the published size if the set is complete.

    three_way: {"train": ..., "val": ..., "test": ...} with the published validation part as test.
    """
    _, complete, train = OFFICIAL[name]
    if len(pairs) != complete:
        print(f"{len(pairs)} pairs, not the {complete} of the published experiments; 70 % are taken for training")
        train = round(0.7 * len(pairs))
    shuffled = sorted(pairs)
    random.Random(seed).shuffle(shuffled)
    if not three_way:
        return {"train": sorted(shuffled[:train]), "val": sorted(shuffled[train:])}
    val = round(0.85 * train)
    return {"train": sorted(shuffled[:val]), "val": sorted(shuffled[val:train]), "test": sorted(shuffled[train:])}


def place(source, target, link):
    """Copy or link a file, so that an interruption leaves no half file under the target's name."""
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    if link:
        partial.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, partial)
    os.replace(partial, target)


def prepare(source, out, seed=42, link=False, three_way=False):
    """Write `out/{train,val}/{images,masks}` and `out/split.json`; returns {"train": count, "val": count}."""
    name, folders = official_folders(source)
    pairs = [pair for images, masks in folders for pair in find_pairs(images, masks)]
    stems = [stem for stem, _, _ in pairs]
    if len(set(stems)) < len(stems):
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        raise ValueError(f"{len(twice)} images are in more than one folder of {source}: {some(twice)}")
    split = split_pairs(pairs, name, seed, three_way)

    record = {"dataset": name, "seed": seed, **{part: [stem for stem, _, _ in split[part]] for part in split}}
    out = Path(out)
    recorded = out / "split.json"
    if recorded.is_file() and json.loads(recorded.read_text()) != record:
        raise ValueError(f"{recorded} records another split (other seed or files); remove {out} or give another --out")
    if not recorded.is_file() and (out / "train").exists():
        raise ValueError(f"{out} holds data that this tool has not split; remove it or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    partial = out / ".split.json.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, recorded)

    for part, members in split.items():
        for kind, position in (("images", 1), ("masks", 2)):
            folder = out / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            for pair in members:
                place(pair[position], folder / pair[position].name, link)
        found = [stem for stem, _, _ in find_pairs(out / part / "images", out / part / "masks")]
        if found != record[part]:
            extra = sorted(set(found) - set(record[part]))
            raise ValueError(f"{out / part} holds {len(extra)} pairs that are not in {recorded}: {some(extra)}")
    return {part: len(members) for part, members in split.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder that holds the official folders")
    parser.add_argument("--out", required=True, help="folder to write, such as data/isic17")
    parser.add_argument("--seed", type=int, default=42, help="seed of the split (default 42)")
    parser.add_argument("--three-way", action="store_true", help="train, val and test instead of train and val")
    parser.add_argument("--link", action="store_true", help="make symbolic links instead of copies")
    options = parser.parse_args()
    counts = prepare(options.source, options.out, options.seed, options.link, options.three_way)
    print(f"{options.out}: " + ", ".join(f"{part} {count} pairs" for part, count in counts.items()))


if __name__ == "__main__":
    main()
