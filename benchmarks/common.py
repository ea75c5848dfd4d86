"""What the benchmarks on CPUs share: the machine they ran on, medians of runs that take turns, tables, the report."""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from utils.files import write_atomically
from utils.machine.device import available_cpus
from utils.machine.fast_matmul import use_fast_matmuls
from utils.machine.memory import keep_freed_memory


def start(description, name):
    """A benchmark's command line and log. Returns the path for its report; `name` is part of the default."""
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results", "benchmarks", f"{name}.json"), metavar="FILE",
                        help="where to write the numbers (default: %(default)s)")  # fmt: skip
    return parser.parse_args().output


def environment():
    """The machine and the libraries. Sets PyTorch up as training does."""
    keep_freed_memory()
    return {
        "processor": processor(),
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        "spin count": os.environ.get("GOMP_SPINCOUNT", "default"),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "fast products": use_fast_matmuls(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numba", "numpy")},
    }


def processor():
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


TURN = 0.2  # seconds


def medians(runs, rounds):
    """Median wall times in ms of several functions, {name: function}.

    They take turns, so that whatever else the machine does meanwhile touches all of them. A turn is one call, or as
    many as fit into TURN. What comes before the first round is not counted."""
    times = {name: [] for name in runs}
    for number in range(1 + rounds):
        for name, run in runs.items():
            began, spent = time.perf_counter(), 0
            while spent < TURN:
                run()
                before, spent = spent, time.perf_counter() - began
                if number > 0:
                    times[name].append(1e3 * (spent - before))
    return {name: statistics.median(values) for name, values in times.items()}


def in_new_process(function, *args):
    """function(*args) in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def cell(value):
    if isinstance(value, float) and value:
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


class Report:
    """Tables on the console as they are finished, and all of them in one JSON file."""

    def __init__(self, path):
        self.path, self.content = path, {"environment": environment()}
        print(", ".join(f"{name} {value}" for name, value in self.content["environment"].items()), flush=True)

    def table(self, title, rows):
        """Prints rows, dicts with the same keys, and writes the file with them."""
        self.content[title] = rows
        cells = [list(rows[0])] + [[cell(value) for value in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}")
        for first, *others in cells:
            numbers = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
            print("  ".join([first.ljust(widths[0]), *numbers]), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.content, indent=1).encode() + b"\n")
