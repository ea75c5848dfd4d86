"""Runs side by side: means and standard deviations over seeds, and paired tests over the images that both have seen.

    python -m report results/RUN... -o compare.html

Runs on the same test images that differ only in the seed, and in fields that change no score, are a group. So are the
folds of a cross-validation, one experiment that tests every image once. A group's score of an image is the mean over
its runs. Wilcoxon's signed-rank test compares two groups if their images (cases) are the same. Its unit is the lesion
(patient): the images of a lesion are averaged first. Holm's method corrects the p values of all pairs. Runs of the same
values and seed with different scores, or networks, come from different code: they are apart, and the page says so.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.stats import bootstrap, wilcoxon

from report import charts
from report.groups import MEMBER_FIELDS, SCORES, Group, group_runs, member_name, pairing_obstacle
from report.page import TEXT, Contents, TableCell, page_bytes, table, training_length, weights_of
from report.paper import NEUTRAL_FIELDS, format_value
from report.records import Record, means_of_units
from utils.files import write_atomically

RESAMPLES = 2000


def write_comparison(runs: list[Record], path: str | Path) -> Path:
    """Compare finished runs in an HTML file and return its path.

    Raises ValueError for fewer than two different runs, and for volumes beside images."""
    path = Path(path)
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"-o {path}: found a file that is no page, expected a name ending in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"-o {path}: found no folder {path.parent}, expected one to write into")
    write_atomically(path, page_bytes("compare.html", **comparison_contents(runs)))
    return path


def paired_test(some_scores: dict[str, float], other_scores: dict[str, float]) -> dict[str, Any]:
    """Compare {name: score} with another of the same names. Return the number of pairs and of unequal ones, the mean of
    the differences with its 95 % interval (bootstrap, BCa), their median, and Wilcoxon's two-sided p, None if no pair
    differs."""
    differences = np.array([some_scores[name] - other_scores[name] for name in sorted(some_scores)])
    result: dict[str, Any] = {"pairs": len(differences), "unequal": int(np.count_nonzero(differences))}
    result |= {"mean": differences.mean(), "median": np.median(differences), "low": None, "high": None, "p": None}
    if result["unequal"]:
        result["p"] = float(wilcoxon(differences, zero_method="wilcox").pvalue)
    if len(np.unique(differences)) > 1:
        options: dict[str, Any] = {
            "n_resamples": RESAMPLES,
            "rng": np.random.default_rng(0),
            "batch": 100,
            "method": "BCa",
        }
        result["low"], result["high"] = bootstrap((differences,), np.mean, **options).confidence_interval
    return result


def holm(p_values: list[float]) -> list[float]:
    """Return p values by Holm's correction: in ascending order each times the number of those from it on, at most 1."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def comparison_contents(runs: list[Record]) -> Contents:
    """Return everything that the template compare.html shows."""
    runs = list({run.folder.resolve(): run for run in runs}.values())
    if len(runs) < 2:
        expected = "two or more different ones to compare; without -o each has its own page"
        raise ValueError(f"found {len(runs)} finished run, expected {expected}")
    kinds = {run.of_volumes: run.name for run in reversed(runs)}
    if len(kinds) > 1:
        raise ValueError(f"{kinds[True]} was tested on volumes and {kinds[False]} on images: they have no common score")
    groups = group_runs(runs)
    dice = {group.letter: group.dice() for group in groups}
    unit, larger = ("cases", "patients") if runs[0].of_volumes else ("images", "lesions")
    averaged = any(name != its for group in groups for name, its in group.units.items())
    folds = any(group.folds for group in groups)
    caption = "Mean ± standard deviation over the seeds" + (", of a cross-validation over its folds" if folds else "")
    return {
        "what": unit,
        "unit": larger if averaged else unit,
        "groups": table((group_row(group, unit, folds) for group in groups), caption),
        "runs": table(run_row(run, group.letter, folds) for group in groups for run in group.runs),
        "notes": notes(groups),
        "differing": differing_values(groups),
        "pairs": pairs(groups, dice),
        "charts": comparison_charts(groups, dice),
    }


