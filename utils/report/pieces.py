"""Pieces that the pages of images and of volumes share: columns of the paper's numbers, distributions, choices."""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from utils.plots import class_colours
from utils.report import charts
from utils.report.page import Column, css, pairs_table, table
from utils.report.published import paper_number
from utils.report.records import Record

Contents = dict[str, Any]  # what a template shows

SHOWN = 3  # best, median and worst images
LOWEST = 10  # names in the list of the lowest scores
DIFFERENCE_MARK = "*"  # behind a difference to the paper that other values of the config may explain


def paper_columns(run: Record, score_of: Callable[[Any], str], here: Callable[[Any], float]) -> list[Column]:
    """The paper's number and how much more the run has; none where the paper has no such row.

    score_of   the name that a row's score has in published.ROWS
    here       the run's number, in the paper's unit"""
    if not run.published:
        return []
    mark = f" {DIFFERENCE_MARK}" if run.differences else ""

    def difference(row: Any) -> str:
        published = run.published.get(score_of(row))
        return "" if published is None else f"{here(row) - published:+.2f}{mark}"

    return [Column("paper", lambda row: paper_number(run.row, score_of(row))), Column("difference", difference)]


def distribution(dice: dict[str, float], title: str, what: str) -> Contents:
    values = sorted(dice.values())
    mean, median = statistics.fmean(values), statistics.median(values)
    low, high = np.percentile(values, [25, 75])
    facts = [
        ("mean", f"{mean:.4f}"),
        ("standard deviation", f"{statistics.pstdev(values):.4f}"),
        ("lowest", f"{values[0]:.4f}"),
        ("first quartile", f"{low:.4f}"),
        ("median", f"{median:.4f}"),
        ("third quartile", f"{high:.4f}"),
        ("highest", f"{values[-1]:.4f}"),
        ("below 0.5", sum(value < 0.5 for value in values)),
    ]
    lowest = [Column("", lambda name: name, text=True), Column("", lambda name: f"{dice[name]:.4f}")]
    return {
        "title": title,
        "chart": charts.histogram(f"{len(values)} {what}", values, "Dice", {"mean": mean, "median": median}),
        "facts": pairs_table(facts, f"Over {len(values)} {what}"),
        "lowest": table(lowest, sorted(dice, key=dice.__getitem__)[:LOWEST], "Lowest"),
    }


def extremes(dice: dict[str, float], count: int = SHOWN) -> list[tuple[str, list[str]]]:
    """[("Best", names), ("Median", names), ("Worst", names)], `count` of each; fewer so that none is shown twice."""
    order = sorted(dice, key=lambda name: (-dice[name], name))
    count = min(count, max(1, len(order) // 3))
    middle = max(count, (len(order) - count) // 2)
    parts = [("Best", order[:count]), ("Median", order[middle : middle + count]), ("Worst", order[-count:])]
    return parts if len(order) > 2 else [("Best and worst", order)]


def class_keys(run: Record) -> list[tuple[str, str]]:
    names = run.class_names
    colours = class_colours(len(names), run.class_colours)
    return [(name, css(colour)) for name, colour in zip(names, colours, strict=True)]
