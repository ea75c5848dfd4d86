"""What the benchmarks share: the machine they ran on, medians of runs that take turns, tables, the report."""

import argparse
import importlib.metadata
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from models.cpu_settings import tune_cpu
from utils.files import write_atomically
from utils.machine.device import available_cpus

T = TypeVar("T")


def start(description: str | None, name: str) -> "Report":
    """The command line and log of a benchmark on CPUs, which sets PyTorch up as training does. `name` is that of its
    file in results/benchmarks."""
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("results", "benchmarks", f"{name}.json")
    what = "where to write the numbers (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=default, metavar="FILE", help=what)
    path = parser.parse_args().output
    return Report(path, environment(tune_cpu()))


def environment(fast_matmuls: bool) -> dict[str, Any]:
    """The machine and the libraries."""
    return {
        "processor": processor(),
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "fast matmuls": fast_matmuls,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numba", "numpy")},
    }


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


TURN = 0.2  # seconds


def medians(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median wall times in ms of several functions, {name: function}.

    They take turns, so that whatever else the machine does affects all of them alike. A turn is one call, or as many
    as fit into TURN. A first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(1 + rounds):
        for name, run in runs.items():
            began, spent = time.perf_counter(), 0.0
            while spent < TURN:
                run()
                before, spent = spent, time.perf_counter() - began
                if number > 0:
                    times[name].append(1e3 * (spent - before))
    return {name: statistics.median(values) for name, values in times.items()}


def in_new_process(function: Callable[..., T], *args: Any) -> T:
    """function(*args) in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def cell(value: Any) -> str:
    if isinstance(value, float) and value:
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


class Report:
    """Tables on the console as they are finished, and all of them in one JSON file."""

    def __init__(self, path: Path, environment: dict[str, Any]):
        self.path = path
        self.content: dict[str, Any] = {"environment": environment}
        print(", ".join(f"{name} {value}" for name, value in environment.items()), flush=True)

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Prints rows, whose keys are the columns, and writes the file with them."""
        self.content[title] = rows
        self._write()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [columns] + [[cell(row.get(column, "")) for column in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}", flush=True)
        for first, *others in cells if rows else []:
            numbers = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
            print("  ".join([first.ljust(widths[0]), *numbers]), flush=True)

    def add(self, title: str, item: Any) -> None:
        """Puts an item into a list that is only in the file."""
        self.content.setdefault(title, []).append(item)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.content, indent=1).encode() + b"\n")
