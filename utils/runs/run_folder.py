"""A run: its folder, log, table of metrics and seed.

    results/<network>_<dataset>_<date>_<time>/
        config.json     the values it runs under
        log.txt         everything the console showed
        facts.json      facts for the report: network, device, scan backend, ...
        metrics.csv     a row for each epoch
        checkpoints/    latest.pth, latest.previous.pth, best.pth

The folder is made for the run and never shared or overwritten; a resumed run continues in it.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from utils import distributed
from utils.files import RESULTS, print_any_text, printable, read_json, read_rows, reading, write_atomically, write_rows
from utils.runs.checkpoint import latest_paths, load_latest
from utils.runs.lock import locked_folder

log = logging.getLogger("vmunet")

LENGTH = ("epochs", "early_stopping")  # what a resumed run may change: its end
MAY_CHANGE = (*LENGTH, "data_path", "list_dir", "volume_path")  # and the location of its data


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and what is written into it. Each process has a Run, and only the main one writes."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.csv"

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Add a row, a dict with `epoch`, to metrics.csv; it replaces one of the same epoch. Call it before the epoch's
        checkpoint is written: a row without a checkpoint is dropped on resuming, a checkpoint without a row would
        leave a gap."""
        if distributed.is_main():
            before = [other for other in read_rows(self.metrics, "epoch") if other["epoch"] != str(row["epoch"])]
            write_rows(self.metrics, [*before, row])

    def resume(self) -> dict[str, Any] | None:
        """Return the newest complete checkpoint, or None if there is none yet. Cut metrics.csv back to it.

        Raises CheckpointError if there are checkpoints and all of them are damaged."""
        state = load_latest(self.checkpoints) if any(map(Path.exists, latest_paths(self.checkpoints))) else None
        epoch = 0 if state is None else state["epoch"]
        begun = f" and {len(state['losses'])} batches of the next" if state and state.get("losses") else ""
        log.info("resuming %s after epoch %d%s", self.folder, epoch, begun)
        if distributed.is_main() and self.metrics.exists():
            with reading(self.metrics):
                rows = read_rows(self.metrics, "epoch")
                write_rows(self.metrics, [row for row in rows if int(row["epoch"]) <= epoch])
        return state

    def extend(self, config: Any) -> None:
        """Store in config.json what a resumed run changes. If it goes on for longer, keep the scores of an earlier test
        under another name: a run with metrics.json counts as finished."""
        stored, done = self._read_json("config.json"), len(read_rows(self.metrics))
        changed = changes(stored, config)
        for name, value in changed.items():
            log.info("%s: %s instead of %s, after epoch %d", name, value, stored.get(name), done)
        if changed.keys() & set(LENGTH) and distributed.is_main() and (self.folder / "metrics.json").exists():
            (self.folder / "metrics.json").rename(self.folder / f"metrics_{stored['epochs']}_epochs.json")
        if "epochs" in changed:
            self.note("extended", f"after epoch {done}: a run of {config.epochs} epochs instead of {stored['epochs']}")
        if changed:
            self.save_json("config.json", stored | changed)

    def facts(self) -> dict[str, Any]:
        """Return the facts that `note` has stored."""
        return self._read_json("facts.json")

    def is_empty(self) -> bool:
        """Return whether the run has no epoch, no checkpoint and no prediction yet."""
        work = ("metrics.csv", "tensorboard", "predictions", "metrics.json", "checkpoints/*")
        return not any(any(self.folder.glob(name)) for name in work)

    def note(self, name: str, fact: Any, level: int | None = logging.INFO) -> None:
        """Store a fact about the run under `name` in facts.json, where the report finds it. A name keeps its last fact.

        fact   a line of text, or any plain values
        level  of the line in the log; None: no line"""
        if level is not None:
            log.log(level, "%s", fact)
        if distributed.is_main():
            self.save_json("facts.json", self.facts() | {name: fact})

    def _read_json(self, name: str) -> dict[str, Any]:
        """Return the content of <name> in the run folder, {} if the file does not exist."""
        path = self.folder / name
        return read_json(path) if path.exists() else {}

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Write plain values to <name> in the run folder."""
        if distributed.is_main():
            write_atomically(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def changes(stored: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return the values of MAY_CHANGE that differ from a stored config."""
    values = {name: getattr(config, name, None) for name in MAY_CHANGE}
    return {name: value for name, value in values.items() if stored.get(name) != value}


def scores_of_finished(config: Any) -> dict[str, Any] | None:
    """Return the scores of the run that `config.resume` names, and log how to extend it, if nothing is left to do."""
    if config.resume is None:
        return None
    run = Run(find_run(config.resume))
    scores, stored = run._read_json("metrics.json"), run._read_json("config.json")
    if not scores or changes(stored, config).keys() & set(LENGTH):
        return None
    if distributed.is_main():
        done = f"finished after epoch {len(read_rows(run.metrics))} of {config.epochs}"
        early = f" (with --early-stopping above {config.early_stopping})" if config.early_stopping else ""
        more = f"a higher --epochs extends the run{early}, --test-only {run.folder} tests it again"
        log.warning("%s is %s; %s", run.folder, done, more)
    return scores


