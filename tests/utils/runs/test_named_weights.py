"""What can be named where a checkpoint is expected, and what the errors say."""

import logging
from pathlib import Path

import pytest

from tests.tiny import ROOT
from utils.runs import named_weights
from utils.runs.named_weights import find_checkpoint


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory; a network "tiny" comes with the code, which lies elsewhere."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/tiny.h5").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(named_weights, "FOLDER", tmp_path / "code")
    monkeypatch.setattr(named_weights, "SHIPPED", {"tiny": "tiny.h5", "lost": "lost.h5"})
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def make_run(folder):
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "checkpoints/best.pth", "checkpoints/latest.pth"):
        (folder / name).touch()


def test_shipped_networks_are_in_the_repository():
    assert named_weights.FOLDER == ROOT / "pretrained_weights"
    for name in named_weights.SHIPPED:
        assert find_checkpoint(name).is_file()


def test_a_file_a_run_and_a_name(here):
    make_run(here / "results/run")
    (here / "weights.pth").touch()
    assert find_checkpoint("weights.pth") == Path("weights.pth")
    assert find_checkpoint("results/run") == Path("results/run/checkpoints/best.pth")
    assert find_checkpoint(here / "results/run/") == here / "results/run/checkpoints/best.pth"
    assert find_checkpoint("results/run/checkpoints/latest.pth") == Path("results/run/checkpoints/latest.pth")
    assert find_checkpoint("tiny") == named_weights.FOLDER / "tiny.h5"


@pytest.mark.parametrize("make", [Path.touch, make_run])
def test_what_has_a_networks_name_must_be_spelled_as_a_path(here, make, caplog):
    expected = Path("tiny") if make is Path.touch else Path("tiny/checkpoints/best.pth")
    make(here / "tiny")
    for path in ("./tiny", here / "tiny", Path("tiny")):
        assert find_checkpoint(path) in (expected, here / expected)
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "vmunet"):
        assert find_checkpoint("tiny") == named_weights.FOLDER / "tiny.h5"
    assert "./tiny" in caplog.text


def test_errors_name_the_path_the_files_found_and_the_names_expected(here):
    (here / "empty").mkdir()
    make_run(here / "stopped")
    (here / "stopped/checkpoints/best.pth").unlink()
    found = {
        "nowhere.pth": "no such",
        "empty": "empty",
        "stopped": "checkpoints/, config.json, checkpoints/latest.pth",
        str(here): "empty/, stopped/",
        "/dev/null": "neither",
    }
    for path, words in found.items():
        with pytest.raises(FileNotFoundError) as error:
            find_checkpoint(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ")
        assert words in message.partition(", expected ")[0]
        expected = message.partition(", expected ")[2]
        assert all(text in expected for text in ("results/<run>", "checkpoints/best.pth", "tiny, lost"))


def test_a_shipped_file_that_is_gone_is_named(here):
    with pytest.raises(FileNotFoundError, match=r"lost: .*lost\.h5, expected .* \./lost"):
        find_checkpoint("lost")
