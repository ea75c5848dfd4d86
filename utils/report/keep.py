"""Keeps the records of a run: what its numbers can be traced by, without pictures of data and without weights."""

import shutil
from pathlib import Path

from utils.report.records import Record

# Of these, what a run has. The log is left out: it names the machine and its folders.
KEPT = ("config.json", "facts.json", "metrics.csv", "metrics.json", "test_images.csv", "test_volumes.csv", "curves.png")


def keep_records(source: str | Path, folder: str | Path) -> Path:
    """Copies the small records of a run into a new folder, from which reports and comparisons can be made, too.

    Raises FileNotFoundError and ValueError for what is no run, FileExistsError for a folder that is there."""
    run, target = Record(Path(source)), Path(folder)
    if target.exists():
        raise FileExistsError(f"--keep {target}: found a folder or file there, expected a new one")
    target.mkdir(parents=True)
    for name in KEPT:
        path = run.file(name)
        if path is not None:
            shutil.copyfile(path, target / name)
    return target
