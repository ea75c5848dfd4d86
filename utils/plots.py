"""Pictures of a run as PNG files and in TensorBoard: curves, predictions beside the truth. Figures are made without
pyplot, so they share no state and need no display. (The charts inside HTML pages come from utils/report/charts.py.)

Images are (C, H, W) or (H, W) tensors or arrays of any range; masks and labels are (H, W) or (1, H, W).
"""

import colorsys
import io
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from utils import distributed
from utils.files import read_rows, write_atomically

Colour = tuple[int, int, int]
Sample = tuple[str, ArrayLike, ArrayLike, ArrayLike]  # title, image, truth, prediction

# How PNG files are compressed: photographs become as small as with Pillow's own settings, in a fourth of the time.
PNG: dict[str, Any] = {"format": "PNG", "compress_level": 1, "compress_type": zlib.Z_RLE}
TRUTH, PREDICTION = (0, 200, 80), (255, 60, 40)
DICE_OF_CLASS = ("dsc ", "dice_transunet ")  # how columns of metrics.csv begin, before the name of a class
CLASS_COLOURS = [  # of class 1, 2, ...: told apart by people with any kind of colour vision
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (230, 159, 0),
    (150, 90, 220),
]


# ---- curves


def save_curves(metrics: str | Path, path: str | Path) -> None:
    """Draws metrics.csv as a PNG: losses, learning rate, overlap scores and, where measured, HD95, over the epochs."""
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
    for i, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1, title=title, xlabel="epoch")
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
            _without_math(axes.legend(fontsize="small"))
        axes.grid(alpha=0.3)
    save_figure(path, figure)


def save_figure(path: str | Path, figure: Figure) -> None:
    """Writes a figure as a PNG, in one step."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_atomically(path, picture.getvalue())


# ---- predictions


def for_display(image: ArrayLike) -> np.ndarray:
    """Any image as uint8 (H, W, 3), its darkest value black and its brightest white; one colour becomes mid-grey."""
    image = np.asarray(image)
    image = image.transpose(1, 2, 0) if image.ndim == 3 else image[..., None]
    low, high = float(image.min()), float(image.max())
    if image.dtype == np.uint8:
        levels = np.arange(256).clip(low, high)  # each is computed once instead of in every pixel
        shown = _stretched(levels, low, high).take(image)
    else:
        shown = _stretched(image, low, high)
    return np.broadcast_to(shown, (*image.shape[:2], 3)).copy()


def _stretched(values, low, high):
    """Values from low to high as 0..255, uint8."""
    values = np.asarray(values, dtype=np.float64)
    scaled = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return (scaled * 255).round().astype(np.uint8)


def draw_outlines(image: ArrayLike, prediction: ArrayLike | None = None, truth: ArrayLike | None = None) -> np.ndarray:
    """The image, uint8 (H, W, 3), with the outlines of two masks: the truth in green, the prediction in red."""
    picture = for_display(image)
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if mask is not None:
            picture[_outline(_flat(mask) > 0.5)] = colour
    return picture


def _outline(mask):
    """The pixels of a mask (H, W) that are near its border; those of the picture's edge count as border.

    The same as with scipy's binary_erosion, but several times faster."""
    inside = mask
    for _ in range(max(1, min(mask.shape) // 150)):  # visible when a large picture is made small
        smaller = np.zeros_like(inside)
        smaller[1:-1, 1:-1] = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1]
        smaller[1:-1, 1:-1] &= inside[1:-1, :-2] & inside[1:-1, 2:]
        inside = smaller
    return mask & ~inside


def draw_labels(image: ArrayLike, labels: ArrayLike, opacity: float = 0.55, colours: Sequence[str] = ()) -> np.ndarray:
    """The image, uint8 (H, W, 3), under the colours of its classes; class 0 is left as it is."""
    picture, labels = for_display(image), _flat(labels).astype(int)
    of_class = np.array([(0, 0, 0), *class_colours(labels.max(), colours)])
    there = labels > 0
    coloured = (1 - opacity) * picture[there] + opacity * of_class[labels[there]]
    picture[there] = coloured.round().astype(np.uint8)
    return picture


def draw_class_outlines(image: ArrayLike, labels: ArrayLike, colours: Sequence[str] = ()) -> np.ndarray:
    """The image, uint8 (H, W, 3), with the outline of each class from 1 on in its colour."""
    picture, labels = for_display(image), _flat(labels).astype(int)
    for number, colour in enumerate(class_colours(labels.max(), colours), 1):
        picture[_outline(labels == number)] = colour
    return picture


def class_colours(number: int, given: Sequence[str] = ()) -> list[Colour]:
    """The colours of the classes 1, ..., number: those `given`, such as "#ff0000", or the usual ones if none are."""
    if given:
        red_green_blue = [bytes.fromhex(colour[1:]) for colour in given[:number]]
        return [(r, g, b) for r, g, b in red_green_blue]
    more = (colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 0.9) for i in range(number - len(CLASS_COLOURS)))
    return CLASS_COLOURS[:number] + [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more]


