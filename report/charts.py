"""Charts of the pages: SVG inside the HTML, in the page's own colours, light or dark, without external references.
(Pictures that stand alone, PNG files in the run's folder, come from utils/figures.py.)

Of the text that users choose, only names of classes are in the charts; names of runs and images are in the tables.
"""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.figures import legend_label

# Colours that matplotlib draws with, and the variables of the page's style sheet that replace them.
INK, GRID, SERIES = "#000001", "#000002", [f"#00001{i}" for i in range(1, 9)]
VARIABLES = {INK: "var(--ink)", GRID: "var(--line)"} | {colour: f"var(--s{i})" for i, colour in enumerate(SERIES, 1)}
STYLE = Path(__file__).with_suffix(".mplstyle")
DASHES = ("-", "--", "-.", ":")
MAX_LABELS = 16  # with more series a legend would cover the chart
LOG_RATIO = 50  # of the highest to the lowest value, from which an axis is logarithmic
SIZE = (4.6, 2.9)  # inches of 72 points: about the width of a telephone
counter = itertools.count(1)


def lines(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    mark: float | None = None,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> Markup:
    """Draw {label: (xs, ys)}, with a dotted line at x = `mark`. Labels with the same first word share a colour.

    log  a logarithmic axis, if the highest value is at least LOG_RATIO times the lowest"""
    colours: dict[str, str] = {}
    drawn: list[str] = []  # colours of the lines so far
    with rc_context(fname=STYLE):
        axes: Any = Figure(figsize=SIZE, layout="constrained").add_subplot(title=title, xlabel="epoch")
        for label, (xs, ys) in series.items():
            colour = colours.setdefault(label.partition(" ")[0], SERIES[len(colours) % len(SERIES)])
            dash = DASHES[drawn.count(colour) % len(DASHES)]
            drawn.append(colour)
            dots = "o" if len(xs) < 20 else None
            axes.plot(xs, ys, dash, label=legend_label(label), color=colour, linewidth=1.6, marker=dots, markersize=3.5)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1, linestyle=(0, (1, 3)))
        if limits is not None:
            axes.set_ylim(*limits)
        values = [y for _, ys in series.values() for y in ys]
        if log and 0 < LOG_RATIO * min(values) <= max(values):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if 1 < len(series) <= MAX_LABELS:
            axes.legend(loc="best")
        return _svg(axes.figure, title)


def histogram(title: str, values: Sequence[float], xlabel: str, lines: Mapping[str, float]) -> Markup:
    """Draw how many of `values` from 0 to 1 fall into each twentieth, and two vertical `lines` {label: x}."""
    with rc_context(fname=STYLE):
        axes: Any = Figure(figsize=SIZE, layout="constrained").add_subplot(title=title, xlabel=xlabel)
        axes.hist(values, bins=20, range=(0, 1), color=SERIES[0])
        for (label, x), style in zip(lines.items(), ("-", ":"), strict=True):
            axes.axvline(x, color=INK, linewidth=1.2, linestyle=style, label=f"{label} {x:.3f}")
        axes.set_xlim(0, 1)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="upper left")
        return _svg(axes.figure, title)


def boxes(title: str, groups: Mapping[str, Sequence[float]], ylabel: str) -> Markup:
    """Draw a box for each of {label: values}: quartiles, whiskers to 1.5 of their distance, points beyond."""
    with rc_context(fname=STYLE):
        axes = Figure(figsize=SIZE, layout="constrained").add_subplot(title=title, ylabel=ylabel)
        drawn = axes.boxplot(list(groups.values()), tick_labels=list(groups), widths=0.5, patch_artist=True)
        for line in (*drawn["boxes"], *drawn["whiskers"], *drawn["caps"], *drawn["medians"]):
            line.set(color=INK)
        for colour, box, points in zip(itertools.cycle(SERIES), drawn["boxes"], drawn["fliers"], strict=False):
            box.set(facecolor=colour)
            points.set(marker=".", markersize=4, markerfacecolor=colour, markeredgecolor="none")
        return _svg(axes.figure, title)


def _svg(figure, title):
    """Return the figure as an <svg> element whose ids are unique on the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()[file.getvalue().index("<svg") :]
    prefix = f"chart{next(counter)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'url\(#|href="#', lambda match: match[0] + prefix, text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{title}">', text, count=1)
    return Markup(text)
