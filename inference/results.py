"""The folder of results of predict.py: its table, how the masks in it were made, and what was left out."""

import dataclasses
import errno
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inference.inputs import ABOUT, RESULTS, Input, LeftOut
from inference.options import Options
from utils.files import printable, read_rows, reading, some, write_atomically, write_rows
from utils.runs.claimed import HOLDER, LOCK

log = logging.getLogger("vmunet")

Existing = Literal["refuse", "skip", "overwrite"]

# options that change the results, and what they are where a folder does not name them
DECISIVE = {
    f.name: f.default for f in dataclasses.fields(Options) if f.name not in ("batch_size", "device", "scan_backend")
}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other input could be saved either


@dataclass
class Table:
    """structures.csv of an output folder: a row for each input and structure."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    unsaved: int = 0

    def add(self, name: str, path: Path, rows: list[dict[str, Any]]) -> None:
        self.rows += [{"name": name, "input": printable(path), **row} for row in rows]
        self.unsaved += 1
        if self.unsaved >= max(50, len(self.rows) // 20):  # a share: the file is written as a whole
            try:
                self.save()
            except OSError as error:  # such as of a table that is open elsewhere; it is saved again at the end
                log.warning("%s", error)

    def save(self) -> None:
        if self.unsaved:
            write_rows(self.path, self.rows)
            self.unsaved = 0


def check_output(folder: Path, existing: Existing, names: dict[Input, str]) -> tuple[Table, list[Input]]:
    """(the Table of an output folder, inputs that remain). Raises ValueError rather than to mix results, or to write
    among files of other origin."""
    there = sorted({path.name for path in folder.iterdir()} - {LOCK, HOLDER}) if folder.is_dir() else []
    if folder.exists() and (not folder.is_dir() or (there and existing == "refuse")):
        raise ValueError(
            f"--output {folder}: found files there, expected a new or empty folder; --existing skip predicts what is "
            "missing, --existing overwrite everything anew"
        )
    if there and ABOUT not in there and there != ["log.txt"]:  # all that a run leaves that was stopped at once
        raise ValueError(f"--output {folder}: found {some(there, 3)}, expected a new folder or one of results")
    table = Table(folder / "structures.csv")
    if existing == "skip":
        table.rows = read_rows(table.path)
        done = {row["input"] for row in table.rows}
        inputs = {row["name"]: row["input"] for row in table.rows}
        todo = [item for item in names if printable(item.path) not in done]
        others = [names[item] for item in todo if names[item] in inputs]
        if others:
            raise ValueError(f"--output {folder}: holds results of other inputs under the same names: {some(others)}")
        return table, todo
    return table, list(names)


def log_stale(folder: Path, names: Collection[str]) -> None:
    """Warns of results that will stay beside the new ones, and in no table, as no input is theirs."""
    earlier = {row["name"] for row in read_rows(folder / "structures.csv")} - set(names)
    if earlier:
        log.warning("%s keeps earlier results of %d other inputs: %s", folder, len(earlier), some(sorted(earlier)))


def save_about(path: Path, about: dict[str, Any], going_on: bool) -> None:
    """Writes how the masks beside it are made. Raises ValueError before masks of another network or way join them."""
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    if going_on and path.exists():
        with reading(path):
            before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
            options, members = before["options"], before.get("members", [before])
            different = [n for n, default in DECISIVE.items() if options.get(n, default) != now["options"][n]]
            same = [member["sha256"] for member in members] == [member["sha256"] for member in now["members"]]
        different += [] if same else ["checkpoint"]
        if different:
            raise ValueError(f"--existing skip: what {path.parent} holds was made with another {', '.join(different)}")
    write_atomically(path, text.encode())


def discard(folder: Path, name: str) -> None:
    """Removes what was saved of an input before it went wrong."""
    for kind in RESULTS:
        for ending in (".png", ".nii.gz", ".dcm"):
            (folder / kind / f"{name}{ending}").unlink(missing_ok=True)


def error_number(error: BaseException) -> int | None:
    """errno of an OSError, or of the one it was raised from."""
    cause = error if getattr(error, "errno", None) else error.__cause__
    return cause.errno if isinstance(cause, OSError) else None


# ---- what is left out


def log_left_out(left_out: Sequence[LeftOut]) -> None:
    """A line for each reason: first what a rule passes over, then what looks like an input."""
    for mistake in (False, True):
        by_reason: dict[str, list[Path]] = {}
        for one in left_out:
            if one.mistake == mistake:
                by_reason.setdefault(one.reason, []).append(one.path)
        for reason, paths in by_reason.items():
            if mistake:
                log.error("left out: %s %s", some(paths), reason)
            else:
                log.info("passed over: %s %s", some(paths), reason)


def save_left_out(path: Path, left_out: Sequence[LeftOut]) -> None:
    """Writes left_out.csv, a row for each file that was not used; none if there is nothing to say."""
    rows = [{"path": printable(o.path), "reason": printable(o.reason), "mistake": o.mistake} for o in left_out]
    if rows or path.exists():
        write_rows(path, rows)
