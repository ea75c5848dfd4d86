"""Runs side by side: means and standard deviations over seeds, and paired tests over the images that both have seen.

    python -m utils.report results/RUN... -o compare.html

Runs on the same test images that differ in nothing but the seed, and in what cannot change a score, are a group. A
group's score of an image is the mean over its runs. Two groups are compared by Wilcoxon's signed-rank test over their
images (cases), only if these are the same ones; the p values of all pairs are corrected by Holm's method.
"""

import itertools
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap, wilcoxon

from utils.files import some, write_atomically
from utils.report import charts
from utils.report.page import render, trained, weights_of
from utils.report.published import EXECUTION, shown
from utils.report.records import Record

RESAMPLES = 2000
SIZE_TOLERANCE = 0.05  # of an image's pixels: masks of one image at different sizes
SCORES = {  # of metrics.json: label, factor
    False: {"miou": ("mIoU %", 100), "dsc": ("DSC %", 100), "dsc_per_image": ("Dice, mean of images %", 100)},
    True: {"dice_transunet": ("DSC %", 100), "hd95_transunet": ("HD95 voxels", 1), "dice_strict": ("strict DSC %", 100),
           "hd95_strict": ("strict HD95 mm", 1)},
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only, under a letter."""

    letter: str
    runs: list

    @property
    def config(self):
        return self.runs[0].values

    def scores(self, name):
        """The score of each run."""
        return [run.scores[name] for run in self.runs]

    def dice(self):
        """{image or case: mean Dice over the runs}. Raises ValueError if the images have other masks in one of them."""
        for run in self.runs[1:]:
            reason = why_unpaired(self.runs[0], run)
            if reason is not None:
                raise ValueError(f"{run.name} and {self.runs[0].name} can't be a group: {reason}")
        scores = [run.dice() for run in self.runs]
        return {name: statistics.fmean(score[name] for score in scores) for name in scores[0]}


def write_comparison(folders, path):
    """Compares the runs of these folders in an HTML file and returns its path.

    Raises ValueError for fewer than two runs, runs without a test, and volumes beside images."""
    path = Path(path)
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"-o {path}: found a file that is no page, expected a name ending in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"-o {path}: found no folder {path.parent}, expected one to write into")
    write_atomically(path, render("compare.html", **contents(read_runs(folders))).encode())
    return path


def read_runs(folders):
    """The records of the folders, each once."""
    runs = [Record(folder) for folder in dict.fromkeys(Path(folder).resolve() for folder in folders)]
    if len(runs) < 2:
        raise ValueError(f"found {len(runs)} run, expected two or more different ones to compare")
    for run in runs:
        if not run.finished:
            raise ValueError(f"{run.folder}: found no test (metrics.json and its table), expected a finished run")
    if len({run.of_volumes for run in runs}) > 1:
        volumes, images = (next(run for run in runs if run.of_volumes is kind) for kind in (True, False))
        raise ValueError(f"{volumes.name} was tested on volumes and {images.name} on images: they have no common score")
    return runs


def group_runs(runs):
    """Groups of runs, in the order in which their first came up."""
    found = {}
    for run in runs:
        values = {name: value for name, value in run.values.items() if name not in EXECUTION | {"seed"}}
        key = json.dumps([values, sorted(run.tested)], sort_keys=True)
        found.setdefault(key, []).append(run)
    return [Group(letter(i), members) for i, members in enumerate(found.values())]


def letter(number):
    """A, B, ... Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


# ---- statistics


def why_unpaired(one, other):
    """None if two runs were tested on the same images or cases, else the sentence that says why not."""
    names, more = one.tested.keys(), other.tested.keys()
    if names != more:
        odd = sorted(names ^ more)
        return f"their test images differ, {len(odd)} are in one of them only: {some(odd[:3])}"
    sizes = [{name: true_share(row) for name, row in run.tested.items()} for run in (one, other)]
    odd = [name for name in sizes[0] if abs(sizes[0][name] - sizes[1][name]) > SIZE_TOLERANCE]
    if odd:
        return f"images of the same name have other masks, {len(odd)} of them: {some(odd[:3])}"
    return None


def true_share(row):
    """The share of an image's pixels that its mask marks; 0 where the run stored no counts."""
    suffix = "" if "tp" in row else "_class1"
    counts = [row.get(f"{name}{suffix}", 0) for name in ("tp", "fn", "fp", "tn")]
    return sum(counts[:2]) / max(1, sum(counts))


def paired_test(some_scores, other_scores):
    """Of {name: score} twice: the pairs, how many of them differ, the mean of the differences with its 95 % interval
    (bootstrap, BCa), their median, and Wilcoxon's two-sided p, None where no pair differs."""
    differences = np.array([some_scores[name] - other_scores[name] for name in sorted(some_scores)])
    unequal = int(np.count_nonzero(differences))
    result = {"pairs": len(differences), "unequal": unequal, "mean": differences.mean(), "low": None, "high": None,
              "median": np.median(differences), "p": None}  # fmt: skip
    if unequal:
        result["p"] = float(wilcoxon(differences, zero_method="wilcox").pvalue)
    if len(np.unique(differences)) > 1:
        interval = bootstrap(
            (differences,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0), batch=100, method="BCa"
        ).confidence_interval
        result["low"], result["high"] = interval
    return result


def holm(p_values):
    """Holm's correction: each p times the number of hypotheses not yet rejected, in the order of the p, at most 1."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def mean_and_deviation(values, factor):
    """ "mean ± standard deviation" of some runs' scores, without the latter for a single run."""
    mean = factor * statistics.fmean(values)
    return f"{mean:.2f} ± {factor * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


# ---- the page


def contents(runs):
    """Everything that the template compare.html shows."""
    groups, scores = group_runs(runs), SCORES[runs[0].of_volumes]
    dice = {group.letter: group.dice() for group in groups}
    return {
        "what": "cases" if runs[0].of_volumes else "images",
        "labels": [label for label, _ in scores.values()],
        "groups": [
            {
                "letter": group.letter,
                "network": group.config["network"],
                "dataset": group.config["dataset"],
                "weights": weights_of(group.runs[0]),
                "seeds": ", ".join(str(run.config["seed"]) for run in group.runs),
                "tested": len(group.runs[0].tested),
                "cells": [mean_and_deviation(group.scores(name), factor) for name, (_, factor) in scores.items()],
            }
            for group in groups
        ],
        "runs": [
            {
                "letter": group.letter,
                "name": run.name,
                "seed": run.config["seed"],
                "trained": trained(run),
                "best": "" if run.best is None else int(run.best["epoch"]),
                "cells": [f"{factor * run.scores[name]:.2f}" for name, (_, factor) in scores.items()],
            }
            for group in groups
            for run in group.runs
        ],
        "notes": notes(groups),
        "differing": differing_values(groups),
        "pairs": pairs(groups, dice),
        "charts": comparison_charts(groups, dice),
    }


def notes(groups):
    lines = []
    if len({group.config["protocol"] for group in groups}) > 1:
        lines.append("The groups follow different protocols: with paper the reported set also selects the epoch.")
    if len({group.config["image_size"] for group in groups}) > 1 and not groups[0].runs[0].of_volumes:
        lines.append("Scores are taken at the network's input size, which differs between the groups.")
    if any(len(group.runs) == 1 for group in groups):
        lines.append("A group of one seed has no standard deviation: how much its score owes to chance is not known.")
    return lines


def differing_values(groups):
    """[(field, [value of each group])] of what differs between the groups."""
    fields = dict.fromkeys(name for group in groups for name in group.config if name not in EXECUTION | {"seed"})
    rows = [(name, [shown(group.config.get(name)) for group in groups]) for name in fields]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def pairs(groups, dice):
    """A row for each two groups: the paired test of their Dice, or why there is none."""
    rows = []
    for one, other in itertools.combinations(groups, 2):
        row = {"names": f"{one.letter} − {other.letter}", "reason": why_unpaired(one.runs[0], other.runs[0])}
        if row["reason"] is None:
            row |= paired_test(dice[one.letter], dice[other.letter])
        rows.append(row)
    tested = [row for row in rows if row.get("p") is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["corrected"] = p
    return rows


def comparison_charts(groups, dice):
    """Dice of every image by group; curves of every run, named by its group's letter and its seed."""
    drawn = [charts.boxes("Dice by group", {name: list(values.values()) for name, values in dice.items()}, "Dice")]
    columns = ("train_loss", "val_loss", "dsc", "dice_transunet")
    for column in columns:
        curves = {}
        for group in groups:
            for run in group.runs:
                points = [(row["epoch"], row[column]) for row in run.epochs if column in row]
                if points:
                    curves[f"{group.letter} {run.config['seed']}"] = tuple(zip(*points, strict=True))
        if curves:
            drawn.append(charts.lines(column, curves, log="loss" in column))
    return drawn
