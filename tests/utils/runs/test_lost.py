import csv

import pytest

from utils.runs.lost import PATIENCE, LossOfScore


def watch(losses, mious=None):
    """The watch after these epochs, and the epochs with which it said that the run is lost."""
    seen, said = LossOfScore(), []
    for epoch, loss in enumerate(losses, 1):
        row = {"epoch": epoch, "train_loss": loss} | ({} if mious is None else {"miou": mious[epoch - 1]})
        if seen.see(row):
            said.append(epoch)
    return seen, said


def test_a_loss_above_twice_the_lowest_for_ten_epochs_is_said_once():
    seen, said = watch([1.0, 0.4] + 30 * [0.81])
    assert seen.since == 3 and said == [2 + PATIENCE]
    assert "from epoch 3 on" in seen.sentence


@pytest.mark.parametrize("losses", [[1.0, 0.4] + 30 * [0.8], [1.0, 0.4] + 5 * (9 * [2.0] + [0.5])])
def test_twice_the_lowest_and_shorter_falls_are_not_it(losses):
    assert watch(losses)[0].since is None


def test_a_fall_in_validation_alone_counts():
    seen, _ = watch(40 * [0.5], 20 * [0.8] + 20 * [0.39])
    assert seen.since == 21


def test_a_resumed_run_goes_on_counting():
    seen = LossOfScore()
    seen.replay(
        [{"epoch": str(e), "train_loss": "0.4" if e == 1 else "2.0", "dice_transunet": ""} for e in range(1, 10)]
    )
    assert seen.since is None
    assert not seen.see({"epoch": 10, "train_loss": 2.0}) and seen.see({"epoch": 11, "train_loss": 2.0})
    assert seen.since == 2


@pytest.mark.parametrize("run, since", [("published", 102), ("stable", None)])
def test_whole_runs_of_isic17(shared, run, since):
    seen = LossOfScore()
    with open(shared / "runs" / run / "metrics.csv", newline="") as file:
        seen.replay(csv.DictReader(file))
    assert seen.since == since
