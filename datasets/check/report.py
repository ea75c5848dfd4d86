"""The report of datasets.check: a list of sections, each made by one check."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Section:
    """What one check found."""

    lines: list[str] = field(default_factory=list)  # to read
    rows: list[dict[str, Any]] = field(default_factory=list)  # of files.csv
    problems: list[str] = field(default_factory=list)  # training would fail, or its scores would be spoilt
    warnings: list[str] = field(default_factory=list)  # unusual

    def text(self, shown: int | None = None) -> str:
        """The section as report.txt has it, with all or the first `shown` problems and warnings."""
        lines = list(self.lines)
        for title, entries in (("Problems", self.problems), ("Warnings", self.warnings)):
            lines += ["", f"{title}: {len(entries) or 'none'}", *(f"  {entry}" for entry in entries[:shown])]
            if shown is not None and len(entries) > shown:
                lines.append(f"  and {len(entries) - shown} more, see report.txt")
        return "\n".join(lines) + "\n"


def join(sections: Iterable[Section]) -> Section:
    """One section with everything in `sections`, in their order."""
    whole = Section()
    for section in sections:
        whole.lines += section.lines
        whole.rows += section.rows
        whole.problems += section.problems
        whole.warnings += section.warnings
    return whole


def tally(things: Iterable[str]) -> list[str]:
    """The different things and how often they occur, such as ["512x512 (20)", "256x256 (1)"], most frequent first."""
    return [f"{thing} ({count})" for thing, count in Counter(things).most_common()]


def in_several(places: Iterable[tuple[str, str]]) -> list[str]:
    """Of pairs (name, place) the names that have several places, such as ["case0003 (train.txt and test_vol.txt)"]."""
    found = defaultdict(list)
    for name, place in places:
        found[name].append(place)
    return [f"{name} ({' and '.join(where)})" for name, where in found.items() if len(where) > 1]
