"""Figures of a run for PNG files and TensorBoard: curves, and predictions beside the ground truth.

They do without pyplot, so they share no state and need no display. Importing matplotlib takes half a second or more:
import this module where something is drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from utils.files import read_rows, write_atomically
from utils.plots import DICE_OF_CLASS, class_colours, draw_labels, draw_outlines, encode_png, for_display

Sample = tuple[str, ArrayLike, ArrayLike, ArrayLike]  # title, image, truth, prediction


def save_curves(metrics: str | Path, path: str | Path) -> None:
    """Plot the columns of metrics.csv over the epochs: losses, learning rate, overlap scores and, if measured, HD95."""
    rows = read_rows(metrics)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    panels = {
        "loss": [name for name in columns if "loss" in name],
        "learning rate": [name for name in columns if name == "lr"],
        "overlap": [n for n in columns if " " not in n and any(score in n for score in ("miou", "dsc", "dice"))],
        "Dice of classes": [name for name in columns if name.startswith(DICE_OF_CLASS)],
        "HD95": [name for name in columns if "hd95" in name],
    }
    panels = {title: names for title, names in panels.items() if names}
    figure = Figure(figsize=(5 * max(1, len(panels)), 4), layout="constrained")
    for i, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), i, title=title, xlabel="epoch")
        for name in names:
            label = name.removeprefix("dsc ").removeprefix("dice_transunet ")
            points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
            epochs, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(epochs, values, label=legend_label(label), marker="o" if len(points) < 20 else None, markersize=3)
        if title == "learning rate" and any(float(row["lr"]) > 0 for row in rows if row["lr"]):
            axes.set_yscale("log")
        if title in ("overlap", "Dice of classes"):
            axes.set_ylim(0, 1)
        if len(names) > 1:
            _disable_math(axes.legend(fontsize="small"))
        axes.grid(alpha=0.3)
    save_figure(path, figure)


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as a PNG file, atomically."""
    write_atomically(path, encode_png(draw(figure)))


def draw(figure: Figure) -> np.ndarray:
    """Render a figure as uint8 (height, width, 3). Figure.savefig would draw everything twice."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def make_panels(
    samples: Sequence[Sample], class_names: Sequence[str] | None = None, colours: Sequence[str] = ()
) -> Figure:
    """Return a figure with a row of three pictures for each sample: image, truth, prediction.

    class_names  names of the classes 1, 2, ... if masks hold class numbers; None if they are binary, drawn as outlines
    colours      see `class_colours`"""
    figure = Figure(figsize=(9, 3.2 * len(samples) + 0.4), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False, subplot_kw={"xticks": (), "yticks": ()})
    for row, (title, image, truth, prediction) in zip(axes, samples, strict=True):
        if class_names is None:
            drawn = [draw_outlines(image, truth=truth), draw_outlines(image, prediction)]
        else:
            drawn = [draw_labels(image, labels, colours=colours) for labels in (truth, prediction)]
        pictures = for_display(image), *drawn
        for axis, picture, what in zip(row, pictures, (title, "truth", "prediction"), strict=True):
            axis.imshow(picture)
            axis.set_title(_replace_missing_glyphs(what), fontsize="small", parse_math=False)
            axis.set_axis_off()
    if class_names is not None:
        add_class_legend(figure, class_names, colours)
    return figure


def draw_panels(
    samples: Sequence[Sample], class_names: Sequence[str] | None = None, colours: Sequence[str] = ()
) -> np.ndarray:
    """Render `make_panels` as uint8 (height, width, 3)."""
    return draw(make_panels(samples, class_names, colours))


def add_class_legend(figure: Figure, class_names: Sequence[str], colours: Sequence[str] = ()) -> None:
    """Add the class names below a figure, in as many columns as fit, and enlarge the figure by their height."""
    canvas = FigureCanvasAgg(figure)
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            handles=class_patches(class_names, colours), loc="outside lower center", ncols=columns, fontsize="small"
        )
        _disable_math(legend)
        box = legend.get_window_extent(canvas.get_renderer())
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, box.width / figure.dpi + 0.1), height + box.height / figure.dpi)


def class_patches(class_names: Sequence[str], colours: Sequence[str] = ()) -> list[Patch]:
    """Return legend handles with the colours of the classes 1, 2, ..."""
    of_classes = np.array(class_colours(len(class_names), colours)) / 255
    return [Patch(color=colour, label=legend_label(name)) for colour, name in zip(of_classes, class_names, strict=True)]


def _replace_missing_glyphs(text):
    """Replace each character that the font lacks by a box. matplotlib would warn about each."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    return "".join(letter if ord(letter) in glyphs else "\N{WHITE SQUARE}" for letter in text)


def legend_label(name: str) -> str:
    """Return the legend label for a name. A leading space keeps matplotlib from hiding labels such as _name."""
    return _replace_missing_glyphs(f" {name}" if name.startswith("_") else name)


def _disable_math(legend):
    """Show dollar signs in names as they are."""
    for text in legend.get_texts():
        text.set_parse_math(False)
