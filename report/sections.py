"""Parts that the pages of images and of volumes share: the paper's numbers, distributions, the choice of pictures."""

import statistics

import numpy as np

from report import charts
from report.page import TEXT, Contents, TableCell, css_colour, table
from report.paper import paper_number
from report.records import Record
from utils.plots import class_colours

EXTREMES = 3  # worst, median and best images
LOWEST = 10  # names in the list of the lowest scores
DIFFERENCE_MARK = "*"  # behind a difference to the paper that other values of the config may explain


def paper_cells(run: Record, score: str, value: float) -> list[TableCell]:
    """Return the paper's number of a score and what `value` differs from it; [] if the paper has no such row."""
    if not run.published:
        return []
    mark = f" {DIFFERENCE_MARK}" if run.differences else ""
    difference = f"{value - run.published[score]:+.2f}{mark}" if score in run.published else ""
    return [("paper", paper_number(run.row, score)), ("difference", difference)]


def distribution(dice: dict[str, float], title: str, unit: str) -> Contents:
    values = sorted(dice.values())
    facts = {"mean": statistics.fmean(values), "standard deviation": statistics.pstdev(values)}
    names = ("lowest", "first quartile", "median", "third quartile", "highest")
    facts |= zip(names, np.percentile(values, [0, 25, 50, 75, 100]), strict=True)
    texts = {name: f"{value:.4f}" for name, value in facts.items()}
    texts["below 0.5"] = str(sum(value < 0.5 for value in values))
    lowest = sorted(dice, key=dice.__getitem__)[:LOWEST]
    marks = {name: facts[name] for name in ("mean", "median")}
    return {
        "title": title,
        "chart": charts.histogram(f"{len(values)} {unit}", values, "Dice", marks),
        "facts": table(([("", name), ("", text)] for name, text in texts.items()), f"Over {len(values)} {unit}"),
        "lowest": table(([("", n, TEXT), ("", f"{dice[n]:.4f}")] for n in lowest), "Lowest"),
    }


def extremes(dice: dict[str, float], count: int = EXTREMES) -> list[tuple[str, list[str]]]:
    """Return [("Worst", names), ("Median", names), ("Best", names)], at most `count` of each and none of them twice."""
    order = sorted(dice, key=lambda name: (dice[name], name))
    count = min(count, max(1, len(order) // 3))
    middle = max(count, (len(order) - count) // 2)
    parts = [("Worst", order[:count]), ("Median", order[middle : middle + count]), ("Best", order[-count:])]
    return parts if len(order) > 2 else [("Worst and best", order)]


def class_keys(run: Record) -> list[tuple[str, str]]:
    """Return [(name of a class, its colour)] of the classes 1, 2, ..."""
    colours = class_colours(len(run.class_names), run.checked_config.structure_colours)
    return [(name, css_colour(colour)) for name, colour in zip(run.class_names, colours, strict=True)]
