"""Checkpoints that survive a kill at any moment and are never trusted blindly.

A file is complete or not there: it is written beside its place, synced to the disk and then renamed. It ends with a
checksum of itself, so that a truncated or altered file is found out. It holds tensors and plain values only, so that it
loads with `weights_only=True` and can't run code. Each `latest.pth` stays, as `latest.previous.pth`, until the second
one after it is complete; `load_latest` falls back on it.

A training checkpoint is a dict with

    model, optimizer, scheduler, scaler    state dicts
    epoch, step                            finished epochs, batches so far
    losses                                 of the batches done of the next epoch, where one was interrupted
    best                                   {"value": ..., "epoch": ...} of the best epoch so far
    random                                 the states of all random number generators, one entry for each process
    config                                 the run's configuration
"""

import hashlib
import io
import logging
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from utils import distributed
from utils.errors import CheckpointError
from utils.files import write_atomically

log = logging.getLogger("vmunet")

# torch.save writes a zip archive, which ends with the length of its comment, in two bytes, and the comment. The comment
# is the checksum of all that is before it; other programs can still read the file.
MARK = b"vmunet sha256 "
DIGEST_BYTES = 64
PLAIN = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, bytes, type(None))


# ---- files


def save_checkpoint(path, state):
    """Writes `state` to `path`, which holds either its old or its new content at any moment.

    Raises TypeError for values that `weights_only=True` would refuse, OSError if the disk does not take the file."""
    write_packed(path, pack(state))


def pack(state):
    """The archive of a state as it is now, in memory. Raises TypeError for values that are not plain."""
    _check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer


def write_packed(path, packed):
    """Writes what `pack` made, with its checksum, in one step."""
    archive = packed.getbuffer()[:-2]
    end = (len(MARK) + DIGEST_BYTES).to_bytes(2, "little") + MARK
    digest = hashlib.sha256(archive)
    digest.update(end)
    write_atomically(path, archive, end, digest.hexdigest().encode())


def load_checkpoint(path):
    """The content of a checkpoint written by `save_checkpoint`, on the CPU.

    Raises FileNotFoundError, or CheckpointError if the checksum does not fit or there is more in it than values."""
    path = Path(path)
    content = path.read_bytes()
    if not has_checksum(content):
        raise CheckpointError(f"{path}: found no checksum at the end of the file, expected a complete checkpoint")
    verify_checksum(content, path)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file with a right checksum provokes
        found = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: found {found}, expected tensors and plain values") from error


def has_checksum(content):
    """Whether these bytes are a file of `save_checkpoint`; other people's checkpoints have no checksum."""
    return content[-len(MARK) - DIGEST_BYTES : -DIGEST_BYTES] == MARK


def verify_checksum(content, path):
    """Raises CheckpointError if the bytes before the checksum are not those it was made of."""
    expected = content[-DIGEST_BYTES:].decode("ascii", "replace")
    found = hashlib.sha256(memoryview(content)[:-DIGEST_BYTES]).hexdigest()
    if found != expected:
        raise CheckpointError(f"{path}: found SHA-256 {found[:9]}..., expected {expected[:9]}...: the file was altered")


def save_latest(folder, state):
    """Replaces `folder`/latest.pth and keeps the one before it."""
    write_latest(folder, pack(state))


def write_latest(folder, packed):
    latest, previous = latest_paths(folder)
    fresh = latest.with_name("latest.next.pth")
    write_packed(fresh, packed)
    if latest.exists():
        os.replace(latest, previous)
    os.replace(fresh, latest)


class BackgroundSaver:
    """Writes checkpoints in a thread, in the order they are given, while training goes on; hashing and writing take
    longer than copying. What a file will hold is fixed when it is given. Leaving the block waits for all of them.

    Once a file could not be written, none after it is: a latest.pth must not name a best.pth that is not there."""

    def __init__(self):
        self.thread, self.pending = ThreadPoolExecutor(1, thread_name_prefix="checkpoints"), []
        self.failed = False

    def save(self, path, state):
        """`save_checkpoint`; errors of the disk are raised by `finish`."""
        self.pending.append(self.thread.submit(self._write, write_packed, path, pack(state)))

    def save_latest(self, folder, state):
        self.pending.append(self.thread.submit(self._write, write_latest, folder, pack(state)))

    def finish(self):
        """Waits for what was given so far. Raises OSError if the disk did not take a file."""
        pending, self.pending = self.pending, []
        for writing in pending:
            writing.result()

    def _write(self, write, place, packed):
        if not self.failed:
            self.failed = True
            write(place, packed)
            self.failed = False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.thread.shutdown()
        if error is None:
            self.finish()


def load_latest(folder):
    """The newest complete checkpoint of `folder`. Says so if that is not `latest.pth`.

    Raises FileNotFoundError if there is none at all, CheckpointError if none is complete."""
    problems = []
    for path in latest_paths(folder):
        try:
            state = load_checkpoint(path)
        except FileNotFoundError:
            problems.append(f"{path}: not there")
        except CheckpointError as error:
            problems.append(str(error))
        else:
            if problems:
                log.warning("%s; going on from %s, epoch %d", "; ".join(problems), path.name, state["epoch"])
            return state
    error = CheckpointError if any(path.exists() for path in latest_paths(folder)) else FileNotFoundError
    raise error(f"no checkpoint to go on from: {'; '.join(problems)}")


def latest_paths(folder):
    return Path(folder, "latest.pth"), Path(folder, "latest.previous.pth")


def _check_plain(value, name):
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"a key of {name}")
            _check_plain(item, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{name}[{i}]")
    elif type(value) not in PLAIN:
        raise TypeError(f"checkpoint: found {type(value).__name__} in {name}, expected tensors and plain Python values")


# ---- content


def unwrap(model):
    """The model inside DistributedDataParallel and torch.compile, so that names in checkpoints never depend on them."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None:
            return model
        model = inner


def training_state(model, optimizer, scheduler, scaler, epoch, step, best, config, losses=()):
    """The dict described at the top of this file. Every process must call it; the main one writes it.

    best    {"value": float, "epoch": int}
    config  a dict of plain values
    losses  of the batches of an epoch that was interrupted
    """
    return {
        "model": unwrap(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "epoch": epoch,
        "step": step,
        "losses": list(losses),
        "best": best,
        "random": distributed.all_gather(random_state()),
        "config": config,
    }


def restore(state, model, optimizer, scheduler, scaler):
    """Puts a `training_state` back, random numbers included. Returns its epoch, step and best.

    With another number of processes than before, their random numbers can't go on where they were; the log says so.
    Raises CheckpointError if the state is not of such a model and optimizer."""
    try:
        unwrap(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        scaler.load_state_dict(state["scaler"])
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint is not of this model and optimizer: {error}") from error
    if len(state["random"]) == distributed.world_size():
        set_random_state(state["random"][distributed.rank()])
    else:
        log.warning(
            "random numbers start anew: the checkpoint comes from %d processes, there are %d now",
            len(state["random"]),
            distributed.world_size(),
        )
    return state["epoch"], state["step"], state["best"]


def random_state():
    """The states of the random number generators of this process, as tensors and plain values."""
    version, internal, gauss_next = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state):
    """The opposite of `random_state`; the generator of a device that is not here is left out."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
