"""Tables of scores in Markdown, from records in results/, for the pages that report.results writes.

A record is named by its folder below results/. Scores are in percent; of several records the mean ± standard deviation.
Tables "without leaked images" leave out the photographs that show a lesion of the run's training images."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cache
from typing import Any

import torch

from datasets.lesions import LISTED, leaked
from report import paper
from report.compare_page import holm, paired_test
from report.groups import Score
from report.records import Record, means_of_units, score_of_image
from utils.files import REPOSITORY, read_rows
from utils.metrics import scores, summarize
from utils.runs.collapse import CollapseDetector

Rows = Mapping[str, Sequence[str]]  # {label: records}
Pairs = Mapping[str, tuple[Sequence[str], Sequence[str]]]  # {label: records on both sides of a minus}

COUNTS = ("tp", "fp", "fn", "tn")
SCORES = {"miou": "mIoU", "dsc": "DSC", "dsc_per_image": "Dice of images", "miou_per_image": "Jaccard of images"}
CHALLENGE = 0.65  # a Jaccard index below counts as 0 in the challenges' second score
SETS = {  # folder of records: the list and the column that have its training images
    "isic17": ("isic17.csv", "paper"),
    "isic18": ("isic18.csv", "paper"),
    "isic17_official": ("isic17.csv", "official"),
    "isic18_unseen": ("isic17.csv", "official"),
}
EARLY = 20  # epochs after which a fall is no longer a network that has just begun


@cache
def record(name: str) -> Record:
    return Record(REPOSITORY / "results" / name)


@cache
def leaked_in(name: str) -> Set[str]:
    """Return the images of a run's test that show a lesion of the training images (holdout: or of the selecting)."""
    table, column = SETS[name.partition("/")[0]]
    rows = read_rows(LISTED.with_name(table), "id", column)
    return leaked(record(name).test_rows, [row["id"] for row in rows if row[column] == "train"])


@cache
def image_scores(name: str, clean: bool = False) -> dict[str, Any]:
    """Return the scores of a run's test, with the `threshold`ed Jaccard and the number of `images`, from the counts of
    its images, if `clean` of those that did not leak."""
    out = leaked_in(name) if clean else set()
    rows = [row for image, row in record(name).test_rows.items() if image not in out]
    counts = torch.tensor([[row[count] for count in COUNTS] for row in rows]).long()
    jaccard = scores(counts, undefined=1.0)["miou"]
    threshold = torch.where(jaccard < CHALLENGE, 0.0, jaccard).mean().item()
    return summarize(counts) | {"threshold": threshold, "images": len(rows)}


@cache
def epochs_of(name: str) -> list[dict[str, float]]:
    """Return the rows of metrics.csv, also of a folder with no more than that."""
    rows = read_rows(REPOSITORY / "results" / name / "metrics.csv")
    return [{column: float(value) for column, value in row.items() if value} for row in rows]


def last_epoch(name: str) -> dict[str, float]:
    """Return the last epoch's scores of the reported images; {} where the epochs saw others."""
    return {} if record(name).config["protocol"] == "holdout" else epochs_of(name)[-1]


def percent(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return Score("", 100).text(found) if found else ""


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in [header, ["---"] * len(header), *rows])


def published_split(row: str, runs: Rows) -> str:
    """Return the scores on a split of the paper's, of selected and last epochs, and those without leaked images."""
    sources = {"random weights": paper.ROWS[f"{row}-none"], "VMamba-S weights": paper.ROWS[f"{row}-vmamba-s"]}
    rows: list[list[Any]] = [[f"paper, {label}", "", of["miou"], of["dsc"], *[""] * 4] for label, of in sources.items()]
    clean = []
    for label, names in runs.items():
        epoch = record(names[0]).best_epoch if len(names) == 1 else ""
        last = [percent(last_epoch(name).get(score) for name in names) for score in ("miou", "dsc")]
        rows.append([label, epoch, *(percent(image_scores(name)[score] for name in names) for score in SCORES), *last])
        cells = [percent(image_scores(name, True)[score] for name in names) for score in SCORES]
        clean.append([label, image_scores(names[0], True)["images"], *cells])
    names = SCORES.values()
    return "\n".join(
        (
            markdown(["All images", "Epoch", *names, "mIoU, last epoch", "DSC, last epoch"], rows),
            markdown(["Without leaked images", "Images", *names], clean),
        )
    )


def front(runs: Rows) -> str:
    """Return the table of README.md."""
    of_paper = paper.ROWS["isic17-none"]
    rows: list[list[Any]] = [["paper", of_paper["miou"], of_paper["dsc"], "", ""]]
    for label, names in runs.items():
        selected, last = [image_scores(name) for name in names], [last_epoch(name) for name in names]
        rows.append([label, *(percent(of[k] for of in part) for part in (selected, last) for k in ("miou", "dsc"))])
    return markdown(["", "mIoU", "DSC", "mIoU, last epoch", "DSC, last epoch"], rows)


def challenge(runs: Rows) -> str:
    """Return the challenges' scores of each image's Jaccard index and Dice, and those over all pixels."""
    names = {"miou_per_image": "Jaccard", "threshold": f"Jaccard, {CHALLENGE}", "dsc_per_image": "Dice"}
    names |= {"miou": "mIoU", "dsc": "DSC"}
    rows = []
    for clean, suffix in ((False, ""), (True, ", without leaked images")):
        for label, (name,) in runs.items():
            found = image_scores(name, clean)
            rows.append([label + suffix, found["images"], *(percent([found[score]]) for score in names)])
    return markdown(["", "Images", *names.values()], rows)


