"""The part of datasets.check that looks at volumes in the layout of Synapse."""

import hashlib
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs.config_setting_synapse import ORGANS
from datasets.check.contact_sheet import Cell, save_sheet, spread
from datasets.synapse import SynapseSlices, SynapseVolumes, read_list
from datasets.transforms import RandomGenerator
from utils.files import some

OUTSIDE = 0.5  # how far values may lie beyond 0..1, in which interpolation overshoots a little
PICTURES_OF_VOLUME = 4


def is_synapse(folder):
    return (folder / "train_npz").is_dir() or (folder / "test_vol_h5").is_dir()


def check(folder, num_classes, output, thumbnails, report):
    """Looks at every listed slice and volume under `folder`; writes a sheet of each list into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    report.say(f"{folder}: slices and volumes in the layout of Synapse")
    lists = sorted(path for path in (folder / "lists").glob("*") if (path / "train.txt").is_file())
    if not lists:
        report.problem(f"{folder / 'lists'} holds no folder with train.txt and test_vol.txt")
    names = list(ORGANS) if num_classes == len(ORGANS) + 1 else [f"class {c}" for c in range(1, num_classes)]
    seen = defaultdict(Part)
    for list_dir in lists:
        check_overlap(list_dir, report)
        for list_name in ("train.txt", "val_vol.txt", "test_vol.txt"):
            if (list_dir / list_name).is_file():
                look_at_list(folder, list_dir, list_name, num_classes, seen, report)
    seen = {name: part for name, part in seen.items() if part.files}
    for name, part in seen.items():
        part.describe(name, report)
    describe_classes(seen, names, report)
    for list_dir in lists:
        describe_duplicates(list_dir, seen, report)
    for name, part in seen.items():
        cells = spread(part.cells, thumbnails)
        which = "of each case the slice with most organs" if name == "train.txt" else "spread over the volumes"
        title = f"{name}, {which}: {len(cells)} slices"
        save_sheet(output / f"{name.removesuffix('.txt')}.png", title, cells, num_classes, names)


class Part:
    """What the files of one list look like."""

    def __init__(self):
        self.files = {}  # name: pixels of each class
        self.sizes, self.spacings = Counter(), Counter()
        self.hashes = {}  # name: {SHA-256 of a slice: what it is called}
        self.cells = []

    def describe(self, name, report):
        sizes = ", ".join(f"{size} ({count})" for size, count in self.sizes.most_common(3))
        more = f" and {len(self.sizes) - 3} more" if len(self.sizes) > 3 else ""
        spacings = ", ".join(f"{spacing} ({count})" for spacing, count in self.spacings.most_common(3))
        line = f"  {name:13}{len(self.files):6} {'slices' if name == 'train.txt' else 'volumes'}   sizes {sizes}{more}"
        report.say(line + (f"   spacing in mm {spacings}" if spacings else ""))


def check_overlap(list_dir, report):
    """A case must be in one list only."""
    cases = {}
    for name in ("train.txt", "val_vol.txt", "test_vol.txt"):
        if not (list_dir / name).is_file():
            if name != "val_vol.txt":
                report.problem(f"{list_dir} has no {name}")
            continue
        for case in dict.fromkeys(line.split("_slice")[0] for line in read_list(list_dir, name)):
            cases.setdefault(case, []).append(name)
    twice = [f"{case} ({' and '.join(names)})" for case, names in cases.items() if len(names) > 1]
    if twice:
        report.problem(f"{list_dir}: {len(twice)} cases are in several lists: {some(twice)}")


def look_at_list(folder, list_dir, list_name, num_classes, seen, report):
    """Reads all files of a list that were not read for another one."""
    try:
        if list_name == "train.txt":
            dataset = SynapseSlices(folder / "train_npz", list_dir, RandomGenerator(32), num_classes)
        else:
            dataset = SynapseVolumes(folder / "test_vol_h5", list_dir, num_classes, list_name)
    except (ValueError, OSError) as error:
        report.problem(str(error))
        return
    read = dataset.decode if list_name == "train.txt" else dataset.__getitem__
    part = seen[list_name]
    best = {}  # of each case the slice with most organs
    for index, name in enumerate(tqdm(dataset.names, f"{list_dir.name}/{list_name}", disable=None)):
        if name in part.files:
            continue
        problems, warnings = [], []
        try:
            image, label, *rest = read(index)
        except (ValueError, OSError) as error:
            report.problem(str(error))
            report.rows.append({"list": list_name, "name": name, "problems": str(error)})
            continue
        image, label = np.asarray(image), np.asarray(label)
        part.files[name] = counts = np.bincount(label.ravel(), minlength=num_classes)
        part.sizes["x".join(map(str, image.shape))] += 1
        path = Path(dataset.files[index])
        if not np.isfinite(image).all():
            problems.append(f"{path} holds values that are not finite")
        elif image.min() < -OUTSIDE or image.max() > 1 + OUTSIDE:
            problems.append(f"{path} holds values from {image.min():g} to {image.max():g}; expected 0..1")
        elif image.min() == image.max():
            warnings.append("constant image")
        spacing = ""
        if rest:
            spacing = "unknown" if rest[1] is None else " x ".join(f"{mm:.3g}" for mm in rest[1])
            part.spacings[spacing] += 1
            if rest[1] is None:
                warnings.append("no spacing, so HD95 is in voxels in both protocols")
        slices = [(name, image, label)] if image.ndim == 2 else [
            (f"{name} slice {i}", image[i], label[i]) for i in range(len(image))
        ]  # fmt: skip
        part.hashes[name] = {
            hashlib.sha256(np.ascontiguousarray(picture)).hexdigest(): title
            for title, picture, _ in slices
            if picture.min() < picture.max()
        }
        if image.ndim == 2:
            case = name.split("_slice")[0]
            if case not in best or (label > 0).sum() > best[case][0]:
                best[case] = (label > 0).sum(), Cell(name, lambda i=image, l=label: (i, l))
        else:
            with_organs = [one for one in slices if one[2].any()] or slices
            part.cells += [
                Cell(title, lambda i=picture, l=organs: (i, l))
                for title, picture, organs in spread(with_organs, PICTURES_OF_VOLUME)
            ]
        report.problems += problems
        report.warnings += [f"{name}: {text}" for text in warnings]
        shares = {f"class_{c}": float(counts[c] / counts.sum()) for c in range(1, num_classes)}
        size = dict(zip(("rows", "columns"), image.shape[-2:], strict=True))
        slices_of_file = 1 if image.ndim == 2 else len(image)
        row = {"list": list_name, "name": name, "slices": slices_of_file, **size, "spacing": spacing, **shares}
        report.rows.append(row | {"problems": "; ".join(problems), "warnings": "; ".join(warnings)})
    part.cells += [cell for _, cell in best.values()]


def describe_classes(seen, names, report):
    """A table of the organs: share of all voxels, and slices or volumes that hold them, for each list."""
    if not seen:
        return
    report.say(f"  {'class':16}" + "".join(f"{name + ' voxels':>22}{'in':>8}" for name in seen))
    for c, organ in enumerate(["background", *names]):
        columns = []
        for name, part in seen.items():
            counts = np.array(list(part.files.values()))
            share, holding = counts[:, c].sum() / counts.sum(), (counts[:, c] > 0).sum()
            columns.append(f"{100 * share:20.3f} %{holding:8}")
            if holding == 0:
                report.warn(f"{organ} is nowhere in {name}")
        report.say(f"  {organ:16}" + "".join(columns))


def describe_duplicates(list_dir, seen, report):
    """Slices of equal values in two lists of a folder."""
    hashes = {}
    for list_name, part in seen.items():
        names = read_list(list_dir, list_name) if (list_dir / list_name).is_file() else []
        hashes[list_name] = {key: title for name in names for key, title in part.hashes.get(name, {}).items()}
    for one, other in itertools.combinations(hashes, 2):
        common = sorted(hashes[one].keys() & hashes[other].keys(), key=hashes[one].get)
        if common:
            names = some(f"{hashes[one][key]} = {hashes[other][key]}" for key in common)
            report.problem(f"{list_dir}: {len(common)} slices with equal values are in {one} and {other}: {names}")
