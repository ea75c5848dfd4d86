"""A run of an earlier commit is resumed, and its checkpoint tested, as by that commit.

tests/golden/run_before_0.1.tar.xz holds two of its four epochs, and the results of all four."""

import json
import tarfile

import pytest

import train
from configs.config_setting import ISICConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic
from tests.tiny import GOLDEN
from utils.files import read_rows
from utils.runs.batches import USAGE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with tarfile.open(GOLDEN / "run_before_0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # the run's paths are relative
    make_demo_isic(tmp_path / "isic", size=40, train=13, val=4)
    return tmp_path


def numbers(path):
    return [[float(value) for name, value in row.items() if name not in USAGE] for row in read_rows(path)]


def test_it_is_resumed(folder):
    train.main(resolve(ISICConfig, ["--resume", "run"]))
    assert numbers(folder / "run/metrics.csv") == [
        pytest.approx(row, rel=1e-4) for row in numbers(folder / "expected_metrics.csv")
    ]
    expected = json.loads((folder / "expected_metrics.json").read_text(encoding="utf-8"))
    found = json.loads((folder / "run/metrics.json").read_text(encoding="utf-8"))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4) and found["images"] == expected["images"]


def test_its_checkpoint_is_tested(folder):
    scores = train.main(resolve(ISICConfig, ["--test-only", "run/checkpoints/best.pth", "--work-dir", "tests"]))
    best = min(read_rows(folder / "run/metrics.csv"), key=lambda row: float(row["val_loss"]))
    assert scores["loss"] == pytest.approx(float(best["val_loss"]), rel=1e-4)
