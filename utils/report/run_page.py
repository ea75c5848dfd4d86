"""The page of one run, report.html: its training, its test, pictures of its predictions, its configuration."""

import logging
import statistics

import nibabel
import numpy as np
from PIL import Image

from utils.files import reading
from utils.plots import PREDICTION, TRUTH, class_colours, draw_class_outlines
from utils.report import charts
from utils.report.page import css, data_uri, percent, seconds, trained, weights_of
from utils.report.published import CONFIRMED, ORGAN_DICE, ROWS, shown

log = logging.getLogger("vmunet")

SHOWN = 3  # best, median and worst images
LOWEST = 10  # names in the list of the lowest scores
UNCONFIRMED = "† quoted from memory of the paper's tables, not checked yet; the others agree with a second source."
PERCENT = {"miou": "mIoU", "dsc": "DSC", "accuracy": "accuracy", "specificity": "specificity",
           "sensitivity": "sensitivity"}  # fmt: skip
NOTES = {  # of a protocol and whether volumes were tested
    ("paper", False): "Selected on the reported set: the best epoch has the lowest loss on the images whose scores are "
    "reported, as published. Such scores are too high for new images; --protocol holdout avoids it.",
    ("holdout", False): "Protocol holdout: the best epoch was selected on val, the scores are those of test.",
    ("paper", True): "The best epoch has the lowest training loss, as published; the reported volumes had no "
    "part in the choice.",
    ("holdout", True): "Protocol holdout: the best epoch has the highest Dice on the volumes of val_vol.txt, the "
    "scores are those of test_vol.txt.",
}  # fmt: skip


def contents(run):
    """Everything that the template report.html shows of a run."""
    published = ROWS.get(run.row, {})
    best = run.best
    parts = {
        "run": run,
        "weights": weights_of(run),
        "trained": trained(run),
        "notes": notes(run),
        "tiles": tiles(run),
        "comparison": None,
        "differences": run.differences,
        "charts": training_charts(run),
        "best": None if best is None else int(best["epoch"]),
        "confusion": None,
        "distribution": None,
        "pictures": [],
        "keys": [],
        "picture_note": "",
        "cases": None,
        "usage": usage(run),
        **configuration(run),
    }
    if run.finished:
        parts |= volumes_part(run, published) if run.of_volumes else images_part(run, published)
    return parts


# ---- the head


def notes(run):
    """What a reader must know before any number."""
    lines = []
    if not run.config["test_only"]:
        lines.append(NOTES[run.config["protocol"], run.of_volumes])
    if run.config["dataset"] == "demo":
        lines.append("Synthetic data: the scores show that everything works and say nothing about patients.")
    lines += dict.fromkeys(line for line in run.log if line.startswith("overlap: "))  # once, also of a resumed run
    if not run.finished:
        lines.append("Not tested yet: the run was stopped, or is still training. --resume goes on with it.")
    return lines


def tiles(run):
    scores, best = run.scores, run.best
    if not scores:
        found = []
    elif run.of_volumes:
        found = [("DSC, mean of organs and cases", percent(scores["dice_transunet"])),
                 ("HD95, voxels", f"{scores['hd95_transunet']:.2f}"), ("volumes", len(run.tested))]  # fmt: skip
    else:
        found = [("mIoU of all pixels", percent(scores["miou"])), ("DSC of all pixels", percent(scores["dsc"])),
                 ("Dice, mean of images", percent(scores["dsc_per_image"])),
                 ("test images", len(run.tested))]  # fmt: skip
    if best is not None:
        found.append(("selected epoch", int(best["epoch"])))
    if run.epochs:
        found.append(("an epoch", seconds(statistics.median(row["seconds"] for row in run.epochs))))
    return found


# ---- training


def training_charts(run):
    """Curves of what metrics.csv has."""
    names = list(dict.fromkeys(name for row in run.epochs for name in row))
    mark = run.best and run.best["epoch"]
    panels = [
        ("loss", [name for name in names if name.endswith("loss")], {"log": True}),
        ("learning rate", [name for name in names if name == "lr"], {"log": True}),
        ("mIoU", [name for name in names if name in ("miou", "miou_per_image")], {"limits": (0, 1)}),
        ("DSC", [name for name in names if name in ("dsc", "dsc_per_image") or name.startswith("dice")],
         {"limits": (0, 1)}),
        ("HD95", [name for name in names if name.startswith("hd95")], {}),
    ]  # fmt: skip
    return [
        charts.lines(title, {name: curve(run, name) for name in shown}, mark=mark, **options)
        for title, shown, options in panels
        if shown
    ]


def curve(run, name):
    points = [(row["epoch"], row[name]) for row in run.epochs if name in row]
    return tuple(zip(*points, strict=True))


