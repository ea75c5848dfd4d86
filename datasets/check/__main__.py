"""Check a data folder before training: its content, what is wrong with it, and pictures of it.

    python -m datasets.check data/isic17
    python -m datasets.check data/own --num-classes 3 --mask-values "#000000" "#ff0000" "#0000ff"
    python -m datasets.check data/Synapse

The folder holds images and masks, as {train,val,test}/{images,masks} or {images,masks}, or has the layout of Synapse.
--num-classes, --mask-values and --ignore-label are those of training; the report lists the values in the masks.
The output folder gets report.txt, files.csv with a row for each file, and contact sheets of each part and of the files
with a problem or a warning.

Exit status 0: ready for training. 1: training would fail or its scores would be invalid (unreadable files, files
without a partner, sizes or values that do not fit, equal pixels in two parts). 2: not a data folder, or a wrong flag.
Unusual data (empty masks, similar images in two parts) is a warning and leaves the status at 0.
"""

from utils.start import run_process

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from datasets.check.check_images import check_images
from datasets.check.check_volumes import check_volumes
from utils.files import RESULTS
from utils.runs.command_line import run


@dataclass(kw_only=True)
class Check:
    folder: Annotated[str, tyro.conf.Positional]  # the data to check
    num_classes: int | None = None  # as in training; none: binary masks, or the classes of prepared volumes
    mask_values: tuple[str, ...] = ()  # as in training
    ignore_label: int | None = None  # as in training
    output: str | None = None  # folder for the report; none: results/check_<name of the folder>
    thumbnails: int = 96  # pictures on a contact sheet, spread evenly over the part
    debug: bool = False  # show the traceback of errors


def main(options: Check) -> int:
    """Write the report and print its beginning; return the exit status."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with data to train on (data/README.md)")
    output = Path(options.output or RESULTS / f"check_{folder.resolve().name}")
    if (folder / "train_npz").is_dir() or (folder / "test_vol_h5").is_dir():
        report = check_volumes(folder, options.num_classes)
    else:
        report = check_images(folder, options.num_classes, options.mask_values, options.ignore_label)
    report.save(output, options.thumbnails)
    print(report.text(shown=20), end="")
    print(f"\nContact sheets, report.txt and files.csv are in {output}")
    return 1 if report.problems else 0


def command() -> None:
    run(lambda options: sys.exit(main(options)), Check)


if __name__ == "__main__":
    run_process(command)
