"""Prepare the raw volumes of the BTCV challenge for training: OUT/{train_npz,test_vol_h5,lists}, TransUNet's layout.

    python -m datasets.prepare_synapse --source RawData.zip --out data/Synapse

The source is the official archive, or a folder, with img/imgXXXX.nii.gz and label/labelXXXX.nii.gz; imgXXXX becomes
caseXXXX. Each volume is converted as follows; nothing is resampled:

  orientation   slices from foot to head, rows from front to back, columns from the patient's right to the left
  intensities   Hounsfield units are clipped to [-125, 275] and scaled to 0..1, float32; values that are scaled already
                stay; others need --window; NaN, which lies outside the field of view, becomes 0
  labels        the eight organs of the paper become 1..8 (datasets/synapse.py), the other five background
  geometry      h5 attributes: `spacing` (3,), mm between slices, rows and columns; `affine` (4, 4), from (column, row,
                slice) to the scanner's mm; `orientation`, the directions in which these three indices grow

The published lists (datasets/splits/synapse: 2211 slices of 18 cases, 12 volumes) assign the cases to training and
testing, or those in --lists. With the published lists, lists/list_Synapse_holdout keeps three of the training cases for
`train_synapse.py --protocol holdout`. OUT/cases.csv describes each case. Repeat the command to complete a stopped run.
"""

from utils.start import run_process

import functools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.downloads import Download, by_name, check_source, zip_members
from datasets.intensities import HU_WINDOW, Window, to_unit
from datasets.nifti import own_orientation
from datasets.preparation_record import claim_folder, sha256
from datasets.synapse import HOLDOUT_LISTS, ORGANS, ORIENTATION, case_of_slice, read_list
from datasets.volume_sources import CaseFiles, read_case
from datasets.volume_writing import Conversion, Task, present_classes, size_columns, write_cases, write_list
from utils.files import files_below, first_few, write_atomically
from utils.runs.command_line import run

BTCV_ORGANS = (  # BTCV's labels 1, 2, ...; those that are not in ORGANS become background
    *("spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta"),
    *("vena cava", "portal vein", "pancreas", "right adrenal", "left adrenal"),
)
CLASS_OF_LABEL = {0: 0} | {n: ORGANS.index(o) + 1 if o in ORGANS else 0 for n, o in enumerate(BTCV_ORGANS, 1)}
PUBLISHED_LISTS = Path(__file__).parent / "splits" / "synapse"
HOLDOUT_CASES = ("case0005", "case0009", "case0026")  # three of the 18, drawn once: random.Random(42).sample
IMAGE, LABEL = r"img(\d{4})\.nii(?:\.gz)?", r"label(\d{4})\.nii(?:\.gz)?"
OBLIQUE = 1.0  # degrees that an axis may differ from the patient's
LISTS = ("train.txt", "test_vol.txt", "val_vol.txt", "all.lst")


@dataclass(kw_only=True)
class PrepareSynapse:
    source: str  # RawData.zip, or a folder with it or with img and label
    out: str = "data/Synapse"  # folder to write
    lists: str | None = None  # folder with train.txt and test_vol.txt; none: the published lists
    window: Window | None = None  # for volumes that are not in Hounsfield units: values in place of -125 and 275
    debug: bool = False  # show the traceback of errors


