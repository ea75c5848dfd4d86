"""Charts of the pages: SVG inside the HTML, in the page's own colours, light or dark, without references to anything
outside. (Pictures that stand alone, PNG files in the run's folder, come from utils/figures.py.)

Of the text that users chose only names of classes are in the charts; names of runs and images are in the tables.
"""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.figures import legend_label

# Colours that matplotlib draws with, and the variables of the page's style sheet that replace them.
INK, GRID, SERIES = "#000001", "#000002", [f"#00001{i}" for i in range(1, 9)]
VARIABLES = {INK: "var(--ink)", GRID: "var(--line)"} | {colour: f"var(--s{i})" for i, colour in enumerate(SERIES, 1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
DASHES = ("-", "--", "-.", ":")
MOST_LABELS = 16  # with more series a legend would cover the chart
WIDE = 50  # highest by lowest value from which a chart is logarithmic
SIZE = (4.6, 2.9)  # inches of 72 points: about what a telephone is wide
counter = itertools.count(1)


def lines(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str = "epoch",
    mark: float | None = None,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> Markup:
    """A chart of {label: (xs, ys)}; `mark` is an x to point out. Labels with the same first word share a colour.

    log  a logarithmic axis, if the highest value is at least WIDE times the lowest"""
    families = list(dict.fromkeys(first_word(label) for label in series))
    seen: list[str] = []
    with rc_context(STYLE):
        figure, axes = _empty(title, xlabel)
        for label, (xs, ys) in series.items():
            family = first_word(label)
            colour, dash = SERIES[families.index(family) % len(SERIES)], DASHES[seen.count(family) % len(DASHES)]
            seen.append(family)
            dots = "o" if len(xs) < 20 else None
            axes.plot(xs, ys, dash, label=legend_label(label), color=colour, linewidth=1.6, marker=dots, markersize=3.5)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1, linestyle=(0, (1, 3)))
        if limits is not None:
            axes.set_ylim(*limits)
        values = [y for _, ys in series.values() for y in ys]
        if log and 0 < WIDE * min(values) <= max(values):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if 1 < len(series) <= MOST_LABELS:
            axes.legend(loc="best")
        return _svg(figure, title)


def first_word(label: str) -> str:
    return next(iter(label.split()), "")


def histogram(title: str, values: Sequence[float], xlabel: str, lines: Mapping[str, float] | None = None) -> Markup:
    """How many of `values`, which lie in 0..1, fall into each twentieth; `lines`: {label: x} drawn upright."""
    with rc_context(STYLE):
        figure, axes = _empty(title, xlabel)
        axes.hist(values, bins=20, range=(0, 1), color=SERIES[0])
        for (label, x), style in zip((lines or {}).items(), ("-", ":"), strict=False):
            axes.axvline(x, color=INK, linewidth=1.2, linestyle=style, label=f"{label} {x:.3f}")
        axes.set_xlim(0, 1)
        axes.yaxis.get_major_locator().set_params(integer=True)
        if lines:
            axes.legend(loc="upper left")
        return _svg(figure, title)


def boxes(title: str, groups: Mapping[str, Sequence[float]], ylabel: str) -> Markup:
    """A box for each of {label: values}: quartiles, whiskers to 1.5 of their distance, what lies beyond as points."""
    with rc_context(STYLE):
        figure, axes = _empty(title, None)
        drawn = axes.boxplot(list(groups.values()), tick_labels=list(groups), widths=0.5, patch_artist=True)
        for part in ("boxes", "whiskers", "caps", "medians"):
            for line in drawn[part]:
                line.set(color=INK)
        for colour, box, points in zip(itertools.cycle(SERIES), drawn["boxes"], drawn["fliers"], strict=False):
            box.set(facecolor=colour)
            points.set(marker=".", markersize=4, markerfacecolor=colour, markeredgecolor="none")
        axes.set_ylabel(ylabel)
        return _svg(figure, title)


def _empty(title, xlabel):
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(title=title)
    if xlabel:
        axes.set_xlabel(xlabel)
    return figure, axes


def _svg(figure, title):
    """The figure as an <svg> element whose ids no other element of the page has."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    prefix = f"chart{next(counter)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'url\(#|href="#', lambda match: match[0] + prefix, text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{title}">', text, count=1)
    return Markup(text)
