"""The page of one run, report.html: its training, its test, pictures of its predictions, its configuration."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from configs.options import published_values
from report import charts
from report.page import (
    TEXT,
    Contents,
    css_colour,
    data_uri,
    page_bytes,
    percent,
    read_rgb,
    table,
    training_length,
    weights_of,
)
from report.paper import DOUBT, TESTED, UNCONFIRMED, format_value
from report.records import Record
from report.sections import DIFFERENCE_MARK, class_keys, distribution, extremes, paper_cells
from report.volume_page import volumes_part
from utils.files import open_image, reading, write_atomically
from utils.plots import DICE_OF_CLASS, PREDICTION, TRUTH, draw_class_outlines

LABELS = {"miou": "mIoU", "dsc": "DSC"} | {name: name for name in ("accuracy", "specificity", "sensitivity")}
MEASURES = ("seconds", "images_per_second", "waiting_share", "memory_gb")  # columns of metrics.csv: time and memory
CLASS = re.compile("^(" + "|".join(map(re.escape, DICE_OF_CLASS)) + ")")  # before the name of a class
COUNTS = {"tp": "true positive", "fp": "false positive", "fn": "false negative", "tn": "true negative"}


def write_report(run: Record) -> Path:
    """Make report.html in a run folder, from what is in it so far, and return its path."""
    path = run.folder / "report.html"
    write_atomically(path, page_bytes("report.html", **run_contents(run)))
    return path


def run_contents(run: Record) -> Contents:
    """Return everything that the template report.html shows."""
    parts: Contents = {
        "run": run,
        "weights": weights_of(run),
        "trained": training_length(run),
        "facts": run.facts,
        "measured": {name: run.curve(name)[1] for name in MEASURES},
        "differences": run.differences if run.config["dataset"] in (*TESTED, "demo") else [],
        "difference_mark": DIFFERENCE_MARK if run.published else "",
        "charts": training_charts(run),
        **configuration(run),
    }
    if run.finished:
        parts |= volumes_part(run) if run.of_volumes else images_part(run)
    return parts


def training_charts(run: Record) -> list[Markup]:
    """Draw the curves of metrics.csv."""
    names = list(dict.fromkeys(name for row in run.epochs for name in row))
    unit: dict[str, Any] = {"limits": (0, 1)}
    panels: list[tuple[str, list[str], dict[str, Any]]] = [
        ("loss", [name for name in names if name.endswith("loss")], {"log": True}),
        ("learning rate", [name for name in names if name == "lr"], {"log": True}),
        ("mIoU", [name for name in names if name in ("miou", "miou_per_image")], unit),
        ("DSC", [n for n in names if n in ("dsc", "dsc_per_image", "dice_transunet", "dice_strict")], unit),
        ("Dice of classes", [name for name in names if name.startswith(DICE_OF_CLASS)], unit),
        ("HD95", [name for name in names if name.startswith("hd95")], {}),
    ]
    return [
        charts.lines(title, {CLASS.sub("", name): run.curve(name) for name in columns}, mark=run.best_epoch, **options)
        for title, columns, options in panels
        if columns
    ]


def images_part(run: Record) -> Contents:
    several = run.num_classes > 1
    dice = run.dice()
    return {
        "comparison": scores_table(run),
        "doubt": DOUBT if UNCONFIRMED & run.published.keys() else "",
        "confusion": class_counts(run) if several else binary_counts(run),
        "distribution": distribution(dice, "Dice of each image", "images"),
        "pictures": [
            (title, [{"name": n, "images": overlay_pictures(run, n), "text": f"Dice {dice[n]:.3f}"} for n in names])
            for title, names in extremes(dice)
        ],
        "keys": class_keys(run) if several else [("truth", css_colour(TRUTH)), ("prediction", css_colour(PREDICTION))],
    }


def overlay_pictures(run: Record, name: str) -> list[str]:
    """Return the overlay that the test saved of an image, for several classes with the true outlines; [] without it."""
    overlay, truth = (run.file("predictions", f"{name}_{kind}.png") for kind in ("overlay", "truth"))
    if overlay is None:
        return []
    pixels = read_rgb(overlay)
    if truth is not None:
        with open_image(truth) as file:
            labels = np.array(file)
        highest, shape = max(1, run.num_classes - 1), pixels.shape[:2]
        if labels.shape != shape:
            raise ValueError(f"{truth}: found labels of shape {labels.shape}, expected {shape} as its image")
        if labels.min() < 0 or labels.max() > highest or not np.array_equal(labels, np.round(labels)):
            raise ValueError(f"{truth}: found {labels.min()} to {labels.max()}, expected classes 0 to {highest}")
        pixels = draw_class_outlines(pixels.transpose(2, 0, 1), labels, run.checked_config.structure_colours)
    with reading(overlay):
        return [data_uri(pixels)]


def scores_table(run: Record) -> Contents:
    rows = (
        [
            ("", label),
            ("all pixels", percent(run.score(score))),
            *paper_cells(run, score, 100 * run.score(score)),
            ("mean of images", percent(run.score(f"{score}_per_image"))),
        ]
        for score, label in LABELS.items()
    )
    return table(rows, f"{len(run.test_rows)} images of {run.scores.get('split', 'val')}")


def binary_counts(run: Record) -> Contents | None:
    """Return the confusion matrix over all pixels, None for a run from before counts were stored."""
    if not all("tp" in row for row in run.test_rows.values()):
        return None
    counts = {name: sum(row[name] for row in run.test_rows.values()) for name in COUNTS}
    total = max(1, sum(counts.values()))
    cells = {name: f"{count:,.0f} ({count / total:.1%})" for name, count in counts.items()}
    columns = ("", "predicted foreground", "predicted background")
    rows = (("true foreground", cells["tp"], cells["fn"]), ("true background", cells["fp"], cells["tn"]))
    caption = f"Pixels of all test images, threshold {run.values['threshold']}"
    return table((list(zip(columns, row, strict=True)) for row in rows), caption)


def class_counts(run: Record) -> Contents:
    def count(name: str, c: int) -> str:
        return f"{sum(row.get(f'{name}_class{c}', 0) for row in run.test_rows.values()):,.0f}"

    rows = (
        [
            ("", name, TEXT),
            *((label, count(key, c)) for key, label in COUNTS.items()),
            ("IoU %", percent(run.score("miou", c))),
            ("Dice %", percent(run.score("dsc", c))),
        ]
        for c, name in enumerate(["background", *run.class_names])
    )
    return table(rows, "Pixels of all test images, each class against the rest")


def configuration(run: Record) -> Contents:
    """Return the config, its values that differ from the published ones, and the log."""
    published, known = published_values(run.config_class), run.config_class.__dataclass_fields__
    changed = {name for name in run.config if name in published and run.values[name] != published[name]}
    unknown = f"no field of {run.config_class.__name__}"
    changes = [(name, run.values[name], format_value(published[name])) for name in run.config if name in changed]
    changes += [(name, value, format_value(default)) for name, value, default in run.row_changes]
    changes += [(name, run.config[name], unknown) for name in run.config if name not in known]
    rows = (
        [("field", name), ("this run", format_value(value), TEXT), ("published", default, TEXT)]
        for name, value, default in changes
    )
    every = ([("", name), ("", format_value(value), TEXT)] for name, value in run.config.items())
    return {
        "values": table(every, marked=[name in changed for name in run.config]),
        "changed": table(rows, "Values that differ from the published ones", itertools.repeat(True)),
        "log": "\n".join(line for line in run.log if not line.startswith("epoch ")),
    }
