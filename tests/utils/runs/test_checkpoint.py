import errno
import random
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.weights.filling import unwrap
from tests.tiny import ROOT, empty_state
from utils.errors import CheckpointError
from utils.runs.checkpoint import (
    BackgroundSaver,
    load_checkpoint,
    load_latest,
    random_state,
    restore,
    save_checkpoint,
    save_latest,
    set_random_state,
    training_state,
)


def make_training(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    return model, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False)


def state_of(parts, **values):
    """A training checkpoint of these parts, after one epoch."""
    names = ("model", "optimizer", "scheduler", "scaler")
    values = dict(epoch=1, step=1, losses=[], best={"value": 0.5, "epoch": 1}, config={}, data="") | values
    return training_state(dict(zip(names, parts, strict=True)), **values)


def restored(state, parts):
    restore(state, dict(zip(("model", "optimizer", "scheduler", "scaler"), parts, strict=True)))


def train(model, optimizer, scheduler, scaler, steps):
    losses = []
    for _ in range(steps):
        x = torch.rand(3, 4) + random.random() + float(np.random.rand())
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def state_at(epoch):
    return empty_state(epoch, weights=torch.full((1000,), float(epoch)))


def test_two_steps_and_two_resumed_equal_four(tmp_path):
    """Weights, optimizer, schedule and all random numbers go on bit for bit."""
    random.seed(1)
    np.random.seed(1)
    parts = make_training()
    first = train(*parts, steps=2)
    config = {"lr": 0.01, "name": "x"}
    save_checkpoint(tmp_path / "c.pth", state_of(parts, epoch=2, step=2, config=config))
    undisturbed = train(*parts, steps=2)

    random.seed(99)
    np.random.seed(99)
    fresh = make_training(seed=7)
    state = load_checkpoint(tmp_path / "c.pth")
    restored(state, fresh)
    assert (state["epoch"], state["step"], state["best"]) == (2, 2, {"value": 0.5, "epoch": 1})
    assert train(*fresh, steps=2) == undisturbed != first
    assert all(torch.equal(a, b) for a, b in zip(parts[0].parameters(), fresh[0].parameters(), strict=True))


ALTERED = {  # entry, path of the names to one value, the value instead, what the message names
    "random numbers": ("random", (0, "torch"), torch.zeros(3), ["TypeError"]),
    "no random numbers": ("random", (0,), "x", ["TypeError"]),
    "rate": ("optimizer", ("param_groups", 0, "lr"), "x", ["optimizer['param_groups'][0]['lr']", "'x'"]),
    "shape": ("optimizer", ("state", 0, "exp_avg"), torch.zeros(7), ["exp_avg", "[7]", "[8, 4]"]),
    "what is kept": ("optimizer", ("state", 0), {"step": torch.ones(())}, ["exp_avg, exp_avg_sq, step", " step "]),
    "schedule": ("scheduler", ("T_max",), "x", ["scheduler['T_max']", "'x'", "3"]),
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_state_whose_parts_are_others_inside_is_one_error(what):
    parts = make_training()
    train(*parts, steps=1)
    state = state_of(parts)
    entry, (*path, last), value, words = ALTERED[what]
    place = state[entry]
    for name in path:
        place = place[name]
    place[last] = value
    with pytest.raises(CheckpointError) as error:
        restored(state, make_training())
    assert all(word in str(error.value) for word in words)


def test_random_state_holds_every_generator(tmp_path):
    random.gauss(0, 1), np.random.randn()  # both keep a second number for later
    save_checkpoint(tmp_path / "c.pth", random_state())
    draw = lambda: (random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(1).item())  # noqa: E731
    expected = draw()
    set_random_state(load_checkpoint(tmp_path / "c.pth"))
    assert draw() == expected


def test_another_number_of_processes_is_mentioned(caplog):
    parts = make_training()
    state = state_of(parts)
    state["random"] *= 2
    restored(state, parts)
    assert re.search(r"\b2 processes\b.*\b1\b", caplog.text)


def test_names_do_not_depend_on_wrappers():
    model = nn.Linear(2, 2)
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert unwrap(wrapped) is model


def test_a_checkpoint_needs_no_trust_and_stays_an_ordinary_archive(tmp_path):
    save_checkpoint(tmp_path / "c.pth", state_at(3))
    assert torch.load(tmp_path / "c.pth", weights_only=True)["epoch"] == 3
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        assert archive.comment.startswith(b"vmunet sha256 ") and archive.testzip() is None


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(2), Path("x"), {1, 2}, lambda: 0])
def test_values_that_would_not_load_again_are_refused_at_once(tmp_path, value):
    with pytest.raises(TypeError, match=rf"{type(value).__name__}.*state\['best'\]\[0\]"):
        save_checkpoint(tmp_path / "c.pth", {"best": [value]})
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_detected(tmp_path):
    path = tmp_path / "c.pth"
    save_checkpoint(path, state_at(1))
    content = path.read_bytes()
    for length in {0, 1, 78, 79, 80, *range(100, len(content), 997), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="c.pth"):
            load_checkpoint(path)


