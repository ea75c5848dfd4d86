"""Runs side by side: means and standard deviations over seeds, and paired tests over the images that both have seen.

    python -m utils.report results/RUN... -o compare.html

Runs on the same test images that differ in nothing but the seed, and in what cannot change a score, are a group. So are
the folds of a cross-validation: one experiment that tests every image once. A group's score of an image is the mean
over its runs. Two groups are compared by Wilcoxon's signed-rank test over their
images (cases), only if these are the same ones; the p values of all pairs are corrected by Holm's method.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.stats import bootstrap, wilcoxon

from utils.files import write_atomically
from utils.report import charts
from utils.report.groups import SCORES, Group, group_runs, member, why_unpaired
from utils.report.page import Column, page_bytes, selected, table, trained, weights_of
from utils.report.published import EXECUTION, shown
from utils.report.records import Record

RESAMPLES = 2000


def write_comparison(folders: list[str], path: str | Path) -> Path:
    """Compares the runs of these folders in an HTML file and returns its path.

    Raises ValueError for fewer than two runs, runs without a test, and volumes beside images."""
    path = Path(path)
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"-o {path}: found a file that is no page, expected a name ending in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"-o {path}: found no folder {path.parent}, expected one to write into")
    write_atomically(path, page_bytes("compare.html", **contents(read_runs(folders))))
    return path


def read_runs(folders: list[str] | list[Path]) -> list[Record]:
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


# ---- statistics


def paired_test(some_scores: dict[str, float], other_scores: dict[str, float]) -> dict[str, Any]:
    """Of {name: score} twice: the pairs, how many of them differ, the mean of the differences with its 95 % interval
    (bootstrap, BCa), their median, and Wilcoxon's two-sided p, None where no pair differs."""
    differences = np.array([some_scores[name] - other_scores[name] for name in sorted(some_scores)])
    unequal = int(np.count_nonzero(differences))
    result = {"pairs": len(differences), "unequal": unequal, "mean": differences.mean()}
    result |= {"median": np.median(differences), "low": None, "high": None, "p": None}
    if unequal:
        result["p"] = float(wilcoxon(differences, zero_method="wilcox").pvalue)
    if len(np.unique(differences)) > 1:
        interval = bootstrap(
            (differences,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0), batch=100, method="BCa"
        ).confidence_interval
        result["low"], result["high"] = interval
    return result


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction: each p times the number of hypotheses not yet rejected, in the order of the p, at most 1."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


# ---- the page


def contents(runs: list[Record]) -> dict[str, Any]:
    """Everything that the template compare.html shows."""
    groups = group_runs(runs)
    dice = {group.letter: group.dice() for group in groups}
    return {
        "what": "cases" if runs[0].of_volumes else "images",
        "groups": groups_table(groups),
        "runs": runs_table(groups),
        "notes": notes(groups),
        "differing": differing_values(groups),
        "pairs": pairs(groups, dice),
        "charts": comparison_charts(groups, dice),
    }


def score_columns(of_volumes: bool, scores: Callable[[Any, str], list[float]]) -> list[Column]:
    """A column for each score; `scores` gives the runs' numbers of a row by the score's name."""

    def cell(name: str) -> Callable[[Any], str]:
        return lambda row: SCORES[of_volumes][name].text(scores(row, name))

    return [Column(score.label, cell(name)) for name, score in SCORES[of_volumes].items()]


def groups_table(groups: list[Group]) -> dict[str, Any]:
    of_volumes = groups[0].runs[0].of_volumes
    columns = [
        Column("", lambda group: group.letter),
        Column("network", lambda group: group.config["network"], text=True),
        Column("data", lambda group: group.config["dataset"], text=True),
        Column("initial weights", lambda group: weights_of(group.runs[0]), text=True),
        Column("recipe", lambda group: group.recipes, text=True),
        Column("seeds", lambda group: group.seeds, text=True),
        Column("cases" if of_volumes else "images", lambda group: len(group.tested)),
        *score_columns(of_volumes, Group.scores),
    ]
    caption = "Mean ± standard deviation over the seeds"
    if any(group.folds for group in groups):
        columns.insert(6, Column("folds", folds_of, text=True))
        caption += ", of a cross-validation over its folds"
    return table(columns, groups, caption)