def make_panels(
    samples: Sequence[Sample], class_names: Sequence[str] | None = None, colours: Sequence[str] = ()
) -> Figure:
    """A figure with a row for each (title, image, truth, prediction): image, truth, prediction.

    Without `class_names` the masks are binary and drawn as outlines; with the names of the classes 1, 2, ... they hold
    class numbers, drawn as `colours` (see `class_colours`)."""
    figure = Figure(figsize=(9, 3.2 * len(samples) + 0.4), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, (title, image, truth, prediction) in zip(axes, samples, strict=True):
        if class_names is None:
            pictures = for_display(image), draw_outlines(image, truth=truth), draw_outlines(image, prediction)
        else:
            drawn = [draw_labels(image, labels, colours=colours) for labels in (truth, prediction)]
            pictures = for_display(image), *drawn
        for axis, picture, what in zip(row, pictures, (title, "truth", "prediction"), strict=True):
            axis.imshow(picture)
            axis.set_title(_drawable(what), fontsize="small", parse_math=False)
            axis.set_axis_off()
    if class_names is not None:
        add_class_legend(figure, class_names, colours)
    return figure


def save_panels(
    path: str | Path,
    samples: Sequence[Sample],
    class_names: Sequence[str] | None = None,
    colours: Sequence[str] = (),
) -> None:
    """Writes `make_panels` as a PNG."""
    save_figure(path, make_panels(samples, class_names, colours))


def add_class_legend(figure: Figure, class_names: Sequence[str], colours: Sequence[str] = ()) -> None:
    """Puts the names of the classes below a figure, in as many columns as its width holds, and makes room for them."""
    canvas = FigureCanvasAgg(figure)
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            handles=class_patches(class_names, colours), loc="outside lower center", ncols=columns, fontsize="small"
        )
        _without_math(legend)
        box = legend.get_window_extent(canvas.get_renderer())
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, box.width / figure.dpi + 0.1), height + box.height / figure.dpi)


def class_patches(class_names: Sequence[str], colours: Sequence[str] = ()) -> list[Patch]:
    """What a legend needs to show the colours of the classes 1, 2, ..."""
    shown = np.array(class_colours(len(class_names), colours)) / 255
    return [Patch(color=colour, label=legend_label(name)) for colour, name in zip(shown, class_names, strict=True)]


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes a uint8 array, (H, W) or (H, W, 3), as a PNG file."""
    Image.fromarray(picture).save(path, **PNG)


def _drawable(text):
    """The text with a box for each character that the font lacks; matplotlib would warn of each."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    return "".join(letter if ord(letter) in glyphs else "\N{WHITE SQUARE}" for letter in text)


def legend_label(name: str) -> str:
    """A name as matplotlib shows it in a legend: without a first space it would leave out _name."""
    return _drawable(f" {name}" if name.startswith("_") else name)


def _without_math(legend):
    """Names between dollar signs stay what they are."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _flat(mask):
    mask = np.asarray(mask)
    return mask[0] if mask.ndim == 3 else mask


# ---- TensorBoard


class EventWriter:
    """Writes TensorBoard's event files; of several processes only the main one does.

    A run resumed after `step` steps takes back what it had written beyond them. tensorboardX's own SummaryWriter hands
    everything to a thread; when the disk is full that thread dies, and the run waits for it forever."""

    def __init__(self, folder: str | Path, step: int = 0):
        self.writer: EventsWriter | None = None
        if distributed.is_main():
            Path(folder).mkdir(exist_ok=True)
            suffix = f".{os.getpid()}.{time.time_ns()}"  # a run stopped and resumed within a second has two files
            self.writer = EventsWriter(str(Path(folder, "events")), suffix)
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._write(step=step, summary=summary.scalar(tag, value))

    def add_image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """`picture`: uint8 (H, W, 3)."""
        self._write(step=step, summary=summary.image(tag, picture, dataformats="HWC"))

    def _write(self, **event: Any) -> None:
        if self.writer is not None:
            self.writer.write_event(Event(wall_time=time.time(), **event))

    def flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def add_panels(
    writer: EventWriter,
    tag: str,
    samples: Sequence[Sample],
    step: int,
    class_names: Sequence[str] | None = None,
    colours: Sequence[str] = (),
) -> None:
    """Shows `make_panels` in TensorBoard."""
    canvas = FigureCanvasAgg(make_panels(samples, class_names, colours))
    canvas.draw()
    writer.add_image(tag, np.asarray(canvas.buffer_rgba())[..., :3], step)
