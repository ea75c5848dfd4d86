"""Resuming where something is different: the place of the data, the machine, a run that is finished."""

import json
import shutil

import pytest
from PIL import Image

import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic, make_demo_synapse
from tests.tiny import TRAINING
from utils.files import read_rows
from utils.runs.run_folder import stop_log


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one epoch, which is finished; its warm-up is longer."""
    folder = tmp_path_factory.mktemp("finished")
    data = make_demo_isic(folder / "data", size=40, train=8, val=2, test=1)
    options = dict(dataset="isic17", data_path=str(data), work_dir=str(folder / "runs"), sch="CosineWarmup")
    train.main(ISICConfig(**TRAINING | options, epochs=1))
    stop_log()
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it and of its data."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(finished.parents[1] / "data", tmp_path / "elsewhere")
    yield tmp_path / "run"
    stop_log()


def log_of(run):
    return (run / "log.txt").read_text(encoding="utf-8")


def test_a_finished_run_says_how_to_extend_it_and_is_not_tested_again(run, caplog):
    before = log_of(run), (run / "metrics.json").stat().st_mtime_ns
    scores = train.main(resolve(ISICConfig, ["--resume", str(run)]))
    assert scores == json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert "finished" in caplog.text and "--epochs" in caplog.text
    assert (log_of(run), (run / "metrics.json").stat().st_mtime_ns) == before


def test_data_may_lie_elsewhere_if_they_are_the_same(run, tmp_path):
    arguments = ["--resume", str(run), "--epochs", "2", "--data-path", str(tmp_path / "elsewhere")]
    mask = next((tmp_path / "elsewhere" / "train" / "masks").iterdir())
    content = mask.read_bytes()
    with Image.open(mask) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mask)
    with pytest.raises(ValueError, match=r"--accept-changed-data"):
        train.main(resolve(ISICConfig, arguments))
    assert json.loads((run / "config.json").read_text())["epochs"] == 1
    mask.write_bytes(content)
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    (run / "facts.json").write_text(json.dumps(facts | {"device": "device cuda, scan backend triton"}))
    train.main(resolve(ISICConfig, arguments))
    assert len(read_rows(run / "metrics.csv")) == 2
    assert json.loads((run / "config.json").read_text())["data_path"] == str(tmp_path / "elsewhere")
    said = log_of(run)
    assert said.count(str(tmp_path / "elsewhere")) >= 1
    (line,) = [line for line in said.splitlines() if "resumed" in line]
    assert "scan backend triton" in line and "device cpu" in line


def test_a_checkpoint_on_other_data_keeps_the_name_of_its_data_set(finished, tmp_path):
    arguments = ["--test-only", str(finished), "--data-path", str(tmp_path)]
    assert resolve(ISICConfig, arguments).dataset == "isic17"
    assert resolve(ISICConfig, [*arguments, "--dataset", "mine"]).dataset == "mine"


def test_the_log_says_that_the_warm_up_is_longer_than_the_run_and_fits_a_terminal(finished):
    said = log_of(finished)
    (line,) = [line for line in said.splitlines() if "warm_up_epochs" in line]
    assert "10" in line and "--epochs" in line
    (line,) = [line for line in said.splitlines() if "epoch 1 of " in line and ", lr" in line]
    assert len(line) <= 110 and "train_loss" in line and "val_loss" in line and "dsc" in line


def test_the_best_epoch_by_dice_is_logged_with_its_dice_and_training_ends_early(tmp_path, monkeypatch):
    data = make_demo_synapse(tmp_path / "data", size=40, train=2, test=1, slices=4)
    dice = iter([0.3, 0.4, 0.4, 0.2, 0.1])
    real = train_synapse.evaluate_share

    def evaluate(*arguments, **options):
        scores, rows = real(*arguments, **options)
        return {**scores, "dice_strict": next(dice, 0.4)}, rows

    monkeypatch.setattr(train_synapse, "evaluate_share", evaluate)
    lists = data / "lists" / "list_Synapse"
    shutil.copy(lists / "test_vol.txt", lists / "val_vol.txt")
    monkeypatch.setattr(train_synapse, "check_synapse_parts", lambda config: None)
    options = dict(dataset="demo", data_path=str(data), work_dir=str(tmp_path / "runs"), list_dir=str(lists))
    train_synapse.main(
        SynapseConfig(**TRAINING | options | dict(batch_size=2), epochs=9, protocol="holdout", early_stopping=2)
    )
    stop_log()
    (run,) = (tmp_path / "runs").iterdir()
    assert len(read_rows(run / "metrics.csv")) == 4
    (best,) = [line for line in log_of(run).splitlines() if "best epoch:" in line]
    assert "epoch: 2" in best and "dice_strict 0.4000" in best
    assert "4 of 9 (--early-stopping 2;" in log_of(run)
