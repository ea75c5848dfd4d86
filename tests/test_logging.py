"""Lines of the log reach a run's log.txt: only the logger "vmunet", and loggers below it, have handlers."""

import ast
import importlib
import logging
import re

import pytest

from configs.config_setting import ISICConfig
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.loaders import build_isic_loader
from tests.test_structure import MODULES
from utils.runs.run_folder import start_run, stop_log


def assigns_log(path):
    """Whether a module has a `log` of its own."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    targets = [target for statement in statements if isinstance(statement, ast.Assign) for target in statement.targets]
    return any(isinstance(target, ast.Name) and target.id == "log" for target in targets)


LOGGING = sorted(name for name, path in MODULES.items() if not name.startswith("tests.") and assigns_log(path))


def test_modules_with_a_log_are_found():
    assert {"datasets.demo", "datasets.loaders", "configs.build", "train", "utils.runs.run_folder"} <= set(LOGGING)


@pytest.mark.parametrize("name", LOGGING)
def test_the_log_of_a_module_has_the_handlers_of_a_run(name):
    log = importlib.import_module(name).log
    assert isinstance(log, logging.Logger)
    assert log.name == "vmunet" or log.name.startswith("vmunet.")
    assert log.propagate or log.name == "vmunet"


@pytest.fixture
def config(tmp_path):
    yield ISICConfig(work_dir=str(tmp_path / "results"), dataset="demo", image_size=32, batch_size=2, device="cpu")
    stop_log()


def test_lines_of_the_data_sets_reach_the_log_of_a_run(config, tmp_path, monkeypatch):
    run = start_run(config)
    config.data_path = str(make_demo_isic(tmp_path / "isic", size=32, train=2, val=1, test=1))
    make_demo_synapse(tmp_path / "synapse", size=32, train=1, val=1, test=1, slices=2)
    monkeypatch.setattr("datasets.loaders.free_memory", lambda: 0)
    build_isic_loader(config, "train")
    lines = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert f"{tmp_path / 'isic'}\n" in lines and f"{tmp_path / 'synapse'}\n" in lines
    assert re.search(r" 2 samples .*\b0\.0 GB", lines)