def usage(run):
    """[(what, how much)] from metrics.csv and the log."""
    columns = {name: [row[name] for row in run.epochs if name in row]
               for name in ("seconds", "images_per_second", "waiting_share", "memory_gb")}  # fmt: skip
    found = []
    if columns["seconds"]:
        total, middle = sum(columns["seconds"]), statistics.median(columns["seconds"])
        found += [("training and validation", seconds(total)), ("an epoch, median", seconds(middle))]
    if columns["images_per_second"]:
        found.append(("training images per second, median", f"{statistics.median(columns['images_per_second']):.1f}"))
        found.append(("of the time waiting for data, median", f"{statistics.median(columns['waiting_share']):.1%}"))
    if columns["memory_gb"]:
        found.append(("memory, peak", f"{max(columns['memory_gb']):.2f} GB"))
    starts = {"device ": "device", "scan backend on ": "scan", f"{run.config['network']}: ": "network"}
    for start, what in starts.items():  # the last line of a kind: of the last time that the run was started
        line = next((line for line in reversed(run.log) if line.startswith(start)), None)
        if line is not None:
            found.append((what, line.removeprefix(start)))
    return found


# ---- the test on images


def images_part(run, published):
    several = run.config["num_classes"] > 1
    dice = run.dice()
    outlines = [("truth", css(TRUTH)), ("prediction", css(PREDICTION))]
    return {
        "comparison": image_scores(run, published),
        "confusion": class_counts(run) if several else binary_counts(run),
        "distribution": distribution(dice, "Dice of each image", "images"),
        "pictures": [(title, [picture(run, name, dice[name]) for name in names]) for title, names in extremes(dice)],
        "keys": class_keys(run.config["num_classes"] - 1) if several else outlines,
        "picture_note": "Filled: prediction. Outlined: truth." if several else "Outlines at the network's input size.",
    }  # fmt: skip


def image_scores(run, published):
    columns = ["all pixels", "mean of images"]
    if published:
        columns[1:1] = ["paper", "difference"]
    rows = []
    for name, label in PERCENT.items():
        cells = [percent(run.scores[name]), percent(run.scores[f"{name}_per_image"])]
        if published:
            cells[1:1] = beside(run.row, name, published.get(name), 100 * run.scores[name])
        rows.append({"name": label, "cells": cells, "total": False})
    remarks = ["Percent. Pixels of all test images are counted together, as published; the mean of images is ours."]
    if run.config["num_classes"] > 1:
        remarks = ["Percent; means of the classes from 1 on."]
    if published:
        remarks += [UNCONFIRMED, "The published split of ISIC was never released: the paper's test images are others."]
    return {"caption": f"{len(run.tested)} images of {run.scores.get('split', 'val')}", "columns": columns,
            "rows": rows, "remarks": remarks}  # fmt: skip


def binary_counts(run):
    if not all("tp" in row for row in run.tested.values()):
        return None  # a run from before counts were stored
    tp, fp, fn, tn = (sum(row[name] for row in run.tested.values()) for name in ("tp", "fp", "fn", "tn"))
    total = tp + fp + fn + tn

    def cell(count):
        return f"{count:,.0f} ({count / total:.1%})"

    return {
        "caption": f"Pixels of all test images, threshold {run.config['threshold']}",
        "columns": ["", "predicted foreground", "predicted background"],
        "rows": [["true foreground", cell(tp), cell(fn)], ["true background", cell(fp), cell(tn)]],
    }


def class_counts(run):
    rows = []
    for c in range(run.config["num_classes"]):
        sums = [sum(row.get(f"{name}_class{c}", 0) for row in run.tested.values()) for name in ("tp", "fp", "fn", "tn")]
        of_class = run.scores["classes"][c]
        rows.append([f"class {c}", *(f"{n:,.0f}" for n in sums), percent(of_class["miou"]), percent(of_class["dsc"])])
    columns = ["", "true positive", "false positive", "false negative", "true negative", "IoU %", "Dice %"]
    return {"caption": "Pixels of all test images, each class against the rest", "columns": columns, "rows": rows}


def picture(run, name, score):
    """The overlay that the test saved; of several classes with the outlines of the truth drawn into it."""
    folder = run.folder / "predictions"
    overlay, truth = folder / f"{name}_overlay.png", folder / f"{name}_truth.png"
    images = []
    if overlay.is_file():
        with reading(overlay), Image.open(overlay) as file:
            pixels = np.array(file.convert("RGB"))
        if truth.is_file():
            with reading(truth), Image.open(truth) as file:
                pixels = draw_class_outlines(pixels.transpose(2, 0, 1), np.array(file))
        images = [data_uri(pixels)]
    return {"name": name, "images": images, "text": f"Dice {score:.3f}"}


# ---- the test on volumes


def volumes_part(run, published):
    names = list(run.scores["class_names"])
    dice = run.dice()
    keys = [(name, css(colour)) for name, colour in zip(names, class_colours(len(names)), strict=True)]
    return {
        "comparison": organ_scores(run, published, names),
        "distribution": distribution(dice, "Dice of each case, mean of its organs", "cases"),
        "pictures": [(title, [case_slice(run, case, dice[case], part) for case in cases for part in (0.25, 0.5, 0.75)])
                     for title, cases in extremes(dice, 1)],
        "keys": keys,
        "picture_note": "Left truth, right prediction; a quarter, half and three quarters through the labels.",
        "cases": {
            "caption": "Dice %, published protocol",
            "columns": ["", "mean", *names],
            "rows": [[case, percent(dice[case]), *(percent(row[f"dice_transunet {name}"]) for name in names)]
                     for case, row in run.tested.items()],
        },
    }  # fmt: skip


