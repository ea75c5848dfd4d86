"""Runs that belong together: those that differ in nothing but the seed, and in what cannot change a score."""

import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from utils.files import some
from utils.report.published import EXECUTION
from utils.report.records import Record

SIZE_TOLERANCE = 0.05  # of an image's pixels: masks of one image at different sizes


class Score(NamedTuple):
    """How a score of metrics.json is written."""

    label: str
    factor: float

    def text(self, values: list[float]) -> str:
        """ "mean ± standard deviation" of some runs' scores, without the latter for a single run."""
        mean = self.factor * statistics.fmean(values)
        return f"{mean:.2f} ± {self.factor * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


SCORES = {  # of volumes or not
    False: {
        "miou": Score("mIoU %", 100),
        "dsc": Score("DSC %", 100),
        "dsc_per_image": Score("Dice, mean of images %", 100),
    },
    True: {
        "dice_transunet": Score("DSC %", 100),
        "hd95_transunet": Score("HD95 voxels", 1),
        "dice_strict": Score("strict DSC %", 100),
        "hd95_strict": Score("strict HD95 mm", 1),
    },
}


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only, under a letter."""

    letter: str
    runs: list[Record]

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].values

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.config["seed"]) for run in self.runs)

    @property
    def recipes(self) -> str:
        """Mostly one: the same values can come from a recipe or from single flags."""
        return ", ".join(dict.fromkeys(run.recipe for run in self.runs if run.recipe))

    @property
    def optimization(self) -> dict[str, Any]:
        """What optimizer and scheduler were built with, as far as it was noted: {"lr of AdamW": 0.001, ...}."""
        parts = next((run.facts["optimization"] for run in self.runs if "optimization" in run.facts), {})
        return {f"{name} of {part['name']}": value for part in parts.values() for name, value in part.items()}

    @property
    def lost(self) -> list[str]:
        """A sentence for each run that lost what it had learned."""
        return [f"seed {run.config['seed']}: {run.facts['lost']}" for run in self.runs if "lost" in run.facts]

    def scores(self, name: str) -> list[float]:
        """The score of each run."""
        return [run.scores[name] for run in self.runs]

    def dice(self) -> dict[str, float]:
        """{image or case: mean Dice over the runs}. Raises ValueError if the images have other masks in one of them."""
        for run in self.runs[1:]:
            reason = why_unpaired(self.runs[0], run)
            if reason is not None:
                raise ValueError(f"{run.name} and {self.runs[0].name} can't be a group: {reason}")
        scores = [run.dice() for run in self.runs]
        return {name: statistics.fmean(score[name] for score in scores) for name in scores[0]}


def group_runs(runs: list[Record]) -> list[Group]:
    """Groups of runs, in the order in which their first came up."""
    found: list[list[Record]] = []
    for run in runs:
        members = next((members for members in found if all(alike(member, run) for member in members)), None)
        if members is None:
            found.append([run])
        else:
            members.append(run)
    return [Group(letter(i), members) for i, members in enumerate(found)]


def alike(one: Record, other: Record) -> bool:
    """Whether two runs differ in the seed only. Optimizers and schedulers of unequal values make a difference even
    where the configs name the same ones; runs from before these were noted are taken at their config's word."""
    values, more = (
        {name: value for name, value in run.values.items() if name not in EXECUTION | {"seed"}} for run in (one, other)
    )
    built, otherwise = (run.facts.get("optimization") for run in (one, other))
    same_optimization = built is None or otherwise is None or built == otherwise
    return values == more and same_optimization and one.tested.keys() == other.tested.keys()


def letter(number: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def why_unpaired(one: Record, other: Record) -> str | None:
    """None if two runs were tested on the same images or cases, else the sentence that says why not."""
    names, more = one.tested.keys(), other.tested.keys()
    if names != more:
        odd = sorted(names ^ more)
        return f"their test images differ, {len(odd)} are in one of them only: {some(odd[:3])}"
    shares, others = ({name: true_share(row) for name, row in run.tested.items()} for run in (one, other))
    odd = [name for name in shares if abs(shares[name] - others[name]) > SIZE_TOLERANCE]
    if odd:
        return f"images of the same name have other masks, {len(odd)} of them: {some(odd[:3])}"
    return None


def true_share(row: dict[str, float]) -> float:
    """The share of an image's pixels that its mask marks; 0 where the run stored no counts."""
    suffix = "" if "tp" in row else "_class1"
    counts = [row.get(f"{name}{suffix}", 0) for name in ("tp", "fn", "fp", "tn")]
    return sum(counts[:2]) / max(1, sum(counts))
