"""Long runs: a network that broke is not saved."""

import pytest
import torch

import train
from configs.config_setting import ISICConfig
from datasets.demo import make_demo_isic
from tests.tiny import TRAINING
from utils.errors import NonFiniteLossError
from utils.runs.run_folder import stop_log
from utils.runs.training_state import TrainingState


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("data") / "isic", size=40, train=8, val=2, test=1)


def config(data, tmp_path, **changes):
    return ISICConfig(
        **TRAINING | dict(dataset="demo", data_path=str(data), work_dir=str(tmp_path / "runs"), epochs=2) | changes
    )


@pytest.mark.parametrize("spoil", ["weights", "score"])
def test_weights_or_scores_that_are_not_finite_are_not_saved(spoil, data, tmp_path, monkeypatch):
    finish_epoch = TrainingState.finish_epoch

    def spoilt(training, scores, selected_by, *rest):
        second = training.epoch == 1
        if second and spoil == "weights":
            next(training.model.parameters()).data[0] = float("nan")
        finish_epoch(training, scores, float("nan") if second and spoil == "score" else selected_by, *rest)

    monkeypatch.setattr(TrainingState, "finish_epoch", spoilt)
    with pytest.raises(NonFiniteLossError, match="epoch 2"):
        train.main(config(data, tmp_path))
    stop_log()
    (path,) = tmp_path.glob("runs/*/checkpoints/latest.pth")
    assert torch.load(path, weights_only=True)["epoch"] == 1
