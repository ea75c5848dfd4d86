"""The page of one run, report.html: its training, its test, pictures of its predictions, its configuration."""

import statistics
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from utils.plots import DICE_OF_CLASS, PREDICTION, TRUTH
from utils.report import charts
from utils.report.page import (
    Column,
    css,
    pairs_table,
    percent,
    seconds,
    selected,
    table,
    trained,
    weights_of,
)
from utils.report.pictures import overlay_of
from utils.report.pieces import DIFFERENCE_MARK, Contents, class_keys, distribution, extremes, paper_columns
from utils.report.published import DOUBT_MEANS, UNCONFIRMED, shown
from utils.report.records import Record
from utils.report.volume_page import every_structure, missed_remark, volumes_part
from utils.volume import describe_hd95

PERCENT = {
    "miou": "mIoU",
    "dsc": "DSC",
    "accuracy": "accuracy",
    "specificity": "specificity",
    "sensitivity": "sensitivity",
}
COUNTS = {"tp": "true positive", "fp": "false positive", "fn": "false negative", "tn": "true negative"}
NOTES = {  # of a protocol and whether volumes were tested
    ("paper", False): (
        "Selected on the reported set: the best epoch has the lowest loss on the images whose scores are reported, as "
        "published. Such scores are too high for new images; --protocol holdout avoids it."
    ),
    ("holdout", False): "Protocol holdout: the best epoch was selected on val, the scores are those of test.",
    ("paper", True): (
        "The best epoch has the lowest training loss, as published; the reported volumes had no part in the choice."
    ),
    ("holdout", True): (
        "Protocol holdout: the best epoch has the highest Dice on the volumes of val_vol.txt, the scores are those of "
        "test_vol.txt."
    ),
}
FACTS = {"network": "network", "device": "machine", "scan": "scan backend"}  # of facts.json, and what the page calls it


def contents(run: Record) -> Contents:
    """Everything that the template report.html shows of a run."""
    parts: Contents = {
        "run": run,
        "weights": weights_of(run),
        "trained": trained(run),
        "lost": run.facts.get("lost"),
        "notes": notes(run),
        "tiles": tiles(run),
        "comparison": None,
        "remarks": [],
        "differences": [] if run.own_data else run.differences,
        "difference_mark": DIFFERENCE_MARK if run.published else "",
        "charts": training_charts(run),
        "best": selected(run),
        "confusion": None,
        "distribution": None,
        "pictures": [],
        "keys": [],
        "picture_note": "",
        "cases": None,
        "usage": pairs_table(usage(run), text=True),
        **configuration(run),
    }
    if run.finished:
        parts |= volumes_part(run) if run.of_volumes else images_part(run)
    return parts


# ---- the head


def notes(run: Record) -> list[str]:
    """What a reader must know before any number."""
    lines = []
    if not run.config["test_only"]:
        lines.append(NOTES[run.config["protocol"], run.of_volumes])
    if run.fold is not None:
        lines.append(
            f"Fold {run.fold} of 0..{run.values['folds'] - 1} of a cross-validation, which is one experiment: python "
            "-m utils.report RUN... -o compare.html with the runs of all folds has their mean and deviation."
        )
    if run.config["dataset"] == "demo":
        lines.append("Synthetic data: the scores show that everything works and say nothing about patients.")
    lines += [run.facts[name] for name in ("overlap", "changed_data", "extended") if name in run.facts]
    if not run.finished:
        lines.append("Not tested yet: the run was stopped, or is still training. --resume goes on with it.")
    return lines


def tiles(run: Record) -> list[tuple[str, Any]]:
    """[(label, number)] of the most important numbers."""
    found: list[tuple[str, Any]] = []
    if run.finished and run.of_volumes:
        found += [
            ("DSC, mean of structures and cases", percent(run.score("dice_transunet"))),
            (f"HD95, voxels{missed_remark(run)}", describe_hd95(every_structure(run))),
            ("volumes", len(run.tested)),
        ]
    elif run.finished:
        found += [
            ("mIoU of all pixels", percent(run.score("miou"))),
            ("DSC of all pixels", percent(run.score("dsc"))),
            ("Dice, mean of images", percent(run.score("dsc_per_image"))),
            ("test images", len(run.tested)),
        ]
    if run.best is not None:
        found.append(("selected epoch", selected(run)))
    times = run.curve("seconds")[1]
    if times:
        found.append(("an epoch", seconds(statistics.median(times))))
    return found


# ---- training


def training_charts(run: Record) -> list[Markup]:
    """Curves of what metrics.csv has."""
    names = list(dict.fromkeys(name for row in run.epochs for name in row))
    dice = [name for name in names if name in ("dsc", "dsc_per_image", "dice_transunet", "dice_strict")]
    of_classes = [name for name in names if name.startswith(DICE_OF_CLASS)]
    panels: list[tuple[str, list[str], dict[str, Any]]] = [
        ("loss", [name for name in names if name.endswith("loss")], {"log": True}),
        ("learning rate", [name for name in names if name == "lr"], {"log": True}),
        ("mIoU", [name for name in names if name in ("miou", "miou_per_image")], {"limits": (0, 1)}),
        ("DSC", dice, {"limits": (0, 1)}),
        ("Dice of classes", of_classes, {"limits": (0, 1)}),
        ("HD95", [name for name in names if name.startswith("hd95")], {}),
    ]
    return [
        charts.lines(title, {class_of(name): run.curve(name) for name in columns}, mark=selected(run), **options)
        for title, columns, options in panels
        if columns
    ]


