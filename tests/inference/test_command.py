"""The command line of predict.py."""

import dataclasses
import re
import subprocess
import sys

import pytest

import predict
from configs.config_setting_synapse import SynapseConfig
from datasets.synapse import ORIENTATION
from inference.prediction_options import PredictionOptions
from predict import PredictConfig
from tests.tiny import ROOT
from utils.runs.command_line import run


def command(monkeypatch, capsys, *arguments):
    """Run the command line in this process; return its output and exit status."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run(predict.main, PredictConfig)
    return "".join(capsys.readouterr()), stop.value.code


def test_help_shows_every_option_and_what_is_required(monkeypatch, capsys):
    text, status = command(monkeypatch, capsys, "--help")
    assert status == 0 and re.search(r"--output FOLDER[^-]*\(required\)", text)
    for field in dataclasses.fields(PredictConfig):
        assert field.name in ("checkpoint", "inputs") or f"--{field.name.replace('_', '-')}" in text


def test_a_mistake_is_one_sentence_and_leaves_no_folder(monkeypatch, capsys, caplog, tmp_path):
    out, photo = ("--output", tmp_path / "out"), tmp_path / "photo.jpg"
    photo.touch()
    for arguments, words in (
        ((photo, photo, *out, "--wrong"), ["--wrong"]),
        (("isic17", photo), ["--output"]),
        ((tmp_path / "no.pth", photo, *out), ["no.pth", "no such file"]),
        (("isic17", *out), ["INPUT"]),
        ((photo, *out), ["CHECKPOINT", "photo.jpg", "isic17"]),
        ((photo, photo, *out), ["CHECKPOINT", "photo.jpg", "isic17"]),
        (("isic17", tmp_path / "nowhere.png", *out), ["INPUT", "nowhere.png", "no such file"]),
        (("isic17", photo, "--output", tmp_path), [f"--output {tmp_path}", "--existing skip"]),
    ):
        caplog.clear()
        text, status = command(monkeypatch, capsys, *arguments)
        text += caplog.text
        assert status == 2 and all(word in text for word in words) and "Traceback" not in text, (arguments, text)
    assert not (tmp_path / "out").exists()


def test_the_script_starts_and_the_library_is_a_plain_import():
    code = "from inference import Predictor\nimport predict\nassert predict.Predictor is Predictor"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    done = subprocess.run([sys.executable, "predict.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--output" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_the_orientation_is_that_of_training():
    assert PredictionOptions().orientation is None and SynapseConfig().orientation == ORIENTATION
