"""From a command to its first result: predict.py to its mask, train.py to its first step. Goals are for two CPU cores.

    python -m benchmarks.startup [--output FILE]

In rounds, beside `import torch` alone, because the speed of a shared machine changes. Processor time is user and
system, of all threads and of data workers that have ended."""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import common
from utils.files import REPOSITORY

ROUNDS, IMAGES = 5, 2150  # as many images as ISIC17 has to train on and to validate on
GOALS = {"predict.py isic17, one photograph, to its mask": 5, "train.py, small network, to its first step": 8}
OWN = "--dataset own --load-ckpt-path none".split()
SMALL = "--depths 1 1 1 1 --depths-decoder 1 1 1 1 --dims 8 16 32 64 --d-state 4".split()
UNTIL_FIRST_STEP = """
import sys; sys.path.insert(0, {root!r})
import utils.start, os, runpy
from torch.optim.optimizer import register_optimizer_step_post_hook
trained = lambda optimizer: any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
register_optimizer_step_post_hook(lambda optimizer, *_: os._exit(0) if trained(optimizer) else None)
runpy.run_path({script!r}, run_name="__main__")
"""


def commands(root: Path, folder: Path, number: int) -> dict[str, list[str]]:
    """Return the command lines to measure, of the checkout `root`; `number` is different each time."""
    photograph, data = folder / "data/val/images/000.jpg", folder / "data"
    train = UNTIL_FIRST_STEP.format(root=str(root), script=str(root / "train.py"))
    runs = [
        [str(root / "predict.py"), "isic17", str(photograph), "--output", str(folder / f"masks {number}")],
        ["-c", train, "--data-path", str(data), "--work-dir", str(folder / f"run {number}"), *OWN, *SMALL],
    ]
    named = {"import torch": ["-c", "import torch"]} | dict(zip(GOALS, runs, strict=True))
    return {name: [sys.executable, *arguments] for name, arguments in named.items()}


def measure(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its seconds and those of its processors. Raises CalledProcessError if it fails."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows_of(times: Mapping[str, Sequence[tuple[float, float]]]) -> list[dict[str, object]]:
    """Return a row for each command: medians over the rounds, and how many times `import torch` in the same run."""
    medians = {name: [statistics.median(column) for column in zip(*all, strict=True)] for name, all in times.items()}
    return [
        {"command": name, "s": seconds, "processor s": processor, "goal, s": GOALS.get(name, "")}
        | {"in imports of torch": seconds / medians["import torch"][0]}
        for name, (seconds, processor) in medians.items()
    ]


def main() -> None:
    report = common.start(__doc__, "startup", tune=False)
    with tempfile.TemporaryDirectory() as name:
        folder, times = Path(name), dict[str, list[tuple[float, float]]]()
        common.make_photographs(folder / "data/train", IMAGES - 150)
        common.make_photographs(folder / "data/val", 150)
        for number in range(ROUNDS + 1):
            for title, command in commands(Path(REPOSITORY), folder, number).items():
                found = measure(command)
                if number:  # the first round may compile kernels
                    times.setdefault(title, []).append(found)
        report.table("from the command on, medians", rows_of(times))


if __name__ == "__main__":
    main()