def folds_of(group: Group) -> str:
    folds = ", ".join(map(str, group.folds))
    return f"{folds} of 0..{group.config['folds'] - 1}" if folds else ""


def runs_table(groups: list[Group]) -> dict[str, Any]:
    letters = {run.folder: group.letter for group in groups for run in group.runs}
    runs = [run for group in groups for run in group.runs]
    columns = [
        Column("", lambda run: letters[run.folder]),
        Column("run", lambda run: run.name, text=True),
        Column("seed", lambda run: run.config["seed"]),
        *(
            [Column("fold", lambda run: "" if run.fold is None else run.fold)]
            if any(group.folds for group in groups)
            else []
        ),
        Column("trained", trained),
        Column("selected epoch", lambda run: "" if run.best is None else selected(run)),
        *score_columns(runs[0].of_volumes, lambda run, name: [run.score(name)]),
    ]
    return table(columns, runs)


def notes(groups: list[Group]) -> list[str]:
    lines = [f"{group.letter}, {lost}" for group in groups for lost in group.lost]
    if len({group.config["protocol"] for group in groups}) > 1:
        lines.append("The groups follow different protocols: with paper the reported set also selects the epoch.")
    if len({group.config["image_size"] for group in groups}) > 1 and not groups[0].runs[0].of_volumes:
        lines.append("Scores are taken at the network's input size, which differs between the groups.")
    for group in groups:
        if group.folds and group.missing_folds:
            missing = ", ".join(map(str, group.missing_folds))
            lines.append(f"{group.letter}: no run of fold {missing} is among these; its images are missing too.")
    if any(len(group.runs) == 1 for group in groups):
        lines.append("A group of one seed has no standard deviation: how much its score owes to chance is not known.")
    return lines


def differing_values(groups: list[Group]) -> dict[str, Any]:
    """A row for each field of the config, and each value of optimizer and scheduler, that the groups do not share."""
    values = [
        {name: shown(value) for name, value in group.config.items() if name not in EXECUTION | {"seed", "fold"}}
        | {name: shown(value) for name, value in group.optimization.items()}
        for group in groups
    ]
    names = dict.fromkeys(name for of_group in values for name in of_group)
    rows = [(name, [of_group.get(name, "") for of_group in values]) for name in names]

    def value_of(i: int) -> Callable[[Any], str]:
        return lambda row: row[1][i]

    columns = [Column(group.letter, value_of(i), text=True) for i, group in enumerate(groups)]
    return table([Column("field", lambda row: row[0]), *columns], [row for row in rows if len(set(row[1])) > 1])


def pairs(groups: list[Group], dice: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each two groups: the paired test of their Dice, or why there is none."""
    rows = []
    for one, other in itertools.combinations(groups, 2):
        row: dict[str, Any] = {"names": f"{one.letter} − {other.letter}"}
        row["reason"] = why_unpaired(one.tested, other.tested)
        if row["reason"] is None:
            row |= paired_test(dice[one.letter], dice[other.letter])
        rows.append(row)
    tested = [row for row in rows if row.get("p") is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["corrected"] = p
    return rows


def comparison_charts(groups: list[Group], dice: dict[str, dict[str, float]]) -> list[Markup]:
    """Dice of every image by group; curves of every run, named by its group's letter, its seed and fold."""
    drawn = [charts.boxes("Dice by group", {name: list(values.values()) for name, values in dice.items()}, "Dice")]
    for column in ("train_loss", "val_loss", "dsc", "dice_transunet"):
        named = [(f"{group.letter} {member(run)}", run) for group in groups for run in group.runs]
        curves = {name: run.curve(column) for name, run in named if any(column in row for row in run.epochs)}
        if curves:
            drawn.append(charts.lines(column, curves, log="loss" in column))
    return drawn