def class_of(column: str) -> str:
    """What a chart calls a column: that of a class by the name of the class."""
    prefix = next((prefix for prefix in DICE_OF_CLASS if column.startswith(prefix)), "")
    return column.removeprefix(prefix)


def usage(run: Record) -> list[tuple[str, str]]:
    """[(what, how much)] from metrics.csv and facts.json."""
    measured = ("seconds", "images_per_second", "waiting_share", "memory_gb")
    time, speed, waiting, memory = (run.curve(name)[1] for name in measured)
    found = []
    if time:
        found.append(("training and validation", seconds(sum(time))))
        found.append(("an epoch, median", seconds(statistics.median(time))))
    if speed:
        found.append(("training images per second, median", f"{statistics.median(speed):.1f}"))
    if waiting:
        found.append(("of the time waiting for data, median", f"{statistics.median(waiting):.1%}"))
    if memory:
        found.append(("memory, peak", f"{max(memory):.2f} GB"))
    return found + [(label, run.facts[name]) for name, label in FACTS.items() if name in run.facts]


# ---- the test on images


def images_part(run: Record) -> Contents:
    several = run.num_classes > 1
    dice = run.dice()
    return {
        **image_scores(run),
        "confusion": class_counts(run) if several else binary_counts(run),
        "distribution": distribution(dice, "Dice of each image", "images"),
        "pictures": [(title, [picture(run, name, dice[name]) for name in names]) for title, names in extremes(dice)],
        "keys": class_keys(run) if several else [("truth", css(TRUTH)), ("prediction", css(PREDICTION))],
        "picture_note": "Filled: prediction. Outlined: truth." if several else "Outlines at the network's input size.",
    }


def image_scores(run: Record) -> Contents:
    columns = [
        Column("", PERCENT.__getitem__),
        Column("all pixels", lambda score: percent(run.score(score))),
        *paper_columns(run, lambda score: score, lambda score: 100 * run.score(score)),
        Column("mean of images", lambda score: percent(run.score(f"{score}_per_image"))),
    ]
    if run.num_classes > 1:
        remarks = ["Percent; means of the classes from 1 on."]
    else:
        remarks = ["Percent. Pixels of all test images are counted together, as published; the mean of images is ours."]
    if run.published:
        remarks += [DOUBT_MEANS] if UNCONFIRMED & run.published.keys() else []
        remarks.append("The published split of ISIC was never released: the paper's test images are others.")
    caption = f"{len(run.tested)} images of {run.scores.get('split', 'val')}"
    return {"comparison": table(columns, PERCENT, caption), "remarks": remarks}


def binary_counts(run: Record) -> Contents | None:
    """The confusion matrix over all pixels; None for a run from before counts were stored."""
    if not all("tp" in row for row in run.tested.values()):
        return None
    counts = {name: sum(row[name] for row in run.tested.values()) for name in COUNTS}
    total = max(1, sum(counts.values()))

    def cell(name: str) -> str:
        return f"{counts[name]:,.0f} ({counts[name] / total:.1%})"

    columns = [
        Column("", lambda row: row[0]),
        Column("predicted foreground", lambda row: cell(row[1])),
        Column("predicted background", lambda row: cell(row[2])),
    ]
    rows = [("true foreground", "tp", "fn"), ("true background", "fp", "tn")]
    return table(columns, rows, f"Pixels of all test images, threshold {run.values['threshold']}")


def class_counts(run: Record) -> Contents:
    def count(name: str) -> Callable[[int], str]:
        return lambda c: f"{sum(row.get(f'{name}_class{c}', 0) for row in run.tested.values()):,.0f}"

    columns = [
        Column("", lambda c: ["background", *run.class_names][c], text=True),
        *(Column(label, count(name)) for name, label in COUNTS.items()),
        Column("IoU %", lambda c: percent(run.score("miou", c))),
        Column("Dice %", lambda c: percent(run.score("dsc", c))),
    ]
    return table(columns, range(run.num_classes), "Pixels of all test images, each class against the rest")


def picture(run: Record, name: str, score: float) -> Contents:
    return {"name": name, "images": overlay_of(run, name), "text": f"Dice {score:.3f}"}


# ---- configuration


def configuration(run: Record) -> Contents:
    """The config, which of its values differ from the published ones, and the log."""

    def differs(name: str) -> bool:
        return name in run.defaults and run.config[name] != run.defaults[name]

    changed = [(name, shown(run.config[name]), shown(run.defaults[name])) for name in run.config if differs(name)]
    changed += [(name, shown(value), shown(published)) for name, value, published in run.edited]
    unknown = [name for name in run.config if name not in run.defaults]
    changed += [(name, shown(run.config[name]), "not a value any more") for name in unknown]
    columns = [
        Column("field", lambda row: row[0]),
        Column("this run", lambda row: row[1], text=True),
        Column("published", lambda row: row[2], text=True),
    ]
    every = [Column("", lambda name: name), Column("", lambda name: shown(run.config[name]), text=True)]
    epoch_lines = [line for line in run.log if not line.startswith("epoch ")]
    return {
        "values": table(every, run.config, marked=differs),
        "changed": table(columns, changed, "Values that differ from the published ones", lambda row: True),
        "log": "\n".join(epoch_lines),
    }
