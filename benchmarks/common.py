"""Shared by the benchmarks: command line, inputs, timing, tables, and the report of the machine and the numbers."""

import argparse
import importlib.metadata
import json
import logging
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from models.cpu_settings import tune_cpu
from utils.files import REPOSITORY, write_atomically
from utils.losses import BceDiceWithLogitsLoss
from utils.machine.device import available_cpus

T = TypeVar("T")

STAGES = {0: (64, 192, 6, 3), 1: (32, 384, 12, 4), 2: (16, 768, 24, 4), 3: (8, 1536, 48, 4)}
# of VM-UNet at 256 x 256: side of the map, inner channels I, rank R of the steps, number of scans
TURN = 0.2  # seconds, see `medians`
SIDE = 256  # of a photograph


def start(description: str | None, name: str, *arguments: str, tune: bool = True) -> "Report":
    """Parse the command line of a benchmark on CPUs and begin its report.

    name       of the report's default file in results/benchmarks
    arguments  names of positional arguments, which are paths
    tune       set up PyTorch as training does
    """
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in arguments:
        parser.add_argument(argument, type=Path)
    default = Path("results", "benchmarks", f"{name}.json")
    what = "where to write the numbers (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=default, metavar="FILE", help=what)
    options = parser.parse_args()
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else "")
    machine = {
        "processor": models[0] if models else platform.machine(),
        "cores": available_cpus(),
        "fast matmuls": tune and tune_cpu(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numba", "numpy")},
    }
    return Report(options.output, machine, options)


class Report:
    """Prints tables as they are finished, and writes all of them to one JSON file."""

    def __init__(self, path: Path, machine: dict[str, Any], options: argparse.Namespace | None = None):
        self.path, self.options = path, options or argparse.Namespace()
        self.content: dict[str, Any] = {"environment": machine}
        print(", ".join(f"{name} {value}" for name, value in machine.items()), f"\nnumbers go to {path}", flush=True)

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Print rows, whose keys are the columns, and write them to the file."""
        self.content[title] = rows
        self._write()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [columns] + [[_cell(row.get(column, "")) for column in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}", flush=True)
        for first, *numbers in cells if rows else []:
            print(first.ljust(widths[0]), *map(str.rjust, numbers, widths[1:]), sep="  ", flush=True)

    def add(self, title: str, item: Any) -> None:
        """Append an item to a list that is only in the file."""
        self.content.setdefault(title, []).append(item)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.content, indent=1).encode() + b"\n")


def _cell(value: Any) -> str:
    if isinstance(value, float) and value:
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def medians(runs: Mapping[str, Callable], rounds: int, clock: Callable = time.perf_counter) -> dict[str, float]:
    """Return the median times in ms of several functions, {name: function}.

    They take turns, so that other load on the machine affects all of them alike. A turn is one call, or as many as fit
    into TURN. A first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(1 + rounds):
        for name, run in runs.items():
            begin, spent = clock(), 0.0
            while spent < TURN:
                run()
                before, spent = spent, clock() - begin
                if number > 0:
                    times[name].append(1e3 * (spent - before))
    return {name: statistics.median(values) for name, values in times.items()}


def in_new_process(function: Callable[..., T], *args: Any) -> T:
    """Call function(*args) in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def make_images(batch: int, size: int) -> Tensor:
    """Return random images as train.py gives them to a network, (batch, 3, size, size)."""
    return 255 * torch.rand(batch, 3, size, size)


def make_photographs(folder: Path, count: int) -> None:
    """Fill a folder with photographs and masks: crops of the samples, in four orientations."""
    samples = sorted(Path(REPOSITORY, "data/samples/images").glob("*.jpg"))
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        with Image.open(samples[number % len(samples)]) as sample:
            corner, turn = random.integers(SIDE // 8), 90 * int(random.integers(4))
            photograph = sample.convert("RGB").crop((corner, corner, *sample.size)).resize((SIDE, SIDE)).rotate(turn)
        photograph.save(folder / "images" / f"{number:03d}.jpg", quality=92)
        photograph.convert("L").point(lambda grey: 255 * (grey < 128)).save(folder / "masks" / f"{number:03d}.png")


def training_step(model: nn.Module, images: Tensor, autocast: Callable = nullcontext) -> Callable[[], None]:
    """Return a function that makes one step of AdamW on the images, with the loss of train.py.

    autocast  makes the context of the forward"""
    model.train()
    optimizer, criterion = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), BceDiceWithLogitsLoss()
    masks = torch.rand(len(images), 1, *images.shape[2:]).round().to(images.device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            logits = model(images)
        criterion(logits, masks).backward()
        optimizer.step()

    return step
