"""Checkpoints that survive a kill at any moment.

A file is complete or not there: it is written under another name, synced to the disk and then renamed. It ends with its
own checksum, so that a truncated or altered file is detected. It holds tensors and plain values only, so that it loads
with `weights_only=True` and can't run code. The `latest.pth` before the present one is kept as `latest.previous.pth`,
on which `load_latest` falls back.

The content of a training checkpoint is described in docs/checkpoints.md.
"""

import hashlib
import io
import logging
import os
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from models.weights.archive import DIGEST_BYTES, MARK, ArchiveError, check_archive, has_checksum
from utils import distributed
from utils.errors import CheckpointError
from utils.files import write_atomically

log = logging.getLogger("vmunet")

PLAIN = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, bytes, type(None))
DEVICES: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}  # with random numbers of their own
FORMAT = 1  # the version of what a training checkpoint holds
FIELDS: dict[str, type] = {  # of every training checkpoint
    **dict.fromkeys(("model", "optimizer", "scheduler", "scaler", "best", "config"), dict),
    **dict.fromkeys(("epoch", "step"), int),
    **dict.fromkeys(("losses", "random"), list),
}


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` with its checksum to `path`, which at any moment holds either its old or its new content.

    Raises TypeError for values that `weights_only=True` would reject, OSError if the disk does not take the file."""
    check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    archive = buffer.getbuffer()[:-2]
    end = (len(MARK) + DIGEST_BYTES).to_bytes(2, "little") + MARK
    digest = hashlib.sha256(archive)
    digest.update(end)
    write_atomically(path, archive, end, digest.hexdigest().encode())


def save_latest(folder: str | Path, state: dict[str, Any]) -> None:
    """Replace `folder`/latest.pth and keep the one before it."""
    latest, previous = latest_paths(folder)
    following = latest.with_name("latest.next.pth")
    save_checkpoint(following, state)
    if latest.exists():
        os.replace(latest, previous)
    os.replace(following, latest)


class BackgroundSaver(AbstractContextManager):
    """Write checkpoints in a thread, in order, while training continues: packing, hashing and writing take longer than
    copying the tensors, which is done at once. Leaving the block waits until all are written.

    After a file that could not be written no other is: a latest.pth must not name a best.pth that is not there."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self.pending: list[Future[None]] = []
        self.failed = False

    def submit(self, save: Callable[[Any, dict], None], place: str | Path, state: dict[str, Any]) -> None:
        """Begin save(place, state) with the state as it is now; `finish` raises its errors."""
        self.pending.append(self.thread.submit(self._save, save, place, copied(state)))

    def finish(self) -> None:
        """Wait for all files so far. Raise OSError if one could not be written, TypeError for values not plain."""
        pending, self.pending = self.pending, []
        for writing in pending:
            writing.result()

    def _save(self, save, place, state):
        if not self.failed:
            self.failed = True  # unless the next line returns
            save(place, state)
            self.failed = False

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.thread.shutdown()
        if error is None:
            self.finish()


def copied(state: Any) -> Any:
    """Return a state with copies of its tensors, in main memory."""
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(copied, state))
    return state.detach().to("cpu", copy=True) if isinstance(state, torch.Tensor) else state


def check_plain(value: Any, name: str) -> None:
    """Raise TypeError unless a value consists of tensors and plain Python values."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(key, f"a key of {name}")
            check_plain(item, f"{name}[{key!r}]")
    elif type(value) not in PLAIN:
        raise TypeError(f"checkpoint: found {type(value).__name__} in {name}, expected tensors and plain Python values")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint written by `save_checkpoint`, on the CPU.

    Raises FileNotFoundError, or CheckpointError if the checksum does not fit or it holds more than plain values."""
    path = Path(path)
    content = path.read_bytes()
    if not has_checksum(content):
        raise CheckpointError(f"{path}: found no checksum at the end of the file, expected a complete checkpoint")
    try:
        check_archive(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ArchiveError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # whatever a hostile file with a right checksum provokes
        found = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: found {found}, expected tensors and plain values") from error


def check_training_state(state: Any, path: str | Path) -> None:
    """Raise CheckpointError unless `state` has the fields of a training checkpoint of this version."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: found {type(state).__name__}, expected the state of a training run")
    version = state.get("format", FORMAT)
    if version != FORMAT:
        raise CheckpointError(f"{path}: found format {version!r}, expected {FORMAT}: another version has written it")
    for name, kind in FIELDS.items():
        if name not in state:
            raise CheckpointError(f"{path}: found no {name}, expected {', '.join(FIELDS)}")
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise CheckpointError(f"{path}: found {type(state[name]).__name__} as {name}, expected {kind.__name__}")
    best = [state["best"].get(name) for name in ("value", "epoch")]
    if not all(isinstance(number, int | float) for number in (*best, *state["losses"])):
        raise CheckpointError(f"{path}: found other entries of best or losses, expected value and epoch, and numbers")


def load_latest(folder: str | Path) -> dict[str, Any]:
    """Return the newest complete checkpoint of `folder`. Log a warning if that is not `latest.pth`.

    Raises FileNotFoundError if there is none at all, CheckpointError if none is complete."""
    problems = []
    for path in latest_paths(folder):
        try:
            state = load_checkpoint(path)
            check_training_state(state, path)
        except FileNotFoundError:
            problems.append(f"{path}: not there")
        except CheckpointError as error:
            problems.append(str(error))
        else:
            if problems:
                log.warning("%s; continuing from %s, epoch %d", "; ".join(problems), path.name, state["epoch"])
            return state
    error = CheckpointError if any(path.exists() for path in latest_paths(folder)) else FileNotFoundError
    raise error(f"no checkpoint to resume from: {'; '.join(problems)}")


def latest_paths(folder: str | Path) -> tuple[Path, Path]:
    """Return the paths of the newest checkpoint and of the one before it."""
    return Path(folder, "latest.pth"), Path(folder, "latest.previous.pth")


def training_state(parts: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return the content of a training checkpoint. Every process must call it; the main one writes it.

    parts   model, optimizer, scheduler and scaler
    values  epoch, step (batches so far), losses (of an interrupted epoch), best, config, data (a hash of the files)"""
    states = {name: part.state_dict() for name, part in parts.items()}
    return {"format": FORMAT, **states, **values, "random": distributed.all_gather(random_state())}


def restore(state: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Restore the parts of a `training_state`, and the random numbers: they start anew, with a line in the log, if the
    number of processes is another.

    Raises CheckpointError if the state is not of such a model and optimizer."""
    same_processes = len(state["random"]) == distributed.world_size()
    try:
        for name, part in parts.items():
            if name != "model":
                check_kinds(state[name], part.state_dict(), name)
            part.load_state_dict(state[name])
        check_kept(parts["optimizer"])
        if same_processes:
            set_random_state(state["random"][distributed.rank()])
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        found = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise CheckpointError(f"the checkpoint is not of this model and optimizer: {found}") from error
    if not same_processes:
        processes = len(state["random"]), distributed.world_size()
        log.warning("random numbers start anew: the checkpoint comes from %d processes, there are %d now", *processes)


def check_kinds(found: Any, expected: Any, name: str) -> None:
    """Raise ValueError where a state has, under the same name, another kind of value than expected."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() & found.keys():
            check_kinds(found[key], expected[key], f"{name}[{key!r}]")
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        for i, (one, other) in enumerate(zip(found, expected, strict=False)):
            check_kinds(one, other, f"{name}[{i}]")
    elif found is not None and expected is not None:
        kind = (int, float) if isinstance(expected, int | float) else type(expected)
        if not isinstance(found, kind):
            raise ValueError(f"{name} is {found!r:.60}, expected such as {expected!r:.60}")


def check_kept(optimizer: Optimizer) -> None:
    """Raise ValueError unless an optimizer keeps the same for each weight: numbers, and tensors of its shape."""
    names = {frozenset(values) for values in optimizer.state.values() if values}
    if len(names) > 1:
        raise ValueError(f"the optimizer keeps {' or '.join(sorted(', '.join(sorted(n)) for n in names))} for a weight")
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != weight.shape:
                found, expected = list(value.shape), list(weight.shape)
                raise ValueError(f"the optimizer's {name} has the shape {found}, expected {expected}")
            if isinstance(value, str | dict | list):
                raise ValueError(f"the optimizer's {name} is {value!r:.60}, expected numbers")


def random_state() -> dict[str, Any]:
    """Return the states of the random number generators of this process, as tensors and plain values."""
    version, internal, gauss_next = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    keys = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(kind), keys, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        **{name: device.get_rng_state() for name, device in DEVICES.items() if device.device_count()},
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore `random_state`, without the generator of a device that this machine lacks."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for name, device in DEVICES.items():
        if name in state and device.device_count():
            device.set_rng_state(state[name])