def networks(runs: Rows) -> str:
    """Return the sizes of networks and the time of their epochs, as the runs noted them."""
    size = re.compile(r"([\d.]+) M parameters; at 256x256 ([\d.]+) GFLOP")
    cells = {label: size.findall(record(name).facts["network"])[0] for label, (name,) in runs.items()}
    minutes = {label: sum(row["seconds"] for row in epochs_of(name)) / 60 for label, (name,) in runs.items()}
    rows = [[label, *cells[label], f"{minutes[label]:.1f}"] for label in runs]
    return markdown(["", "Parameters, M", "GFLOP", "Minutes of the epochs"], rows)


def volumes(runs: Rows) -> str:
    """Return the Dice of the test's patients, in the mean over runs, and that of each run."""
    rows, structures = [], ["mean"]
    for label, names in runs.items():
        several = [record(name) for name in names]
        structures = several[0].class_names
        each = [run.score("dice_transunet") for run in several]
        mean = f"{percent([statistics.fmean(each)])} ± {100 * statistics.stdev(by_unit(names, '', False).values()):.2f}"
        numbers = range(len(structures))
        dice = [percent([statistics.fmean(run.score("dice_transunet", i) for run in several)]) for i in numbers]
        distance = statistics.fmean(run.score("hd95_transunet") for run in several)
        epochs = ", ".join(map(str, dict.fromkeys(run.best_epoch for run in several)))
        rows.append([label, mean, ", ".join(percent([of]) for of in each), *dice, f"{distance:.2f}", epochs])
    return markdown(["", "Dice, mean ± sd over patients", "Of each run", *structures, "HD95, voxels", "Epoch"], rows)


def dice_of_folds(folds: Sequence[str]) -> list[dict[str, dict[str, float]]]:
    """Return {case: {structure: Dice}} of each fold, from its test_volumes.csv."""
    start, found = "dice_strict ", []
    for name in folds:
        rows = read_rows(REPOSITORY / "results" / name / "test_volumes.csv")
        of = {row["name"]: {k.removeprefix(start): float(row[k]) for k in row if k.startswith(start)} for row in rows}
        found.append(of)
    return found


def means_of_folds(folds: Sequence[str]) -> list[float]:
    return [statistics.fmean(statistics.fmean(of.values()) for of in cases.values()) for cases in dice_of_folds(folds)]


def folds(runs: Rows) -> str:
    """Return the mean Dice of the cases and its deviation over folds, of both structures and of each."""
    rows, structures = [], []
    for label, names in runs.items():
        cases = [list(fold.values()) for fold in dice_of_folds(names)]
        structures = list(cases[0][0])
        means = [[statistics.fmean(case[s] for case in fold) for fold in cases] for s in structures]
        cells = [percent(of) for of in (means_of_folds(names), *means)]
        rows.append([label, sum(map(len, cases)), *cells])
    return markdown(["", "Cases", "Dice", *structures], rows)


def test_of_folds(ours: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    """Return the paired test of all folds' cases, by the mean Dice of each case's structures."""
    sides = [[of for fold in dice_of_folds(names) for of in fold.items()] for names in (ours, others)]
    return paired_test(*({name: statistics.fmean(dice.values()) for name, dice in side} for side in sides))


def paired_folds(pairs: Pairs) -> str:
    tests = [test_of_folds(*sides) for sides in pairs.values()]
    return test_rows(pairs, tests, "Difference of means", "Cases")


def by_unit(names: Sequence[str], score: str, clean: bool) -> dict[str, float]:
    """Return {lesion or patient: score}, the mean over runs and over the images or cases of each."""
    out = leaked_in(names[0]) if clean else set()
    runs = [record(name) for name in names]
    found = [
        r.dice() if r.of_volumes else {n: score_of_image(row, score) for n, row in r.test_rows.items()} for r in runs
    ]
    means = {name: statistics.fmean(of_run[name] for of_run in found) for name in found[0] if name not in out}
    return means_of_units(means, runs[0].units)


def paired(pairs: Pairs, score: str = "dsc", unit: str = "Lesions") -> str:
    """Return the paired tests of a family, which Holm's method corrects; of photographs again without leaked images."""
    tables = []
    for clean in (False, True) if unit == "Lesions" else (False,):
        tests = [paired_test(*(by_unit(names, score, clean) for names in sides)) for sides in pairs.values()]
        tables.append(test_rows(pairs, tests, "Without leaked images" if clean else "Difference of means", unit))
    return "\n".join(tables)


def test_rows(labels: Iterable[str], tests: Sequence[dict[str, Any]], what: str, unit: str) -> str:
    rows = []
    for label, test, corrected in zip(labels, tests, holm([test["p"] for test in tests]), strict=True):
        points = (f"{100 * test[key]:+.2f}" for key in ("mean", "low", "high"))
        rows.append([label, test["pairs"], *points, f"{test['p']:#.2g}", f"{corrected:#.2g}"])
    return markdown([what, unit, "Mean", "95 % from", "to", "p", "p, Holm"], rows)


def collapse(runs: Rows) -> str:
    """Return the course of trainings, {rate: records}."""
    rows = []
    for rate, names in runs.items():
        for name in names:
            epochs, detector = epochs_of(name), CollapseDetector()
            for row in epochs:
                detector.add_epoch(row)
            best = max(epochs, key=lambda row: row["miou"])
            lowest = min(row["miou"] for row in epochs[EARLY:])
            cells = [percent([score]) for score in (best["miou"], lowest, epochs[-1]["miou"])]
            cells[0] += f" ({best['epoch']:.0f})"
            rows.append([f"`{name.partition('/')[2]}`", rate, len(epochs), detector.since or "", *cells])
    names = [f"Lowest after epoch {EARLY}", "Last mIoU"]
    return markdown(["Run", "Rate", "Epochs", "Lost from epoch", "Highest mIoU (epoch)", *names], rows)