def organ_scores(run, published, names):
    columns = ["DSC %", "HD95 voxels", "strict DSC %", "strict HD95 mm"]
    if published:
        columns[1:1] = ["paper", "difference"]
        columns[4:4] = ["paper"]
    rows = []
    for i, name in enumerate([None, *names]):
        values = run.scores if name is None else run.scores["classes"][i - 1]
        dice = 100 * values["dice_transunet"]
        cells = [f"{dice:.2f}", f"{values['hd95_transunet']:.2f}", percent(values["dice_strict"]),
                 f"{values['hd95_strict']:.2f}"]  # fmt: skip
        if published:
            dice_there = published["dice_transunet"] if name is None else ORGAN_DICE.get(name)
            hd95_there = published["hd95_transunet"] if name is None else None
            score = "dice_transunet" if name is None else name
            cells[1:1] = beside(run.row, score, dice_there, dice)
            cells[4:4] = beside(run.row, "hd95_transunet", hd95_there, 0)[:1]
        rows.append({"name": name or "mean", "cells": cells, "total": name is None})
    remarks = [
        "Published protocol: a prediction without truth counts as Dice 1 and HD95 0, every other empty one as 0 and 0. "
        "Strict: both empty is not counted (nan: nowhere), one empty is Dice 0 and HD95 the volume's diagonal; in "
        "voxels where the spacing is not known."
    ]
    return {"caption": f"{len(run.tested)} volumes, means over the cases", "columns": columns, "rows": rows,
            "remarks": remarks + ([UNCONFIRMED] if published else [])}  # fmt: skip


def case_slice(run, case, score, part):
    """Truth and prediction in the slice that lies at `part` of those with labels, from the NIfTI files of the test."""
    paths = [run.folder / "predictions" / f"{case}_{kind}.nii.gz" for kind in ("img", "gt", "pred")]
    images, where = [], ""
    if all(path.is_file() for path in paths):
        volumes = []
        for path in paths:
            with reading(path):
                volumes.append(np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0))
        image, truth, prediction = volumes
        labelled = np.flatnonzero((truth > 0).any((1, 2)))
        number = int(labelled[int(part * (len(labelled) - 1))]) if len(labelled) else int(part * (len(image) - 1))
        where = f", slice {number}"
        for labels in (truth, prediction):
            images.append(data_uri(draw_class_outlines(image[number], labels[number])))
    return {"name": case + where, "images": images, "text": f"Dice of the case {score:.3f}"}


# ---- shared pieces


def distribution(dice, title, what):
    values = sorted(dice.values())
    mean, median = statistics.fmean(values), statistics.median(values)
    low, high = np.percentile(values, [25, 75])
    worst = sorted(dice, key=dice.get)[:LOWEST]
    return {
        "title": title,
        "chart": charts.histogram(f"{len(values)} {what}", values, "Dice", {"mean": mean, "median": median}),
        "caption": f"Over {len(values)} {what}",
        "facts": [("mean", f"{mean:.4f}"), ("standard deviation", f"{statistics.pstdev(values):.4f}"),
                  ("lowest", f"{values[0]:.4f}"), ("first quartile", f"{low:.4f}"), ("median", f"{median:.4f}"),
                  ("third quartile", f"{high:.4f}"), ("highest", f"{values[-1]:.4f}"),
                  ("below 0.5", sum(value < 0.5 for value in values))],
        "lowest": [(name, f"{dice[name]:.4f}") for name in worst],
    }  # fmt: skip


def extremes(dice, count=SHOWN):
    """[("Best", names), ("Median", names), ("Worst", names)], `count` of each; fewer so that none is shown twice."""
    order = sorted(dice, key=lambda name: (-dice[name], name))
    count = min(count, max(1, len(order) // 3))
    middle = max(count, (len(order) - count) // 2)
    parts = [("Best", order[:count]), ("Median", order[middle : middle + count]), ("Worst", order[-count:])]
    return parts if len(order) > 2 else [("Best and worst", order)]


def beside(row, score, published, here):
    """The paper's number and how much more this run has, as two cells."""
    if published is None:
        return ["", ""]
    doubt = "" if (row, score) in CONFIRMED else " †"
    return [f"{published:.2f}{doubt}", f"{here - published:+.2f}"]


def configuration(run):
    """The config as rows, and which of its values differ from the published ones."""
    rows = [(name, shown(value), name in run.defaults and value != run.defaults[name])
            for name, value in run.config.items()]  # fmt: skip
    changed = [(name, value, shown(run.defaults[name])) for name, value, differs in rows if differs]
    unknown = [(name, value, "not a value any more") for name, value, _ in rows if name not in run.defaults]
    epoch_lines = [line for line in run.log if not line.startswith("epoch ")]
    return {"values": rows, "changed": changed + unknown, "log": "\n".join(epoch_lines)}


def class_keys(number):
    return [(f"class {c}", css(colour)) for c, colour in enumerate(class_colours(number), 1)]
