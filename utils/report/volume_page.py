"""The part of a run's page about the test on volumes: tables of structures and cases, pictures."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from utils.report.page import Column, percent, table
from utils.report.pictures import case_picture, pictures_of_case
from utils.report.pieces import Contents, class_keys, distribution, extremes, paper_columns
from utils.report.records import Record
from utils.volume import SCORE_NAMES, describe_hd95, is_missed


def volumes_part(run: Record) -> Contents:
    dice = run.dice()
    pictures = [
        (title, [figure for case in cases for figure in case_figures(run, case, dice[case])])
        for title, cases in extremes(dice, 1)
    ]
    return {
        **structure_scores(run),
        "distribution": distribution(dice, "Dice of each case, mean of its structures", "cases"),
        "pictures": pictures,
        "keys": class_keys(run),
        "picture_note": (
            "Filled: prediction. Outlined: truth. Three planes through the middle of what differs, and the slices of "
            "the case, worst first."
        ),
        "cases": case_scores(run, dice),
    }


class Structure(NamedTuple):
    """A row of the table of structures."""

    name: str  # "" for the mean over all of them
    value: Callable[[str], float]  # its score of a name
    cases: list[dict[str, float]]  # its scores in each case; of the mean those of every structure

    def score(self, name: str) -> str:
        """The name that a score of this structure has in test_volumes.csv and published.ROWS."""
        return f"{name} {self.name}".strip()


def structure_scores(run: Record) -> Contents:
    unit = run.scores.get("distance_unit", "mm")
    columns = [
        Column("", lambda structure: structure.name or "mean"),
        Column("DSC %", lambda structure: percent(structure.value("dice_transunet"))),
        *paper_columns(
            run,
            lambda structure: structure.score("dice_transunet"),
            lambda structure: 100 * structure.value("dice_transunet"),
        ),
        Column("HD95 voxels, published protocol", lambda structure: f"{structure.value('hd95_transunet'):.2f}"),
        *paper_columns(
            run,
            lambda structure: structure.score("hd95_transunet"),
            lambda structure: structure.value("hd95_transunet"),
        ),
        Column("HD95 voxels where found", lambda structure: describe_hd95(structure.cases)),
        Column("strict DSC %", lambda structure: percent(structure.value("dice_strict"))),
        Column(f"strict HD95 {unit}", lambda structure: f"{structure.value('hd95_strict'):.2f}"),
        Column("DSC %, deviation over patients", lambda structure: percent(deviation(run, structure.name))),
    ]
    structures = [
        Structure(name, partial(run.score, number=number), cases_of_structure(run, name))
        for number, name in enumerate(run.class_names)
    ]
    patients = len(set(run.patients.values()))
    caption = f"{len(run.tested)} volumes of {patients} patients, means over the cases"
    remark = (
        "Published protocol: a prediction without truth counts as Dice 1 and HD95 0, every other empty one as 0 and 0: "
        "also a structure that was missed. Where found: means over the cases with both, and how many were missed. "
        "Strict: both empty is not counted (nan: nowhere), one empty is Dice 0 and HD95 the volume's diagonal; in "
        "voxels where the spacing is not known."
    )
    rows = [Structure("", run.score, every_structure(run)), *structures]
    return {"comparison": table(columns, rows, caption, lambda structure: not structure.name), "remarks": [remark]}


def deviation(run: Record, name: str) -> float:
    """Standard deviation over the patients of the mean Dice of their cases, of a structure; of the mean over all
    structures without a name."""
    dice = {case: row[f"dice_transunet {name}"] for case, row in run.tested.items()} if name else run.dice()
    of_patients: dict[str, list[float]] = {}
    for case, value in dice.items():
        of_patients.setdefault(run.patients[case], []).append(value)
    means = [statistics.fmean(values) for values in of_patients.values()]
    return statistics.stdev(means) if len(means) > 1 else float("nan")


def cases_of_structure(run: Record, name: str) -> list[dict[str, float]]:
    """The scores of a structure in each case, without those that the run did not store."""
    return [
        {score: row[f"{score} {name}"] for score in SCORE_NAMES if f"{score} {name}" in row}
        for row in run.tested.values()
    ]


def every_structure(run: Record) -> list[dict[str, float]]:
    """The scores of each structure in each case."""
    return [scores for name in run.class_names for scores in cases_of_structure(run, name)]


def missed_remark(run: Record) -> str:
    """What the label of the mean HD95 adds if a structure was missed: the published protocol counts that as 0."""
    if not any(map(is_missed, every_structure(run))):
        return ""
    return f" where found (published protocol: {run.score('hd95_transunet'):.2f})"


def case_scores(run: Record, dice: dict[str, float]) -> Contents:
    def of_structure(name: str) -> Callable[[str], str]:
        return lambda case: percent(run.tested[case][f"dice_transunet {name}"])

    columns = [
        Column("", lambda case: link_to_slices(run, case)),
        Column("mean", lambda case: percent(dice[case])),
        *(Column(name, of_structure(name)) for name in run.class_names),
    ]
    return table(columns, run.tested, "Dice %, published protocol")


def link_to_slices(run: Record, case: str) -> str | Markup:
    """A case's name, which leads to the picture of its slices where the test saved one."""
    picture = case_picture(run, case, "slices")
    return case if picture is None else Markup('<a href="predictions/{}">{}</a>').format(quote(picture.name), case)


def case_figures(run: Record, case: str, score: float) -> list[Contents]:
    """The pictures of a case; without them what the page says in their place."""
    text = f"Dice of the case {score:.3f}"
    return [{"name": case, "images": [image], "text": text} for image in pictures_of_case(run, case)] or [
        {"name": case, "images": [], "text": text}
    ]
