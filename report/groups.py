"""Groups of runs that differ only in the seed, the fold of one cross-validation, and fields that change no score."""

import math
import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from report.paper import NEUTRAL_FIELDS, RATES
from report.records import Record
from utils.files import first_few

TestRows = dict[str, dict[str, float]]  # {image or case: its scores and counts}

MEMBER_FIELDS = {"seed", "fold"}  # fields in which the runs of a group differ
SIZE_TOLERANCE = 0.05  # of an image's pixels: a mask's share depends a little on the input size


class Score(NamedTuple):
    """The label and unit of a score of metrics.json."""

    label: str
    factor: float

    def text(self, values: list[float]) -> str:
        """Return "mean ± standard deviation" of runs' scores, for a single run the mean alone. NaN, a strict score of a
        class that occurs nowhere, is not counted."""
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return "nan"
        mean = self.factor * statistics.fmean(values)
        return f"{mean:.2f} ± {self.factor * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


SCORES = {  # by Record.of_volumes
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
    def of_volumes(self) -> bool:
        return self.runs[0].of_volumes

    @property
    def seeds(self) -> str:
        return ", ".join(dict.fromkeys(str(run.config["seed"]) for run in self.runs))

    @property
    def folds(self) -> list[int]:
        """The folds of the runs; [] without a cross-validation."""
        return sorted({run.fold for run in self.runs if run.fold is not None})

    @property
    def recipes(self) -> str:
        """Mostly a single one, but the same values can come from a recipe or from single flags."""
        return ", ".join(filter(None, dict.fromkeys(run.config.get("recipe") for run in self.runs)))

    @property
    def optimization(self) -> dict[str, Any]:
        """What the runs noted of optimizer and scheduler besides the config's values: {"eps of AdamW": 1e-8, ...}."""
        parts = next((run.facts["optimization"] for run in self.runs if "optimization" in run.facts), {})
        values = [(name, part["name"], value) for part in parts.values() for name, value in part.items()]
        return {f"{name} of {of}": value for name, of, value in values if name not in RATES}

    @property
    def collapses(self) -> list[str]:
        """A sentence for each run whose training collapsed."""
        return [f"{member_name(run)}: {run.facts['lost']}" for run in self.runs if "lost" in run.facts]

    def scores(self, name: str) -> list[float]:
        """Return the score of each run; for folds that of each fold, the mean over its seeds."""
        if len(self.folds) < 2:
            return [run.score(name) for run in self.runs]
        return [statistics.fmean(run.score(name) for run in self.runs if run.fold == fold) for fold in self.folds]

    def text(self, name: str) -> str:
        """Return the score as "mean ± standard deviation"."""
        return SCORES[self.of_volumes][name].text(self.scores(name))

    @property
    def test_rows(self) -> TestRows:
        """{image or case: its row in the first run that tested it}."""
        return {name: row for run in reversed(self.runs) for name, row in run.test_rows.items()}

    @property
    def units(self) -> dict[str, str]:
        """{image or case: its lesion or patient} of all runs, see Record.units."""
        return {name: unit for run in self.runs for name, unit in run.units.items()}

    def dice(self) -> dict[str, float]:
        """Return {image or case: mean Dice over the runs that tested it}.

        Raises ValueError if the masks of an image differ between runs."""
        tested = self.test_rows
        scores: dict[str, list[float]] = {name: [] for name in tested}
        for run in self.runs:
            reason = pairing_obstacle({name: tested[name] for name in run.test_rows}, run.test_rows)
            if reason is not None:
                raise ValueError(f"{run.name} and {self.runs[0].name} can't be a group: {reason}")
            for name, dice in run.dice().items():
                scores[name].append(dice)
        return {name: statistics.fmean(values) for name, values in scores.items()}


def member_name(run: Record) -> str:
    """Return what distinguishes a run from others of its group."""
    return f"seed {run.config['seed']}" + ("" if run.fold is None else f", fold {run.fold}")


def group_runs(runs: list[Record]) -> list[Group]:
    """Return the groups of runs, in the order of their first runs."""
    found: list[list[Record]] = []
    for run in runs:
        for members in found:
            if all(belong_together(member, run) for member in members):
                members.append(run)
                break
        else:
            found.append([run])
    return [Group(letter(i), members) for i, members in enumerate(found)]


def belong_together(one: Record, other: Record) -> bool:
    """Return whether two runs differ in the seed and the fold only. Values of optimizer and scheduler and the number of
    parameters count if both runs noted them: code and rows that the configs name may have been edited. Runs of the same
    seed and fold with different scores do not belong together either: something else differs."""
    chance = NEUTRAL_FIELDS | MEMBER_FIELDS
    values = [{name: value for name, value in run.values.items() if name not in chance} for run in (one, other)]
    built = [run.facts["optimization"] for run in (one, other) if "optimization" in run.facts]
    built_networks = {run.facts["network"].partition(";")[0] for run in (one, other) if "network" in run.facts}
    same_images = one.fold != other.fold or one.test_rows.keys() == other.test_rows.keys()
    repeated = one.fold == other.fold and one.config["seed"] == other.config["seed"]
    same_scores = not repeated or one.test_rows == other.test_rows
    same_code = built[:1] * len(built) == built and len(built_networks) < 2 and same_scores
    return values[0] == values[1] and same_code and same_images


def letter(number: int) -> str:
    """Return A, B, ... Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def pairing_obstacle(one: TestRows, other: TestRows) -> str | None:
    """Return None if two runs, or groups, were tested on the same images or cases, else a sentence with the reason."""
    odd = sorted(one.keys() ^ other.keys())
    if odd:
        return f"their test images differ, {len(odd)} are in one of them only: {first_few(odd[:3])}"
    odd = [name for name in one if abs(true_share(one[name]) - true_share(other[name])) > SIZE_TOLERANCE]
    if odd:
        return f"images of the same name have other masks, {len(odd)} of them: {first_few(odd[:3])}"
    return None


def true_share(row: dict[str, float]) -> float:
    """Return the share of foreground in an image's mask, 0 if the run stored no counts."""
    suffix = "" if "tp" in row else "_class1"
    counts = [row.get(f"{name}{suffix}", 0) for name in ("tp", "fn", "fp", "tn")]
    return sum(counts[:2]) / max(1, sum(counts))
