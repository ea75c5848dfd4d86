"""Copies the records of a run: what its numbers can be traced by, without pictures of data and without weights."""

import shutil
from pathlib import Path

from report.records import Record

# Without the log, which names the machine and its folders.
JSON, TABLES = ("config.json", "facts.json", "metrics.json"), ("metrics.csv", "test_images.csv", "test_volumes.csv")


def copy_record(run: Record, folder: str | Path) -> Path:
    """Copy the small records of a run into a new folder, from which reports can be made too."""
    target = Path(folder)
    if target.exists():
        raise FileExistsError(f"--keep {target}: found a folder or file there, expected a new one")
    target.mkdir(parents=True)
    for name in (*JSON, *TABLES, "curves.png"):
        path = run.file(name)
        if path is not None:
            shutil.copyfile(path, target / name)
    return target
