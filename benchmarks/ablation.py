"""Ablation of the stable recipe: training from random weights without one of its parts at a time.

    python -m benchmarks.ablation --output ablation --gpus 0 1 --together 2   # every row, two at once on each card
    python -m benchmarks.ablation --output ablation --table                     # the table of the existing runs
    python -m benchmarks.ablation --output ablation --rows published_5e-4 --dataset isic18

Every row is a run of train.py with the schedule of a whole run, ended after --until epochs. Finished rows are not run
again. Further flags go to every run. docs/collapse.md shows the table.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from utils.files import REPOSITORY, read_rows
from utils.runs.collapse import CollapseDetector

SHARED = ("--dataset", "isic17", "--load-ckpt-path", "none", "--precision", "bf16", "--save-interval", "1000")
ONE_COSINE = ("--sch", "CosineAnnealingLR", "--sch-args", "T_max", "300")
ROWS: dict[str, tuple[str, ...]] = {
    "published_fp32": ("--recipe", "published", "--precision", "fp32"),
    "stable": ("--recipe", "stable"),
    "no_warmup": ("--recipe", "stable", *ONE_COSINE),
    "no_warmup_and_restarts": ("--recipe", "stable", "--sch", "CosineAnnealingLR"),
    "no_clipping": ("--recipe", "stable", "--clip-grad-norm", "None"),
    "one_angle": ("--recipe", "stable", "--rotation", "run"),
    "decay_of_all": ("--recipe", "stable", "--decay", "all"),
    "published_5e-4": ("--recipe", "published", "--lr", "5e-4"),
}


def epochs_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv of the longest run in a folder; [] before its first epoch."""
    return max((read_rows(path) for path in folder.glob("*/metrics.csv")), key=len, default=[])


def run_all(options: argparse.Namespace, flags: list[str]) -> None:
    """Run the rows that are not finished, --together at once on each card."""
    gpus = Queue[str]()
    for gpu in options.gpus * options.together:
        gpus.put(gpu)
    rows = [row for row in options.rows if len(epochs_of(options.output / row)) < options.until]
    stop = threading.Event()
    with ThreadPoolExecutor(gpus.qsize()) as pool:
        try:
            for line in pool.map(lambda row: run_row(row, gpus, options, flags, stop), rows):
                print(line, flush=True)
        finally:
            stop.set()  # after Ctrl-C


def run_row(row: str, gpus: "Queue[str]", options: argparse.Namespace, flags: list[str], stop: threading.Event) -> str:
    """Run train.py for a row on a free card and end it after --until epochs, or when `stop` is set."""
    gpu, folder = gpus.get(), options.output / row
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPOSITORY / "train.py"), *SHARED, *ROWS[row], "--work-dir", str(folder), *flags]
    with open(folder / "output.txt", "ab") as log:
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    while process.poll() is None and not stop.wait(1) and len(epochs_of(folder)) < options.until:
        pass
    process.send_signal(signal.SIGTERM)  # train.py finishes the batch and saves
    status = process.wait()
    gpus.put(gpu)
    return f"{row}: {len(epochs_of(folder))} epochs, exit status {status}"


def table(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a Markdown table: highest mIoU and its epoch, last mIoU, and the epoch of the collapse."""
    yield "| Row | Epochs | Highest mIoU (epoch) | Last mIoU | Lost from epoch |"
    yield "|---|---|---|---|---|"
    for row in options.rows:
        epochs = epochs_of(options.output / row)
        if epochs:
            watch = CollapseDetector()
            watch.replay(epochs)
            best = max(epochs, key=lambda values: float(values["miou"]))
            highest, last = (f"{100 * float(values['miou']):.2f}" for values in (best, epochs[-1]))
            yield f"| {row} | {len(epochs)} | {highest} ({best['epoch']}) | {last} | {watch.since or ''} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs, one in it for each row")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--until", type=int, default=120, help="epochs")
    parser.add_argument("--gpus", nargs="+", default=["0"], help="numbers of the cards")
    parser.add_argument("--together", type=int, default=1, help="runs at once on each card")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    options, flags = parser.parse_known_args()
    if not options.table:
        run_all(options, flags)
    print("\n".join(table(options)))


if __name__ == "__main__":
    main()
