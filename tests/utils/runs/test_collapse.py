import csv

import pytest

from utils.runs.collapse import PATIENCE, CollapseDetector


def detect(losses, mious=None):
    """Return the detector after these epochs, and the epochs with which it reported a collapse."""
    detector, reported = CollapseDetector(), []
    for epoch, loss in enumerate(losses, 1):
        row = {"epoch": epoch, "train_loss": loss} | ({} if mious is None else {"miou": mious[epoch - 1]})
        if detector.add_epoch(row):
            reported.append(epoch)
    return detector, reported


def test_a_loss_above_twice_the_lowest_for_ten_epochs_is_said_once():
    detector, reported = detect([1.0, 0.4] + 30 * [0.81])
    assert detector.since == 3 and reported == [2 + PATIENCE]
    assert "from epoch 3 on" in detector.sentence


@pytest.mark.parametrize("losses", [[1.0, 0.4] + 30 * [0.8], [1.0, 0.4] + 5 * (9 * [2.0] + [0.5])])
def test_twice_the_lowest_and_shorter_falls_are_not_it(losses):
    assert detect(losses)[0].since is None


def test_a_fall_in_validation_alone_counts():
    detector, _ = detect(40 * [0.5], 20 * [0.8] + 20 * [0.39])
    assert detector.since == 21


def test_a_resumed_run_goes_on_counting():
    detector = CollapseDetector()
    detector.replay(
        [{"epoch": str(e), "train_loss": "0.4" if e == 1 else "2.0", "dice_transunet": ""} for e in range(1, 10)]
    )
    assert detector.since is None
    assert not detector.add_epoch({"epoch": 10, "train_loss": 2.0}) and detector.add_epoch(
        {"epoch": 11, "train_loss": 2.0}
    )
    assert detector.since == 2


@pytest.mark.parametrize("run, since", [("published", 102), ("stable", None)])
def test_whole_runs_of_isic17(shared, run, since):
    detector = CollapseDetector()
    with open(shared / "runs" / run / "metrics.csv", newline="") as file:
        detector.replay(csv.DictReader(file))
    assert detector.since == since
