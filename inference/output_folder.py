"""The output folder of predict.py: its table, the record of networks and options, and the list of unused files."""

import dataclasses
import errno
import fnmatch
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from inference.inputs import ABOUT, RESULTS, Exclusion, Input
from inference.prediction_options import ResultOptions
from utils import distributed
from utils.files import (
    TEMPORARY_NAME,
    first_few,
    printable,
    read_json,
    read_rows,
    reading,
    write_atomically,
    write_rows,
)
from utils.runs.lock import HOLDER, LOCK

log = logging.getLogger("vmunet")

Existing = Literal["refuse", "skip", "overwrite"]

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other input could be saved either


class OutputFolder:
    """A folder for the results of inputs, and its table structures.csv with a row for each input and structure.

    Under torchrun process N writes its rows into structures.N.csv. `gather`, or the next command if this one is killed,
    merges them into the table of the main process.

    path      a new or empty folder, or one of earlier results
    existing  what to do with earlier results
    names     {input: the name of its results}
    dicom_seg whether DICOM series get a DICOM-SEG too
    scored    whether the table gets Dice scores; inputs of an earlier table without them are predicted again

    Raises ValueError if results would be mixed with others, or with files that predict.py did not write."""

    def __init__(
        self,
        path: str | Path,
        existing: Existing,
        names: dict[Input, str],
        dicom_seg: bool = False,
        scored: bool = False,
    ):
        self.path, self.existing, self.names, self.dicom_seg = Path(path), existing, names, dicom_seg
        self.table = self.table_of(distributed.rank())
        self.todo = list(names)  # inputs that remain to be predicted
        self.rows: list[dict[str, Any]] = []
        self.exclusions: list[Exclusion] = []  # of left_out.csv
        self.saved: list[Input] = []  # by this command
        self.unsaved = 0  # results that are not in the table yet
        present = sorted({p.name for p in self.path.iterdir()} - {LOCK, HOLDER}) if self.path.is_dir() else []
        if torn := fnmatch.filter(present, TEMPORARY_NAME):  # `locked_folder` removes them
            log.warning("--output %s: a command was killed while it wrote %s", path, first_few(torn))
            present = [name for name in present if name not in torn]
        if self.path.exists() and (not self.path.is_dir() or (present and existing == "refuse")):
            advice = "--existing skip predicts what is missing, --existing overwrite everything"
            raise ValueError(f"--output {path}: found files, expected a new or empty folder; {advice}")
        if present and ABOUT not in present and present != ["log.txt"]:  # a run that is stopped at once leaves its log
            raise ValueError(f"--output {path}: found {first_few(present, 3)}, expected a new folder or one of results")
        if existing == "skip":
            rows = read_rows(self.table_of(0), "name", "input")
            merged = {row["input"] for row in rows}
            for part in self.parts():
                rows += [row for row in read_rows(part, "name", "input") if row["input"] not in merged]
            done = {row["input"]: row["name"] for row in rows if "dice" in row or not scored}
            self.todo = [i for i in names if not self.has_results(i, done.get(printable(i.path), ""))]
            again = {printable(item.path) for item in self.todo}
            self.rows = [row for row in rows if row["input"] not in again]
            used = {row["name"] for row in self.rows}
            others = [names[item] for item in self.todo if names[item] in used]
            if others:
                raise ValueError(f"--output {path}: found results of other inputs of these names: {first_few(others)}")
            if not distributed.is_main():
                self.rows = []  # the main process keeps them

    def table_of(self, rank: int) -> Path:
        """Return the table that a process writes."""
        return self.path / (f"structures.{rank}.csv" if rank else "structures.csv")

    def parts(self) -> list[Path]:
        """Return the tables of the processes other than the main one, which may be left of a killed command."""
        return sorted(self.path.glob("structures.[0-9]*.csv"))

    def check_same(self) -> None:
        """Wait for all processes. Raises ValueError if they do not have the same inputs left to predict."""
        names = "\n".join(f"{self.names[item]}\t{printable(item.path)}" for item in self.todo)
        found = distributed.all_gather((len(self.todo), hashlib.sha256(names.encode()).hexdigest()))
        if len(set(found)) > 1:
            counts = ", ".join(str(count) for count, _ in found)
            raise ValueError(f"INPUT: found {counts} inputs in the processes, expected the same inputs in each")

    def begin(self, record: dict[str, Any]) -> None:
        """Write the networks and options of the results. Raises ValueError if earlier results that stay have others.

        With `existing` overwrite remove the earlier table, or a later `skip` could take its masks for results of the
        new network. Warn about earlier results that no input overwrites."""
        path, text = self.path / ABOUT, json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        if self.existing == "skip" and path.exists():
            with reading(path):
                before, now = read_json(path), json.loads(text)
                options, members = before["options"], before.get("members", [before])
                fields = dataclasses.fields(ResultOptions)
                different = [f.name for f in fields if options.get(f.name, f.default) != now["options"][f.name]]
                if [member["sha256"] for member in members] != [member["sha256"] for member in now["members"]]:
                    different.append("checkpoint")
            if different:
                names = ", ".join(different)
                raise ValueError(f"--existing skip: found results of another {names} in {self.path}, expected the same")
        if self.existing == "overwrite":
            tables = [self.table, *self.parts()]
            rows = [row for table in tables for row in read_rows(table, "name")]
            if earlier := {row["name"] for row in rows} - set(self.names.values()):
                count, shown = len(earlier), first_few(sorted(earlier))
                log.warning("%s keeps earlier results of %d other inputs: %s", self.path, count, shown)
            for table in tables:
                table.unlink(missing_ok=True)
        write_atomically(path, text.encode())
        self.merge(self.parts())

    def mask_of(self, item: Input, name: str) -> Path:
        return self.path / "masks" / f"{name}{'.nii.gz' if item.is_volume else '.png'}"

    def has_results(self, item: Input, name: str) -> bool:
        """Return whether the mask of an input and, if it gets one, its DICOM-SEG exist under this name."""
        without_seg = not self.dicom_seg or item.format != "dicom"
        segmentation = self.path / "dicom_seg" / f"{name}.dcm"
        return self.mask_of(item, name).is_file() and (without_seg or segmentation.is_file())

    def check_saved(self) -> None:
        """Raise FileNotFoundError if masks that this command wrote have disappeared."""
        gone = [self.names[item] for item in self.saved if not self.mask_of(item, self.names[item]).is_file()]
        if gone:
            advice = "--existing skip predicts them again" if (self.path / ABOUT).is_file() else "expected a new folder"
            found = f"{len(gone)} of {len(self.saved)} new masks are gone, which something removed: {first_few(gone)}"
            raise FileNotFoundError(f"--output {self.path}: {found}; {advice}")

    def add(self, item: Input, rows: list[dict[str, Any]]) -> None:
        """Add the rows of an input. The table is saved now and then, and by `save_table`."""
        self.rows += [{"name": self.names[item], "input": printable(item.path), **row} for row in rows]
        self.saved.append(item)
        self.unsaved += 1
        if self.unsaved >= max(50, len(self.rows) // 20):  # a fraction, as the whole file is rewritten
            try:
                self.save_table()
            except OSError as error:  # such as a table that another program locks; it is saved again at the end
                log.warning("%s", error)

    def save_table(self) -> None:
        if self.unsaved:
            write_rows(self.table, self.rows)
            self.unsaved = 0

    def discard(self, item: Input) -> None:
        """Remove the files of an input whose saving failed."""
        for kind in RESULTS:
            for ending in (".png", ".nii.gz", ".dcm"):
                (self.path / kind / f"{self.names[item]}{ending}").unlink(missing_ok=True)

    def merge(self, parts: Sequence[Path]) -> None:
        """Save the table, which has the rows of `parts` now, in the order of the inputs, and remove the parts."""
        if parts:
            order = {printable(item.path): number for number, item in enumerate(self.todo)}
            self.rows.sort(key=lambda row: order.get(row["input"], -1))  # -1: of earlier commands
            write_rows(self.table, self.rows)
            for part in parts:
                part.unlink()

    def gather(self) -> None:
        """Bring the rows and exclusions of all processes together in the main one. All must call it."""
        counts = distributed.all_gather(len(self.rows))
        self.exclusions = distributed.gather_rows(self.exclusions)
        if distributed.is_main():
            parts = [self.table_of(rank) for rank, count in enumerate(counts) if rank and count]
            rows = [row for part in parts for row in read_rows(part)]
            if len(rows) != sum(counts[1:]):
                found = f"{len(rows)} rows in {first_few(parts)}, expected {sum(counts[1:])}"
                raise OSError(f"--output {self.path}: found {found}; do all machines see the same folder?")
            self.rows += rows
            self.merge(parts)
            self.save_exclusions()

    def save_exclusions(self) -> None:
        """Write left_out.csv, a row for each unused file; no file if there are none. Only the main process does so."""
        path = self.path / "left_out.csv"
        rows = [dict(path=printable(o.path), reason=printable(o.reason), mistake=o.mistake) for o in self.exclusions]
        if distributed.is_main() and (rows or path.exists()):
            write_rows(path, rows)


def log_exclusions(exclusions: Sequence[Exclusion]) -> None:
    """Log a line for each reason: first the files that a rule ignores, then those that look like inputs."""
    by_reason: dict[tuple[bool, str], list[Path]] = {}
    for one in sorted(exclusions, key=lambda one: one.mistake):
        by_reason.setdefault((one.mistake, one.reason), []).append(one.path)
    for (mistake, reason), paths in by_reason.items():
        level, prefix = (logging.ERROR, "left out") if mistake else (logging.INFO, "passed over")
        prefix += f" {len(paths)} files" * (len(paths) > 1)
        log.log(level, "%s: %s %s", prefix, first_few(paths), reason)


def is_disk_error(error: BaseException) -> bool:
    """Whether an error, or its cause, is that the disk is full or read-only."""
    cause = error if getattr(error, "errno", None) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in DISK_ERRORS
