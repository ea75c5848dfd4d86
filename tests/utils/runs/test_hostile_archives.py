"""Checkpoints that somebody else has made: what they hold is looked at before it takes memory, or a run's place."""

import io
import re
import zipfile

import pytest
import torch

from models.weights.filling import fill_network
from tests.tiny import empty_state, tree
from utils.errors import CheckpointError
from utils.runs.checkpoint import check_training_state, load_latest, save_checkpoint, save_latest
from utils.runs.named_weights import read_checkpoint


def weights():
    return {"a": torch.zeros(3, 4), "b": torch.ones(2)}


def packed(state):
    """The archive of a state, as PyTorch writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def repacked(content, compression, extra=None):
    """The same archive written by another program."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", compression) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        if extra is not None:
            target.writestr(extra, b"\0" * 100_000_000)
    return buffer.getvalue()


def test_an_archive_that_inflates_is_refused_before_it_is_read(tmp_path):
    """2 MB of compressed zeros are 2 GB of memory."""
    path = tmp_path / "best.pth"
    path.write_bytes(repacked(packed(weights()), zipfile.ZIP_DEFLATED, "archive/data/9"))
    assert path.stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"best\.pth.*archive/"):
        read_checkpoint(path)


def test_a_stored_archive_of_another_program_is_read(tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes(repacked(packed(weights()), zipfile.ZIP_STORED))
    assert read_checkpoint(path).weights.keys() == weights().keys()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda w: w | {"b": torch.tensor([1.0, float("nan")])}, r"NaN.*\bb\b"),
        (lambda w: w | {"a": torch.zeros(3, 4).to_sparse()}, r"\ba\b.*sparse_coo"),
        (lambda w: w | {"a": torch.zeros(3, 4, device="meta")}, r"\ba\b.*meta"),
        (lambda w: {1: w["a"], 2: w["b"]}, "no weights"),
        (lambda w: w | {"a": torch.zeros(1).expand(3, 4_000_000_000)}, r"\ba \[3, 4000000000\].*\[3, 4\]"),
    ],
)
def test_odd_tensors_are_named(tmp_path, spoil, message):
    network = torch.nn.Module()
    for name, tensor in weights().items():
        network.register_parameter(name, torch.nn.Parameter(tensor))
    path = tmp_path / "best.pth"
    torch.save(spoil(weights()), path)
    with pytest.raises(ValueError, match=rf"best\.pth.*{message}"):
        fill_network(network, read_checkpoint(path).weights, path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 99}, "99.* 1"),
        ({"epoch": "one"}, "str.*epoch.*int"),
        ({"epoch": True}, "bool.*epoch.*int"),
        ({"best": {}}, "best"),
        ({"losses": ["x"]}, "losses"),
        ({"scheduler": None}, "NoneType.*scheduler.*dict"),
    ],
)
def test_a_state_of_another_version_is_named_and_the_one_before_is_taken(tmp_path, caplog, changes, message):
    save_latest(tmp_path, empty_state(1))
    save_latest(tmp_path, empty_state(2))
    save_checkpoint(tmp_path / "latest.pth", empty_state(**{"epoch": 3} | changes))  # its checksum is right
    assert load_latest(tmp_path)["epoch"] == 1
    assert re.search(rf"latest\.pth.*{message}", caplog.text)


def test_a_missing_field_is_named(tmp_path):
    save_checkpoint(
        tmp_path / "latest.pth", {name: value for name, value in empty_state(3).items() if name != "random"}
    )
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=r"latest\.pth.*random.*model, optimizer"):
        load_latest(tmp_path)
    assert tree(tmp_path) == before


def test_the_first_checkpoints_had_no_format(tmp_path):
    old = empty_state(1)
    del old["format"]
    check_training_state(old, "latest.pth")
