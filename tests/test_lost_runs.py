"""A training that loses what it had learned says so at once, at its end and in its report, and can be ended by it."""

import html
import json
import re
from pathlib import Path

import pytest

import train
from configs.config_setting import ISICConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic
from tests.tiny import TRAINING
from utils.files import read_rows
from utils.runs import collapse


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("data") / "isic", size=40, train=8, val=2, test=1)


@pytest.fixture
def config(data, tmp_path, monkeypatch):
    """A run whose training loss is 0.4 in the first epoch and 2.0 from then on, watched for two epochs."""
    monkeypatch.setattr(collapse, "PATIENCE", 2)
    epochs = iter(range(100))
    real = train.train_one_epoch

    def collapsing(*arguments, **options):
        real(*arguments, **options)
        return 0.4 if next(epochs) == 0 else 2.0

    monkeypatch.setattr(train, "train_one_epoch", collapsing)
    return ISICConfig(**TRAINING, dataset="demo", data_path=str(data), work_dir=str(tmp_path / "runs"), epochs=6)


def run_of(config):
    (path,) = Path(config.work_dir).glob("*/config.json")
    return path.parent


def test_it_is_said_at_once_at_the_end_and_in_the_report(config):
    train.main(config)
    run = run_of(config)
    sentence = json.loads((run / "facts.json").read_text(encoding="utf-8"))["lost"]
    assert re.search(r"\bepoch 2\b", sentence)
    lines = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    first, last = (i for i, line in enumerate(lines) if sentence in line)
    assert "epoch 3 of " in lines[first - 1] and ", lr" in lines[first - 1] and "best epoch" in lines[last + 1]
    assert "--recipe stable" in lines[first] and "--stop-when-lost" in lines[first]
    assert len(read_rows(run / "metrics.csv")) == 6
    assert sentence in html.unescape((run / "report.html").read_text(encoding="utf-8"))


def test_stop_when_lost_ends_the_run_and_tests_its_best_epoch(config):
    config.stop_when_lost = True
    train.main(config)
    run = run_of(config)
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == ["1", "2", "3"]
    assert (run / "metrics.json").is_file()
    log = (run / "log.txt").read_text(encoding="utf-8")
    assert re.search(r"\b3 of 6\b.*--stop-when-lost", log)
    train.main(resolve(ISICConfig(resume=str(run))))  # it has ended: nothing is trained any more
    assert len(read_rows(run / "metrics.csv")) == 3
