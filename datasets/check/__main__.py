"""Looks at a folder of data before training: what is in it, what is wrong with it, and pictures of it.

    python -m datasets.check data/isic17
    python -m datasets.check data/own --num-classes 3 --mask-values "#000000" "#ff0000" "#0000ff"
    python -m datasets.check data/Synapse

The folder holds images and masks, as {train,val,test}/{images,masks} or {images,masks}, or has the layout of Synapse,
with train_npz, test_vol_h5 and lists. Without --num-classes and --mask-values the values in the masks decide what the
classes are, and the report says with which flags to train.

Written to --output: report.txt, files.csv with a row for each file, and contact sheets as PNG, one for each part and
one of the files that have a problem or a warning.

Exit status 0: nothing stands against training. 1: something would stop it or spoil its scores (unreadable files, files
without a partner, sizes or values that do not fit, equal pixels in two parts). 2: not a folder of data, or a wrong
flag. The unusual (empty masks, similar images in two parts) is a warning and leaves the status at 0.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from configs.config_setting_synapse import SynapseConfig
from datasets.check.images import check_images
from datasets.check.report import join
from datasets.check.synapse import check_synapse, is_synapse
from datasets.classes import with_classes
from utils.files import write_atomically, write_rows
from utils.repository import RESULTS
from utils.runs.command_line import run_command


@dataclass(kw_only=True)
class Check:
    folder: Annotated[str, tyro.conf.Positional]  # the data to look at
    num_classes: int | None = None  # as in training; none: found out from the masks
    mask_values: tuple[str, ...] = ()  # as in training
    output: str | None = None  # folder for the report; none: results/check_<name of the folder>
    thumbnails: int = 96  # pictures on a contact sheet, spread evenly over the part
    debug: bool = False  # show the traceback of errors


def main(options: Check) -> int:
    """Writes the report and prints its beginning; returns the exit status."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with data to train on (data/README.md)")
    output = Path(options.output or RESULTS / f"check_{folder.resolve().name}")
    if is_synapse(folder):
        number = options.num_classes or SynapseConfig.num_classes
        config = with_classes(SynapseConfig(dataset="own", data_path=str(folder), num_classes=number))
        sections = check_synapse(folder, config.structures, output, options.thumbnails)
    else:
        sections = check_images(folder, options.num_classes, options.mask_values, output, options.thumbnails)
    report = join(sections)
    write_rows(output / "files.csv", report.rows)
    write_atomically(output / "report.txt", report.text().encode())
    print(report.text(shown=20), end="")
    print(f"\nContact sheets, report.txt and files.csv are in {output}")
    return 1 if report.problems else 0


def command(options: Check) -> None:
    sys.exit(main(options))


if __name__ == "__main__":
    run_command(command, Check)
