"""Files from strangers can't run code, write outside their folder, or crash a program.

tests/fuzz_readers.py tries far more inputs."""

import ast
import io
import os
import pickle
import random
import zipfile

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.synapse import SynapseSlices, SynapseVolumes
from tests.fuzz_readers import READERS, altered, feed
from tests.tiny import ROOT
from utils.errors import CheckpointError
from utils.runs.checkpoint import load_checkpoint, save_checkpoint
from utils.runs.named_weights import read_checkpoint

SOURCES = [path for path in ROOT.rglob("*.py") if not {".venv", "tests", "results"} & set(path.relative_to(ROOT).parts)]


class Bomb:
    """Runs a program when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def proof(tmp_path):
    """A folder that a bomb makes when it goes off, which is tried first."""
    path = tmp_path / "code has run"
    pickle.loads(pickle.dumps(Bomb(path)))
    path.rmdir()
    yield path
    assert not path.exists()


def with_checksum(content, path, monkeypatch):
    """A hostile file with the right checksum, which anybody can compute."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda state, file: file.write(content))
        save_checkpoint(path, {})


@pytest.mark.parametrize("old_format", [False, True])
def test_a_checkpoint_can_not_run_code(old_format, proof, tmp_path, monkeypatch):
    file = io.BytesIO()
    torch.save({"model": Bomb(proof)}, file, _use_new_zipfile_serialization=not old_format)
    path = tmp_path / "best.pth"
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match="best.pth: .*mkdir"):
        read_checkpoint(path)
    with_checksum(file.getvalue(), path, monkeypatch)
    with pytest.raises(CheckpointError, match="best.pth"):
        load_checkpoint(path)


def test_a_bare_pickle_can_not_run_code(proof, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(ValueError, match="weights.pth"):
        read_checkpoint(path)


def test_an_npz_can_not_run_code(proof, tmp_path):
    (tmp_path / "train.txt").write_text("a")
    np.savez(tmp_path / "a.npz", image=np.array([[Bomb(proof)]]), label=np.zeros((1, 1)))
    with pytest.raises(ValueError, match="a.npz: .*object"):
        SynapseSlices(tmp_path, tmp_path, None)[0]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:  # numpy unpickles members that are no arrays, if it may
        archive.writestr("image.npy", pickle.dumps(Bomb(proof)))
        archive.writestr("label.npy", pickle.dumps(Bomb(proof)))
    with pytest.raises(ValueError, match="a.npz"):
        SynapseSlices(tmp_path, tmp_path, None)[0]


def test_an_h5_can_not_run_code(proof, tmp_path):
    (tmp_path / "l").write_text("a")
    with h5py.File(tmp_path / "a.npy.h5", "w") as file:
        for name in ("image", "label"):
            file[name] = np.void(pickle.dumps(Bomb(proof)))
    with pytest.raises(ValueError, match="a.npy.h5: image"):
        SynapseVolumes(tmp_path, tmp_path, list_name="l")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_altered_files_are_read_or_refused(name, tmp_path):
    """Neither another error, which would be a traceback, nor a crash."""
    rng, good = random.Random(name), READERS[name][1]
    assert feed(name, good, tmp_path)
    read = sum(feed(name, altered(good, rng), tmp_path) for _ in range(150))
    assert read < 150


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_bytes_of_any_kind_are_read_or_refused(name, tmp_path):
    good = READERS[name][1]

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.binary(max_size=200), st.integers(0, len(good)), st.integers(0, 64))
    def try_one(content, place, cut):
        feed(name, content, tmp_path)
        feed(name, good[:place] + content + good[place + cut :], tmp_path)

    try_one()


def calls():
    """(file and line, name, keywords) of every call in the sources."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name, keywords


def test_no_source_calls_a_shell_or_unpickles():
    shells = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"}
    unpickling = {"pickle.load", "pickle.loads", "joblib.load", "marshal.loads", "yaml.load", "shelve.open"}
    for where, name, keywords in calls():
        assert name not in shells | unpickling, where
        assert keywords.get("shell", "False") == "False", where
        assert keywords.get("allow_pickle", "False") == "False", where
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        assert not name.endswith((".extractall", "unpack_archive")), where
