"""The scores on the card of the shipped network are those of its records."""

import numpy as np
import pytest

from datasets.lesions import LISTED, leaked
from report.records import Record
from tests.tiny import ROOT
from utils.files import read_rows

CARD = (ROOT / "pretrained_weights/vmunet_isic17.md").read_text(encoding="utf-8")
SIZES = {"below 5 %": (0, 0.05), "5 to 20 %": (0.05, 0.2), "20 to 50 %": (0.2, 0.5), "50 % and more": (0.5, 1.01)}


def columns(record, left_out=()):
    """{name: values} of test_images.csv."""
    rows = [row for name, row in Record(ROOT / "results" / record).test_rows.items() if name not in left_out]
    return {name: np.array([row[name] for row in rows]) for name in ("dsc", "miou", "tp", "fp", "fn", "tn")}


def scores(record):
    """{row of the card: text} of a record."""
    images = columns(record)
    dice, counts = np.sort(images["dsc"]), {name: images[name].sum() for name in ("tp", "fp", "fn")}
    tp, wrong = counts["tp"], counts["fp"] + counts["fn"]
    tenth = dice[: -(-len(dice) // 10)]
    cells = {
        "mean of photographs: Dice, Jaccard": f"{dice.mean():.3f}, {images['miou'].mean():.3f}",
        "all pixels: DSC, mIoU": f"{2 * tp / (2 * tp + wrong):.3f}, {tp / (tp + wrong):.3f}",
        "hardest tenth: mean Dice": f"{tenth.mean():.3f} ({len(tenth)})",
        "Dice below 0.5": str((dice < 0.5).sum()),
    }
    share = (images["tp"] + images["fn"]) / sum(images[name] for name in ("tp", "fp", "fn", "tn"))
    for size, (low, high) in SIZES.items():
        chosen = images["dsc"][(low <= share) & (share < high)]
        cells[f"lesion covers {size}: mean Dice"] = f"{chosen.mean():.3f} ({len(chosen)})"
    return cells


def test_the_table_is_that_of_the_records():
    official, unseen = scores("isic17_official/robust_42"), scores("isic18_unseen/robust_42")
    for name, cell in official.items():
        assert f"| {name} | {cell} | {unseen[name]} |" in CARD
    before = [scores(f"{data}/stable_43") for data in ("isic17_official", "isic18_unseen")]
    (name, *_) = official
    assert f"| the file shipped before, {name} | {before[0][name]} | {before[1][name]} |" in CARD


def test_lesions_of_the_training_photographs_are_left_out():
    listed = read_rows(ROOT / "datasets/splits/isic17.csv", "id", "official")
    training = {row["id"] for row in listed if row["official"] == "train"}
    cells = []
    for record in ("isic17_official/robust_42", "isic18_unseen/robust_42"):
        names = Record(ROOT / "results" / record).test_rows
        images = columns(record, leaked(names, training))
        cells.append(f"{images['dsc'].mean():.3f}, {images['miou'].mean():.3f} ({len(images['dsc'])})")
    assert f"| without lesions of the training photographs: Dice, Jaccard | {' | '.join(cells)} |" in CARD
    known = {id for pair in read_rows(LISTED, "first", "second") for id in (pair["first"], pair["second"])}
    samples = {path.stem for path in (ROOT / "data/samples/images").iterdir()}
    assert len(samples) == 6 and not samples & (training | known)


def test_the_calibration_is_that_on_record():
    path = ROOT / "results/isic17_official/robust_42/calibration.txt"
    plain, fitted = [line.split(maxsplit=4) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert plain[0] == "1.000" and f"ECE at temperature {float(fitted[0]):.2f} " in CARD
    assert plain[4] == fitted[4] == "data/isic17_official/val, 150 images"
    (row,) = [line for line in CARD.splitlines() if line.startswith("| 150 validation photographs |")]
    found = [float(cell) for cell in row.split("|")[2:-1]]
    assert found == pytest.approx([float(score) for score in (*plain[1:4], *fitted[1:4])], abs=6e-4)  # both rounded