def prepare(options: PrepareSynapse) -> tuple[int, int]:
    """Write the folder; return (number of slices, number of volumes)."""
    lists = Path(options.lists or PUBLISHED_LISTS)
    slices = slices_of_cases(read_list(lists, "train.txt"), lists / "train.txt")
    names = ["test_vol.txt"] + ["val_vol.txt"] * (lists / "val_vol.txt").is_file()
    volumes = {case for name in names for case in read_list(lists, name)}
    if lists == PUBLISHED_LISTS:
        volumes |= set(HOLDOUT_CASES)
    listed = sorted(slices.keys() | volumes)
    files = find_volumes(options.source, listed)
    missing = [case for case in listed if case not in files]
    if missing:
        found = f"{len(missing)} of {len(listed)} cases of {lists} are not in {options.source}: {first_few(missing)}"
        raise FileNotFoundError(f"{found}; expected all of them (--lists FOLDER for other lists)")
    existing = [name for name in LISTS if (lists / name).is_file()]
    content = b"".join((lists / name).read_bytes() for name in existing)
    window = list(options.window or HU_WINDOW)
    out = claim_folder(options.out, {"dataset": "synapse", "lists_sha256": sha256(content), "hu_window": window})
    write_cases(
        out,
        [Task(case, files[case], slices.get(case, []), case in volumes) for case in listed],
        read_case,
        conversion(options.window),
        lambda task, raw, case: {
            "case": task.name,
            **size_columns(case),
            "orientation_of_file": own_orientation(np.asarray(raw.affine)),  # known, see `Conversion`
            "organs": present_classes(case, ORGANS),
        },
    )
    holdout = out / "lists" / HOLDOUT_LISTS
    for target in [out / "lists" / "list_Synapse"] + [holdout] * (lists == PUBLISHED_LISTS):
        target.mkdir(parents=True, exist_ok=True)
        for name in existing:
            write_atomically(target / name, (lists / name).read_bytes())
    if lists == PUBLISHED_LISTS:
        train = [name for name in read_list(lists, "train.txt") if case_of_slice(name) not in HOLDOUT_CASES]
        write_list(holdout / "train.txt", train)
        write_list(holdout / "val_vol.txt", HOLDOUT_CASES)
    return sum(map(len, slices.values())), len(volumes)


def conversion(window: Window | None = None) -> Conversion:
    scale = functools.partial(to_unit, window=window)
    return Conversion(scale, CLASS_OF_LABEL, ORIENTATION, label_type="float32", largest_tilt=OBLIQUE)


def slices_of_cases(names: Iterable[str], path: Path) -> dict[str, list[int]]:
    """Return {case: [slice numbers]} of names such as case0005_slice000."""
    cases = defaultdict(list)
    for name in names:
        match = re.fullmatch(r"(case\d{4})_slice(\d{3})", name)
        if match is None:
            raise ValueError(f"{path} holds {name!r}; expected names such as case0005_slice000")
        cases[match[1]].append(int(match[2]))
    return cases


def find_volumes(source: str | Path, listed: Collection[str]) -> dict[str, CaseFiles]:
    """Return {case: its files} of a zip archive, or of a folder that holds RawData.zip or unpacked files.

    Raises FileNotFoundError if there are none, ValueError if a listed case has only an image or only a label. The
    challenge's test cases, which have no labels, are ignored."""
    source = Path(source)
    check_source(source)
    archives = [path for path in (source, source / "RawData.zip") if path.is_file()]
    unpacked = [Download(path) for path in files_below(source) if path.match("*.nii*") and path.is_file()]
    files = zip_members(archives[0]) if archives else unpacked
    images, labels = (
        {re.sub(pattern, r"case\1", name): file for name, file in by_name(files, pattern, source).items()}
        for pattern in (IMAGE, LABEL)
    )
    if not images:
        raise FileNotFoundError(f"{source} holds no img/imgXXXX.nii.gz; expected RawData.zip or folders img and label")
    alone = [(images.get(case) or labels[case]).name for case in listed if (case in images) != (case in labels)]
    if alone:
        raise ValueError(f"{len(alone)} volumes of {source} have an image or a label, not both: {first_few(alone)}")
    return {case: CaseFiles(images[case], labels[case]) for case in sorted(images.keys() & labels.keys())}


def main(options: PrepareSynapse) -> None:
    slices, volumes = prepare(options)
    print(f"{options.out}: {slices} slices to train on, {volumes} whole volumes; arrays run {ORIENTATION}")


def command() -> None:
    run(main, PrepareSynapse)


if __name__ == "__main__":
    run_process(command)
