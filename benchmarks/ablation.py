"""Which part of the stable recipe keeps training from random weights alive: one part at a time taken away.

    python -m benchmarks.ablation --output ablation --gpus 0 1 --together 2   # every row, two at once on each card
    python -m benchmarks.ablation --output ablation --table                     # the table of what is there
    python -m benchmarks.ablation --output ablation --rows published_5e-4 --dataset isic18

Every row is a run of train.py on the schedule of a whole run, ended after --until epochs. Rows that got there are not
run again. Further flags go to every run. docs/collapse.md shows the table.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from utils.files import read_rows
from utils.runs.lost import LossOfScore

ROOT = Path(__file__).parents[1]
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


def parse_options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs, one in it for each row")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--until", type=int, default=120, help="epochs")
    parser.add_argument("--gpus", nargs="+", default=["0"], help="numbers of the cards")
    parser.add_argument("--together", type=int, default=1, help="runs at once on each card")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    return parser.parse_known_args()


def epochs_of(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv of the row's longest run; [] before its first epoch."""
    return max((read_rows(path) for path in folder.glob("*/metrics.csv")), key=len, default=[])


def run_all(options: argparse.Namespace, flags: list[str]) -> None:
    """Runs the rows, as many at once as there are places, and ends each after its epochs."""
    waiting = [row for row in options.rows if len(epochs_of(options.output / row)) < options.until]
    places = [gpu for _ in range(options.together) for gpu in options.gpus]
    running: dict[str, tuple[str, subprocess.Popen]] = {}
    ended: set[str] = set()  # rows whose process was told to end
    try:
        while waiting or running:
            while waiting and places:
                row, gpu = waiting.pop(0), places.pop(0)
                running[row] = gpu, start(row, gpu, options.output, flags)
            time.sleep(1)
            for row, (gpu, process) in list(running.items()):
                if row not in ended and len(epochs_of(options.output / row)) >= options.until:
                    process.send_signal(signal.SIGTERM)  # the batch is finished, everything saved
                    ended.add(row)
                if process.poll() is not None:
                    print(
                        f"{row}: {len(epochs_of(options.output / row))} epochs, exit {process.returncode}", flush=True
                    )
                    places.append(gpu)
                    del running[row]
    finally:
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)


def start(row: str, gpu: str, output: Path, flags: list[str]) -> subprocess.Popen:
    folder = output / row
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), *SHARED, *ROWS[row], "--work-dir", str(folder), *flags]
    with open(folder / "output.txt", "ab") as log:
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def table(options: argparse.Namespace) -> Iterator[str]:
    """The lines of a Markdown table: highest mIoU and its epoch, the mIoU of the last epoch, and from when on it is
    lost (utils/runs/lost.py)."""
    yield "| Row | Epochs | Highest mIoU (epoch) | Last mIoU | Lost from epoch |"
    yield "|---|---|---|---|---|"
    for row in options.rows:
        epochs = epochs_of(options.output / row)
        if epochs:
            watch = LossOfScore()
            watch.replay(epochs)
            best = max(epochs, key=lambda values: float(values["miou"]))
            highest, last = (f"{100 * float(values['miou']):.2f}" for values in (best, epochs[-1]))
            yield f"| {row} | {len(epochs)} | {highest} ({best['epoch']}) | {last} | {watch.since or ''} |"


def main() -> None:
    options, flags = parse_options()
    if not options.table:
        run_all(options, flags)
    print("\n".join(table(options)))


if __name__ == "__main__":
    main()