def test_every_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "c.pth"
    save_checkpoint(path, state_at(1))
    content = path.read_bytes()
    for position in {*range(0, len(content), 53), *range(len(content) - 100, len(content))}:
        altered = bytearray(content)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        with pytest.raises(CheckpointError, match="c.pth"):
            load_checkpoint(path)


def test_the_latest_and_the_one_before_are_kept(tmp_path):
    for epoch in (1, 2, 3):
        save_latest(tmp_path, state_at(epoch))
    assert {path.name for path in tmp_path.iterdir()} == {"latest.pth", "latest.previous.pth"}
    assert load_latest(tmp_path)["epoch"] == 3
    assert load_checkpoint(tmp_path / "latest.previous.pth")["epoch"] == 2


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_latest_falls_back_and_says_so(tmp_path, caplog, damage):
    for epoch in (1, 2):
        save_latest(tmp_path, state_at(epoch))
    path = tmp_path / "latest.pth"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:500] if damage == "truncated" else content.replace(b"epoch", b"EPOCH"))
    assert load_latest(tmp_path)["epoch"] == 1
    assert "latest.pth" in caplog.text and re.search(r"latest\.previous\.pth.*\b1\b", caplog.text)


def test_nothing_to_go_on_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"latest\.pth"):
        load_latest(tmp_path)
    (tmp_path / "latest.pth").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"latest\.pth"):
        load_latest(tmp_path)


class FullDisk:
    """Stands in for a file that nothing more fits into."""

    def __init__(self, path, mode):
        Path(path).touch()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, part):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["open", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_last_checkpoint_alone(tmp_path, monkeypatch, call):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    save_latest(tmp_path, state_at(1))
    before = (tmp_path / "latest.pth").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(f"utils.files.{call}", FullDisk if call == "open" else fail, raising=False)
        with pytest.raises(OSError, match=r"latest\.next\.pth") as error:
            save_latest(tmp_path, state_at(2))
        assert error.value.__cause__.errno == errno.ENOSPC
    assert (tmp_path / "latest.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pth"]


SAVE_FOREVER = """
import sys, torch
from tests.tiny import empty_state
from utils.runs.checkpoint import save_latest
epoch = int(sys.argv[2])
while True:
    epoch += 1
    save_latest(sys.argv[1], empty_state(epoch, weights=torch.full((1_000_000,), float(epoch))))
    print(epoch, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path):
    """SIGKILL at moments spread over the saving; what is left is whole and at most one save behind."""
    epoch, moments = 0, random.Random(0)
    for _ in range(5):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path), str(epoch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT) as process:
            finished = [process.stdout.readline()]
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
            finished += process.stdout.readlines()
        state, last = load_latest(tmp_path), int(finished[-1])
        epoch = state["epoch"]
        assert epoch in (last - 1, last, last + 1)
        assert torch.equal(state["weights"], torch.full((1_000_000,), float(epoch)))


def test_the_background_saver_writes_in_order_what_it_was_given(tmp_path):
    weights = torch.zeros(3)
    with BackgroundSaver() as saver:
        for epoch in range(1, 4):
            weights.fill_(epoch)
            saver.submit(save_checkpoint, tmp_path / "best.pth", {"epoch": epoch, "weights": weights})
            saver.submit(save_latest, tmp_path, empty_state(epoch, weights=weights))
        weights.fill_(-1)  # as the next step of training does
    assert torch.equal(load_checkpoint(tmp_path / "best.pth")["weights"], torch.full((3,), 3.0))
    assert load_latest(tmp_path)["epoch"] == 3 and load_checkpoint(tmp_path / "latest.previous.pth")["epoch"] == 2


def test_after_a_file_that_the_disk_did_not_take_the_background_saver_writes_none(tmp_path):
    (tmp_path / "best.pth").mkdir()  # no file can take its place
    with BackgroundSaver() as saver:
        saver.submit(save_checkpoint, tmp_path / "best.pth", {"epoch": 1})
        saver.submit(save_latest, tmp_path, empty_state(1))
        with pytest.raises(OSError, match=r"best\.pth"):
            saver.finish()
    assert not (tmp_path / "latest.pth").exists()
