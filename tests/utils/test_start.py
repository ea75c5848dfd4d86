"""Commands of a Python without the requirements."""

import os
import runpy
import subprocess
import sys
from unittest import mock

import pytest

from tests.tiny import ROOT
from utils import start

COMMANDS = ["train.py", "train_synapse.py", "predict.py", "export.py", "experiments.py", "app.py"]
MODULES = ["datasets.check", "datasets.prepare_isic", "datasets.prepare_volumes", "datasets.prepare_synapse", "report"]


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), *(["-m", name] for name in MODULES)], ids=str)
def test_a_command_without_its_packages_says_how_to_install_them(command):
    ended = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    for part in ("found no module '", sys.executable, "requirements.txt", ".venv"):
        assert part in ended.stderr


def test_other_errors_keep_their_traceback(capsys):
    start.explain(ValueError, ValueError("another"), None)
    assert "ValueError: another" in capsys.readouterr().err


def test_the_environment_of_make_demo_is_named_where_there_is_one(tmp_path, monkeypatch, capsys):
    for environment in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setattr(start, "ENVIRONMENT", environment)
        start.explain(ModuleNotFoundError, ModuleNotFoundError("no", name="tyro"), None)
        said = capsys.readouterr().err
        assert "'tyro'" in said and (f"source {tmp_path}/bin/activate" in said) == (environment == tmp_path)


@pytest.mark.parametrize(
    "chosen, spins",
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_spin_briefly_unless_the_user_has_chosen(chosen, spins):
    with mock.patch.dict(os.environ, chosen, clear=True), mock.patch.object(sys, "excepthook"):
        runpy.run_path(start.__file__)
        assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize(
    "body, status, printed",
    [
        ("pass", 0, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('a reason')", 1, "a reason\n"),
        ("threading.Thread(target=lambda: (time.sleep(0.2), print('later'))).start()", 0, "later\n"),
        ("atexit.register(print, 'at exit')", 0, "at exit\n"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug\n"),
    ],
)
def test_a_process_ends_at_once_with_its_status_and_all_that_it_has_to_do_before(body, status, printed):
    """Of the modules' end, which PyTorch makes long, nothing happens unless the command fails."""
    program = f"""
from utils.start import run_process
import atexit, sys, threading, time
class Module:
    def __del__(self):
        print("modules are taken apart")
kept = Module()
def command():
    print("done", end=" ")
    {body}
run_process(command)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status and ended.stdout.startswith("done ")
    assert (ended.stdout + ended.stderr).replace("modules are taken apart\n", "").endswith(printed)
    assert ("modules are taken apart" in ended.stdout) == (status == 1)