def group_row(group: Group, unit: str, folds: bool) -> list[TableCell]:
    of_folds = f"{', '.join(map(str, group.folds))} of 0..{group.runs[0].folds - 1}" if group.folds else ""
    return [
        ("", group.letter),
        ("network", group.config["network"], TEXT),
        ("data", group.config["dataset"], TEXT),
        ("initial weights", weights_of(group.runs[0]), TEXT),
        ("recipe", group.recipes, TEXT),
        ("seeds", group.seeds, TEXT),
        *([("folds", of_folds, TEXT)] if folds else []),
        (unit, len(group.test_rows)),
        *((score.label, group.text(name)) for name, score in SCORES[group.of_volumes].items()),
    ]


def run_row(run: Record, letter: str, folds: bool) -> list[TableCell]:
    return [
        ("", letter),
        ("run", run.name, TEXT),
        ("seed", run.config["seed"]),
        *([("fold", "" if run.fold is None else run.fold)] if folds else []),
        ("trained", training_length(run)),
        ("selected epoch", "" if run.best_epoch is None else run.best_epoch),
        *((score.label, score.text([run.score(name)])) for name, score in SCORES[run.of_volumes].items()),
    ]


def selected_on_reported(group: Group) -> bool:
    """Return whether the reported images selected the epoch, as published. A test alone selects nothing."""
    values = group.config
    return not (group.of_volumes or values["test_only"]) and (values["protocol"], values["select"]) == ("paper", "best")


def notes(groups: list[Group]) -> list[str]:
    lines = [f"{group.letter}, {lost}" for group in groups for lost in group.collapses]
    flattered = [group.letter for group in groups if selected_on_reported(group)]
    if 0 < len(flattered) < len(groups):
        lines.append(f"{', '.join(flattered)}: the reported images selected the epoch too. This flatters the scores.")
    if len({group.config["image_size"] for group in groups}) > 1 and not groups[0].runs[0].of_volumes:
        lines.append("Scores are computed at the network's input size, which differs between the groups.")
    for group in groups:
        missing = [str(fold) for fold in range(group.runs[0].folds) if fold not in group.folds]
        if group.folds and missing:
            folds = ", ".join(missing)
            lines.append(f"{group.letter}: no run of fold {folds} is among these; its images are missing too.")
    for one, other in itertools.combinations(groups, 2):
        if one.test_rows.keys() == other.test_rows.keys() and not differing_values([one, other])["rows"]:
            lines.append(
                f"{one.letter} and {other.letter} have the same configuration. They are apart because their networks "
                "differ, or their scores do with the same seed: something other than the configuration differs."
            )
    if any(len(group.runs) == 1 for group in groups):
        lines.append("A group of one seed has no standard deviation: the effect of chance on its score is unknown.")
    return lines


def differing_values(groups: list[Group]) -> Contents:
    """Return a table of the fields of the config, and the values of optimizer and scheduler, that differ."""
    values = [{name: format_value(v) for name, v in (group.config | group.optimization).items()} for group in groups]
    rows = []
    for name in dict.fromkeys(itertools.chain(*values)):
        texts = [of_group.get(name, "") for of_group in values]
        if name not in NEUTRAL_FIELDS | MEMBER_FIELDS and len(set(texts)) > 1:
            cells = [(group.letter, text, TEXT) for group, text in zip(groups, texts, strict=True)]
            rows.append([("field", name), *cells])
    return table(rows)


def pairs(groups: list[Group], dice: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return a row for each pair of groups: the paired test of their Dice, or why there is none."""
    rows = []
    for one, other in itertools.combinations(groups, 2):
        reason = pairing_obstacle(one.test_rows, other.test_rows)
        units = min(one.units, other.units, key=lambda known: len(set(known.values())))  # an old run knows no patients
        test = {} if reason else paired_test(*(means_of_units(dice[group.letter], units) for group in (one, other)))
        rows.append({"names": f"{one.letter} − {other.letter}", "reason": reason, **test})
    tested = [row for row in rows if row.get("p") is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["corrected"] = p
    return rows


def comparison_charts(groups: list[Group], dice: dict[str, dict[str, float]]) -> list[Markup]:
    """Draw the Dice of every image by group, and the curves of every run, named by its group, seed and fold."""
    drawn = [charts.boxes("Dice by group", {name: list(values.values()) for name, values in dice.items()}, "Dice")]
    named = [(f"{group.letter} {member_name(run)}", run) for group in groups for run in group.runs]
    for column in ("train_loss", "val_loss", "dsc", "dice_transunet"):
        curves = {name: run.curve(column) for name, run in named if any(column in row for row in run.epochs)}
        if curves:
            drawn.append(charts.lines(column, curves, log="loss" in column))
    return drawn
