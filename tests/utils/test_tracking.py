"""--log-to: what an experiment tracker gets, and what happens when it can't be reached."""

import json
import logging
import socket
import subprocess
import sys
import time
import types
import urllib.request

import pytest

import train
from configs.config_setting import ISICConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic
from tests.tiny import TRAINING
from utils.runs import tracking
from utils.runs.run_folder import find_run


class Recorder:
    """A tracker in memory, which refuses the first calls."""

    def __init__(self, refusals=0):
        self.refusals, self.got = refusals, []

    def _take(self, *message):
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("found nobody at 127.0.0.1")
        self.got.append(message)

    def add(self, values, epoch):
        self._take(epoch, values)

    def add_file(self, path):
        self._take(path.name)

    def close(self, failed):
        self._take("failed" if failed else "finished")


def config(tmp_path, **changes):
    make_demo_isic(tmp_path / "data", size=40, train=6, val=2)
    values = dict(dataset="demo", epochs=2, data_path=str(tmp_path / "data"), work_dir=str(tmp_path / "runs"))
    return ISICConfig(**TRAINING | values | changes)


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", lambda package, run, params: recorder)
    return recorder


@pytest.mark.parametrize("refusals", [0, 2])
def test_a_tracker_gets_epochs_scores_and_report_in_order_and_late_if_it_was_away(tmp_path, recorder, caplog, refusals):
    recorder.refusals = refusals
    with caplog.at_level(logging.WARNING, logger="vmunet"):
        scores = train.main(config(tmp_path, log_to="mlflow"))
    (first, row), (second, _), (last, tested), report, end = recorder.got
    assert (first, second, last, report, end) == (1, 2, 2, ("report.html",), ("finished",))
    assert row["train_loss"] > 0 and tested["test/miou"] == scores["miou"]
    warnings = [record for record in caplog.records if "--log-to mlflow" in record.message]
    assert len(warnings) == (1 if refusals else 0)


def test_a_tracker_that_never_answers_costs_no_training(tmp_path, recorder, caplog):
    recorder.refusals = 1000
    with caplog.at_level(logging.WARNING, logger="vmunet"):
        train.main(config(tmp_path, log_to="mlflow"))
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "metrics.json").exists() and (run / "report.html").exists()
    assert [record.message for record in caplog.records if "--log-to" in record.message] == [
        "--log-to mlflow: found nobody at 127.0.0.1; the run continues, its folder has everything",
        "--log-to mlflow: 5 messages were not sent; the run folder has them",
    ]


def test_a_run_that_fails_is_closed_as_failed(tmp_path, recorder, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no memory")

    monkeypatch.setattr(train, "train_one_epoch", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        train.main(config(tmp_path, log_to="mlflow"))
    assert recorder.got == [("failed",)]


def test_a_missing_package_is_named_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--log-to wandb: found no module 'wandb', expected it; pip install wandb"):
        train.main(config(tmp_path, log_to="wandb"))


def test_names_and_numbers_are_those_that_trackers_take():
    values = {"dice_strict Gallbladder (left)": 0.5, "loss": float("nan"), "classes": [1], "epoch": 3}
    assert tracking.numbers(values) == {"dice_strict_Gallbladder__left_": 0.5, "epoch": 3.0}


@pytest.fixture
def server(tmp_path):
    """An MLflow server with sqlite on this machine; its address."""
    pytest.importorskip("mlflow.server.fastapi_app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        str(tmp_path / "files"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", address[10:]]
    with open(tmp_path / "server.log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://{address}/health")
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://{address}"
        process.terminate()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_parameters_epochs_scores_and_report_of_a_resumed_run(tmp_path, server, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    one = config(tmp_path, log_to="mlflow")
    train.main(one)
    run = find_run(next((tmp_path / "runs").iterdir()))
    (stored,) = mlflow.MlflowClient(server).search_runs(["1"])
    assert json.loads((run / "mlflow_run.json").read_text(encoding="utf-8")) == {"id": stored.info.run_id}
    assert stored.info.status == "FINISHED" and stored.data.params["lr"] == "0.001"
    client = mlflow.MlflowClient(server)
    assert [metric.step for metric in client.get_metric_history(stored.info.run_id, "train_loss")] == [1, 2]
    assert [file.path for file in client.list_artifacts(stored.info.run_id)] == ["report.html"]
    train.main(resolve(ISICConfig(resume=str(run), epochs=3)))
    history = client.get_metric_history(stored.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_works_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train.main(config(tmp_path, log_to="wandb"))
    wandb.teardown()  # its process writes the rest
    (run,) = (tmp_path / "runs").iterdir()
    (offline,) = run.glob("wandb/offline-run-*/*.wandb")
    assert b"train_loss" in offline.read_bytes()
