"""The report of datasets.check: findings about single files, summed up by part."""

import contextlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.check.contact_sheet import Cell, save_sheet, spread
from datasets.duplicates import Fingerprint
from utils.files import REPOSITORY, first_few, printable, write_atomically, write_rows

BATCH_SIZE = 32  # the default of both training scripts
DEFAULT_START = REPOSITORY / "pretrained_weights" / "vssmsmall_dp03_ckpt_epoch_238.pth"  # vmamba-small, once downloaded


@dataclass
class Inspection:
    """Findings about an image with its mask, a slice or a volume."""

    part: str  # such as train, or the list that names it
    name: str
    columns: dict[str, str] = field(default_factory=dict)  # such as {"size": "48x48"}
    counts: np.ndarray | None = None  # pixels of each class
    cells: list[Cell] = field(default_factory=list)  # candidates for the contact sheet
    problems: list[str] = field(default_factory=list)  # training would fail, or its scores would be invalid
    warnings: list[str] = field(default_factory=list)  # unusual
    duplicate: str = ""  # the kind and the name of the other image
    fingerprint: Fingerprint | None = None  # of an image that can be read
    slices: dict[str, str] = field(default_factory=dict)  # {SHA-256: title} of those that are not constant


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Append the error of a file to `problems` instead of raising it."""
    try:
        yield
    except (ValueError, OSError) as error:
        problems.append(str(error))


@dataclass
class DataReport:
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    inspections: Sequence[Inspection] = ()
    class_names: Sequence[str] = ()  # of the classes 1, 2, ...
    class_colours: Sequence[str] = ()  # of the same classes in their masks, such as "#ff0000"; none: the default ones

    def text(self, shown: int | None = None) -> str:
        """Return the text of report.txt, with all or the first `shown` problems and warnings."""
        lines = list(self.lines)
        for title, entries in (("Problems", self.problems), ("Warnings", self.warnings)):
            lines += ["", f"{title}: {len(entries) or 'none'}", *(f"  {entry}" for entry in entries[:shown])]
            if shown is not None and len(entries) > shown:
                lines.append(f"  and {len(entries) - shown} more, see report.txt")
        return "\n".join(map(printable, lines)) + "\n"

    def add(self, inspections: Sequence[Inspection], class_names: Sequence[str]) -> None:
        """Add a line for each part, a table of the classes, and the findings about each file."""
        self.inspections, self.class_names = inspections, class_names
        parts = by_part(inspections)
        for part, members in parts.items():
            line = f"  {part:13}{len(members):6} files"
            for column in dict.fromkeys(key for member in members for key in member.columns):
                line += f"   {column} {first_few(tally(m.columns[column] for m in members if column in m.columns), 3)}"
            self.lines.append(line)
        counts = {}
        for part, members in parts.items():
            if counted := [one.counts for one in members if one.counts is not None]:
                counts[part] = np.array(counted)
        self.lines += [f"  {'class':16}" + "".join(f"{part + ' pixels':>22}{'files':>8}" for part in counts)]
        for c, name in enumerate(["background", *class_names]):
            line = f"  {name:16}"
            for part, of_part in counts.items():
                files = (of_part[:, c] > 0).sum()
                line += f"{100 * of_part[:, c].sum() / of_part.sum():20.3f} %{files:8}"
                if not files:
                    self.warnings.append(f"{name} is in no file of {part}")
            self.lines.append(line)
        members_with = defaultdict(list)  # {warning: names}
        for one in inspections:
            self.problems += one.problems
            for text in one.warnings:
                members_with[text].append(f"{one.part}/{one.name}")
        for text, names in members_with.items():
            self.warnings.append(f"{text}, in {len(names)} files: {first_few(names)}")

    def save(self, output: Path, thumbnails: int) -> None:
        """Write report.txt, files.csv, and contact sheets of each part and of the files with a problem or warning."""
        output.mkdir(parents=True, exist_ok=True)
        for part, members in by_part(self.inspections).items():
            cells = spread([cell for member in members for cell in member.cells], thumbnails)
            title = f"{part}: {len(cells)} pictures of {len(members)} files"
            save_sheet(output / f"{part.removesuffix('.txt')}.png", title, cells, self.class_names, self.class_colours)
        suspects, rows = [], []
        for one in self.inspections:
            note = one.duplicate or "; ".join(one.warnings) or "problem" * bool(one.problems)
            suspects += [cell._replace(note=note) for cell in one.cells[:1] if note]
            classes = dict.fromkeys((f"class_{c}" for c in range(1, len(self.class_names) + 1)), "")
            if one.counts is not None:
                classes = dict(zip(classes, (one.counts / one.counts.sum())[1:].tolist(), strict=True))
            texts = {"problems": "; ".join(one.problems), "warnings": "; ".join(one.warnings)}
            rows.append({"part": one.part, "name": one.name, **one.columns, **classes, **texts})
        if suspects and thumbnails > 0:
            title = f"{len(suspects[:thumbnails])} of {len(suspects)} files with a problem or warning"
            save_sheet(output / "suspects.png", title, suspects[:thumbnails], self.class_names, self.class_colours)
        write_rows(output / "files.csv", rows)
        write_atomically(output / "report.txt", self.text().encode())


def by_part(inspections: Iterable[Inspection]) -> dict[str, list[Inspection]]:
    parts = defaultdict(list)
    for inspection in inspections:
        parts[inspection.part].append(inspection)
    return parts


def tally(things: Iterable[str]) -> list[str]:
    """Return the distinct things with their counts, most frequent first, such as ["512x512 (20)", "256x256 (1)"]."""
    return [f"{thing} ({count})" for thing, count in Counter(things).most_common()]


def repeated_in(places: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names in several (name, place) pairs, such as ["case0003 (train.txt and test_vol.txt)"]."""
    found = defaultdict(list)
    for name, place in places:
        found[name].append(place)
    return [f"{name} ({' and '.join(where)})" for name, where in found.items() if len(where) > 1]


def command_line(script: str, folder: Path, flags: Sequence[str], number: int, dataset: str | None = None) -> str:
    """Return the command that trains on `number` images or slices of a folder without a download, by a script such as
    "python train.py". By default the data set is called by the folder's name."""
    name = folder.resolve().name
    name = dataset or ("own" if name == "demo" else name)
    command = [*script.split(), "--dataset", name, "--data-path", str(folder), *flags]
    command += ["--batch-size", str(max(1, number))] if number < BATCH_SIZE else []
    command += [] if DEFAULT_START.is_file() else ["--recipe", "stable", "--load-ckpt-path", "none"]
    return shlex.join(command)
