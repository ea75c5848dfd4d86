"""Runs that belong together: those that differ in nothing but the seed, the fold of one deal of the images, and what
cannot change a score."""

import math
import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from utils.files import some
from utils.report.published import EXECUTION
from utils.report.records import Record

Tested = dict[str, dict[str, float]]  # {image or case: its scores and counts}

SIZE_TOLERANCE = 0.05  # of an image's pixels: masks of one image at different sizes


class Score(NamedTuple):
    """How a score of metrics.json is written."""

    label: str
    factor: float

    def text(self, values: list[float]) -> str:
        """ "mean ± standard deviation" of some runs' scores, without the latter for a single run; strict scores can be
        NaN (a class that is nowhere), which is not counted."""
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return "nan"
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
    """Runs that differ in the seed only, or are folds of one cross-validation, under a letter."""

    letter: str
    runs: list[Record]

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].values

    @property
    def seeds(self) -> str:
        return ", ".join(dict.fromkeys(str(run.config["seed"]) for run in self.runs))

    @property
    def folds(self) -> list[int]:
        """The folds that there are runs of; [] where the images were not dealt into folds."""
        return sorted({run.fold for run in self.runs if run.fold is not None})

    @property
    def missing_folds(self) -> list[int]:
        """Folds of the deal that there are no runs of."""
        return [fold for fold in range(self.config.get("folds", 0)) if fold not in self.folds]

    @property
    def deviation_over(self) -> str:
        """What the scores are the mean and the deviation over: "5 folds", "3 seeds", or "" for a single run."""
        if len(self.folds) > 1:
            return f"{len(self.folds)} folds"
        return f"{len(self.runs)} seeds" if len(self.runs) > 1 else ""

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
        return [f"{member(run)}: {run.facts['lost']}" for run in self.runs if "lost" in run.facts]

    def scores(self, name: str) -> list[float]:
        """The score of each run; of folds that of each fold, the mean over its seeds."""
        if len(self.folds) < 2:
            return [run.score(name) for run in self.runs]
        return [statistics.fmean(run.score(name) for run in self.runs if run.fold == fold) for fold in self.folds]

    @property
    def tested(self) -> Tested:
        """{image or case: its row in the first run that was tested on it}."""
        return {name: row for run in reversed(self.runs) for name, row in run.tested.items()}

    def dice(self) -> dict[str, float]:
        """{image or case: mean Dice over the runs that were tested on it}.

        Raises ValueError if an image has other masks in one of them."""
        tested = self.tested
        scores: dict[str, list[float]] = {name: [] for name in tested}
        for run in self.runs:
            reason = why_unpaired({name: tested[name] for name in run.tested}, run.tested)
            if reason is not None:
                raise ValueError(f"{run.name} and {self.runs[0].name} can't be a group: {reason}")
            for name, dice in run.dice().items():
                scores[name].append(dice)
        return {name: statistics.fmean(values) for name, values in scores.items()}


def member(run: Record) -> str:
    """What tells a run from others of its group."""
    return f"seed {run.config['seed']}" + ("" if run.fold is None else f", fold {run.fold}")


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
    """Whether two runs differ in the seed and the fold only.

    Optimizers and schedulers of unequal values make a difference even where the configs name the same ones; runs from
    before these were noted are taken at their config's word."""
    values, more = (
        {name: value for name, value in run.values.items() if name not in EXECUTION | {"seed", "fold"}}
        for run in (one, other)
    )
    built, otherwise = (run.facts.get("optimization") for run in (one, other))
    same_optimization = built is None or otherwise is None or built == otherwise
    same_images = one.fold != other.fold or one.tested.keys() == other.tested.keys()
    return values == more and same_optimization and same_images


def letter(number: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def why_unpaired(one: Tested, other: Tested) -> str | None:
    """None if two runs, or groups, were tested on the same images or cases, else the sentence that says why not."""
    names, more = one.keys(), other.keys()
    if names != more:
        odd = sorted(names ^ more)
        return f"their test images differ, {len(odd)} are in one of them only: {some(odd[:3])}"
    shares, others = ({name: true_share(row) for name, row in tested.items()} for tested in (one, other))
    odd = [name for name in shares if abs(shares[name] - others[name]) > SIZE_TOLERANCE]
    if odd:
        return f"images of the same name have other masks, {len(odd)} of them: {some(odd[:3])}"
    return None


def true_share(row: dict[str, float]) -> float:
    """The share of an image's pixels that its mask marks; 0 where the run stored no counts."""
    suffix = "" if "tp" in row else "_class1"
    counts = [row.get(f"{name}{suffix}", 0) for name in ("tp", "fn", "fp", "tn")]
    return sum(counts[:2]) / max(1, sum(counts))
