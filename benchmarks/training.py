"""Training on this machine's CPU by `train.py`: images per second, and the share of time spent waiting for data.

    python -m benchmarks.training [--output FILE]

Trains two epochs of three published batches of 32 on images of data/isic17, or on crops of data/samples without that
folder. The numbers are those of the second epoch; the first one loads the scan's code and decodes the images."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import make_photographs
from utils.files import REPOSITORY, read_rows
from utils.machine.device import has_bf16

IMAGES = 96
ISIC17 = REPOSITORY / "data/isic17"
FLAGS = ("--dataset", "own", "--recipe", "published", "--load-ckpt-path", "none", "--epochs", "2", "--device", "cpu")


def link_images(folder: Path, count: int) -> None:
    """Fill a folder with the first pairs of data/isic17/train."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        for path in sorted((ISIC17 / "train" / kind).iterdir())[:count]:
            (folder / kind / path.name).symlink_to(path)


def measure(data: Path, precision: str, work_dir: Path) -> dict[str, Any]:
    """Return a row: speed and waiting in the second epoch of train.py."""
    command = [sys.executable, REPOSITORY / "train.py", *FLAGS, "--data-path", data, "--precision", precision]
    subprocess.run([*command, "--work-dir", work_dir], check=True)
    last = read_rows(next(work_dir.glob("*/metrics.csv")))[-1]
    rate, waiting = float(last["images_per_second"]), 100 * float(last["waiting_share"])
    return {"precision": precision, "images/s": rate, "waiting for data, %": waiting}


def main() -> None:
    report = common.start(__doc__, "training")
    make = link_images if ISIC17.is_dir() else make_photographs
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "data")
        make(data / "train", IMAGES)
        make(data / "val", 1)
        precisions = ("fp32", "bf16") if has_bf16() else ("fp32",)
        report.table("training", [measure(data, precision, Path(name, precision)) for precision in precisions])


if __name__ == "__main__":
    main()
