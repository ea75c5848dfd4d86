"""Long runs: a network that broke is not saved, and memory does not grow with the data."""

import weakref

import pytest
import torch

import train
from configs.config_setting import ISICConfig
from datasets.demo import make_demo_isic
from engine import Execution, evaluate
from tests.tiny import TRAINING
from utils.errors import NonFiniteLossError
from utils.losses import BceDiceWithLogitsLoss
from utils.runs.run import stop_log


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("data") / "isic", size=40, train=8, val=2, test=1)


def config(data, tmp_path, **changes):
    return ISICConfig(
        **TRAINING | dict(dataset="demo", data_path=str(data), work_dir=str(tmp_path / "runs"), epochs=2) | changes
    )


@pytest.mark.parametrize("spoil", ["weights", "score"])
def test_weights_or_scores_that_are_not_finite_are_not_saved(spoil, data, tmp_path, monkeypatch):
    finish_epoch = train.Progress.finish_epoch

    def spoilt(progress, row, loss, *rest):
        if row["epoch"] == 2 and spoil == "weights":
            next(progress.model.parameters()).data[0] = float("nan")
        finish_epoch(progress, row, float("nan") if row["epoch"] == 2 and spoil == "score" else loss, *rest)

    monkeypatch.setattr(train.Progress, "finish_epoch", spoilt)
    with pytest.raises(NonFiniteLossError, match="after epoch 2, which is not saved"):
        train.main(config(data, tmp_path))
    stop_log()
    (path,) = tmp_path.glob("runs/*/checkpoints/latest.pth")
    assert torch.load(path, weights_only=True)["epoch"] == 1


def test_validation_keeps_no_images():
    alive, most = weakref.WeakSet(), []

    def batches():
        for i in range(20):
            images = torch.rand(2, 1, 8, 8)
            alive.add(images)
            most.append(len(alive))
            yield images, (images > 0.5).float(), [f"{i} a", f"{i} b"]
            del images

    execution = Execution(torch.device("cpu"), progress=False)
    evaluate(torch.nn.Conv2d(1, 1, 1), batches(), BceDiceWithLogitsLoss(), execution)
    assert max(most) <= 3