def start_run(config: Any) -> Run:
    """Seed everything, make the run folder (or open the one of `config.resume`), start the log, store the config.

    Reads config.network, dataset, work_dir, recipe, seed, epochs, debug and resume. Under torchrun, inside
    `distributed.process_group`, all processes must call it; they get the main one's folder."""
    folder: Any = None  # the other processes get the main one's
    if config.resume is not None:
        folder = find_run(config.resume)
    elif distributed.is_main():
        folder = make_run_folder(config.work_dir or RESULTS, f"{config.network}_{config.dataset}")
    run = Run(distributed.broadcast_object(folder))
    start_log(run.folder, logging.DEBUG if config.debug else logging.INFO)
    set_seed(config.seed)
    if config.resume is None:
        run.save_json("config.json", dataclasses.asdict(config))
    log.info("run folder %s; %s, PyTorch %s", run.folder, " ".join(sys.argv), torch.__version__)
    run.note("recipe", f"recipe {config.recipe}", level=None)
    return run


@contextlib.contextmanager
def started_run(config: Any) -> Iterator[Run]:
    """Start a run in a folder that is locked against other processes for the length of the block. If the block fails
    before anything came of a new run, remove its folder.

    Raises ValueError if another process works in the folder of `config.resume`."""
    is_new, is_main = config.resume is None, distributed.is_main()
    with contextlib.ExitStack() as locks:
        if is_main and not is_new:
            locks.enter_context(locked_folder(find_run(config.resume), f"--resume {config.resume}"))
        run = start_run(config)
        if is_main and is_new:
            locks.enter_context(locked_folder(run.folder, "a new run"))
        try:
            yield run
        except BaseException:
            if is_main and is_new and run.is_empty():
                stop_log()
                shutil.rmtree(run.folder)
            raise


def make_run_folder(work_dir: str | Path, name: str) -> Path:
    """Make work_dir/<name>_<date>_<time>, with a number behind it if that is taken, and `checkpoints` in it."""
    name = re.sub(r"[^\w.-]+", "-", name)
    folder = first = Path(work_dir, f"{name}_{datetime.now():%Y-%m-%d_%H-%M-%S}")
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            try:
                folder.mkdir()
                break
            except FileExistsError:  # another run was faster
                folder = first.with_name(f"{first.name}_{number}")
        (folder / "checkpoints").mkdir()
    except OSError as error:
        raise OSError(f"--work-dir {work_dir}: found {error.strerror!r}, expected a writable folder") from error
    return folder


def find_run(path: str | Path) -> Path:
    """Return the run folder that `--resume` names, or in which it names a checkpoint. Raise FileNotFoundError."""
    path = Path(path)
    for folder in (path, path.parent, path.parent.parent):
        if path.exists() and (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"--resume {path}: found no config.json there, expected a run folder such as results/<run>")


def of_volumes(values: dict[str, Any]) -> bool:
    """Return whether a stored config (config.json, a checkpoint's) is one of train_synapse.py."""
    return "volume_resize" in values


class LogFormatter(logging.Formatter):
    """Write each message as one line: file names may contain line breaks and control sequences."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name is logging's
        return printable(super().formatMessage(record))


def log_to_console() -> None:
    """Write messages to stderr until `start_log`, and print any text."""
    print_any_text()
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])


class _Console(logging.Handler):
    """Write above the progress bars instead of through them."""

    def emit(self, record):
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except BrokenPipeError:  # nobody reads stderr any more, as after `| head`; log.txt continues
            sys.stderr = open(os.devnull, "w")


class _LogFile(logging.FileHandler):
    """Write log.txt. On a full disk it warns once and stops; the console continues."""

    def handleError(self, record):  # noqa: N802, the name is logging's
        log.removeHandler(self)
        log.warning("%s: can't be written any more (%s)", self.baseFilename, sys.exc_info()[1])


def start_log(folder: str | Path, level: int = logging.INFO) -> None:
    """Let the logger "vmunet" write to the console and to folder/log.txt. Processes other than the main one write only
    warnings, and only to the console."""
    stop_log()
    handlers, who = [_Console(logging.WARNING)], f"process {distributed.rank()}: "
    if distributed.is_main():
        handlers, who = [_Console(), _LogFile(Path(folder, "log.txt"), encoding="utf-8", errors="backslashreplace")], ""
    for handler in handlers:
        date = "%Y-%m-%d " * isinstance(handler, _LogFile)  # the console has few columns
        handler.setFormatter(LogFormatter(f"%(asctime)s {who}%(message)s", f"{date}%H:%M:%S"))
        log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False  # or a handler of the root logger would repeat every line on the console


def stop_log() -> None:
    """Close the log file and leave the logger as it was."""
    for handler in list(log.handlers):
        if isinstance(handler, _Console | logging.FileHandler):
            log.removeHandler(handler)
            handler.close()
    log.propagate = True


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, alike in each process, and keep cuDNN to deterministic algorithms."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # all devices; DropPath draws for the whole batch in each process
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
