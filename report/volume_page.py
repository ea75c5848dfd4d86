"""The part of a run's page about the test on volumes: tables of structures and cases, pictures."""

import math
import statistics
from urllib.parse import quote

from markupsafe import Markup

from report.page import Contents, TableCell, data_uri, percent, read_rgb, table
from report.records import Record, means_of_units
from report.sections import class_keys, distribution, extremes, paper_cells
from utils.volume import SCORE_NAMES, describe_hd95, is_missed


def volumes_part(run: Record) -> Contents:
    dice, scores = run.dice(), case_scores(run, run.class_names)
    rows = [structure_row(run), *(structure_row(run, name, i) for i, name in enumerate(run.class_names))]
    caption = f"{len(run.test_rows)} volumes of {len(set(run.units.values()))} patients, means over the cases"
    return {
        "comparison": table(rows, caption, [True, *[False] * len(run.class_names)]),
        "hd95": describe_hd95(scores),
        "missed": any(map(is_missed, scores)),
        "distribution": distribution(means_of_units(dice, run.units), "Strict Dice of each patient", "patients"),
        "pictures": [
            (title, [figure for case in cases for figure in case_figures(run, case, dice[case])])
            for title, cases in extremes(dice, 1)
        ],
        "keys": class_keys(run),
        "cases": cases_table(run, dice),
    }


def structure_row(run: Record, name: str = "", number: int | None = None) -> list[TableCell]:
    """Return the scores of a structure; without a name the means over all structures."""
    scores = {score: run.score(score, number) for score in SCORE_NAMES}
    dice, hd95 = 100 * scores["dice_transunet"], scores["hd95_transunet"]
    return [
        ("", name or "mean"),
        ("DSC %", f"{dice:.2f}"),
        *paper_cells(run, f"dice_transunet {name}".strip(), dice),
        ("HD95 voxels, published protocol", f"{hd95:.2f}"),
        *paper_cells(run, f"hd95_transunet {name}".strip(), hd95),
        ("HD95 voxels where found", describe_hd95(case_scores(run, [name] if name else run.class_names))),
        ("strict DSC %", percent(scores["dice_strict"])),
        (f"strict HD95 {run.scores.get('distance_unit', 'mm')}", f"{scores['hd95_strict']:.2f}"),
        ("strict DSC %, deviation over patients", percent(deviation(run, name))),
    ]


def deviation(run: Record, name: str) -> float:
    """Return the deviation over the patients of the mean strict Dice of their cases, for a structure or, without name,
    all; NaN is not counted."""
    dice = {case: row[f"dice_strict {name}"] for case, row in run.test_rows.items()} if name else run.dice()
    means = means_of_units({case: value for case, value in dice.items() if not math.isnan(value)}, run.units).values()
    return statistics.stdev(means) if len(means) > 1 else float("nan")


def case_scores(run: Record, structures: list[str]) -> list[dict[str, float]]:
    """Return the scores of each structure in each case, without those that the run did not store."""
    return [
        {score: row[f"{score} {name}"] for score in SCORE_NAMES if f"{score} {name}" in row}
        for name in structures
        for row in run.test_rows.values()
    ]


def cases_table(run: Record, dice: dict[str, float]) -> Contents:
    """Return the Dice of each case, worst first. Its name links to the picture of its slices if the test saved one."""
    rows = []
    for case, row in sorted(run.test_rows.items(), key=lambda item: dice[item[0]]):
        picture, link = run.file("predictions", f"{case}_slices.png"), Markup('<a href="predictions/{}">{}</a>')
        name = case if picture is None else link.format(quote(picture.name), case)
        structures = [(structure, percent(row[f"dice_strict {structure}"])) for structure in run.class_names]
        rows.append([("", name), ("mean", percent(dice[case])), *structures])
    return table(rows, "Strict Dice %, worst first; nan: neither truth nor prediction has the structure")


def case_figures(run: Record, case: str, score: float) -> list[Contents]:
    """Return the pictures of a case, or a figure without a picture, for which the page shows a sentence."""
    paths = [run.file("predictions", f"{case}_{kind}.png") for kind in ("planes", "slices")]
    images = [[data_uri(read_rgb(path))] for path in paths if path is not None] or [[]]
    return [{"name": case, "images": image, "text": f"strict Dice of the case {score:.3f}"} for image in images]
