"""Weights from files: what a checkpoint holds of a network, and filling a network with it.

A file fills what it should fill, to the last tensor, or is refused; nothing is ever matched in part. Files of this
project, of the original and of VMamba are understood, and packed ones (utils/runs/packed.py).
"""

import hashlib
import io
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.files import some
from utils.runs.checkpoint import ArchiveError, check_archive, has_checksum, unwrap, verify_checksum
from utils.runs.packed import is_packed, read_packed_weights
from utils.runs.shipped import find_checkpoint

log = logging.getLogger("vmunet")

HOW_TO_CONVERT = (
    "if you trust where it comes from, convert it once: python -c \"import torch; c = torch.load('old.pth', 'cpu', "
    "weights_only=False); torch.save(c.get('model_state_dict', c.get('model', c)), 'new.pth')\""
)
WRAPPINGS = ("model", "model_state_dict", "state_dict")  # entries under which training scripts keep the weights
THOP = ("total_ops", "total_params")  # what this package has left in the original's ISIC checkpoints
NAMES_SHOWN = 5


class Checkpoint(NamedTuple):
    """What a file holds of a network."""

    path: Path  # the file
    sha256: str  # of the file
    weights: dict[str, torch.Tensor]  # by name, without prefixes like `module.`, on the CPU
    config: dict[str, Any]  # the configuration stored beside them; {} if there is none
    about: dict[str, Any]  # what else a packed file says, or the epoch of a training checkpoint


def load_checkpoint_weights(model: torch.nn.Module, named: str | os.PathLike[str]) -> str:
    """Fills a whole network from a checkpoint of this project or, if it is a VMUNet, of the original.

    Returns the file's SHA-256. Raises what `read_checkpoint` and `fill_network` do."""
    checkpoint = read_checkpoint(named)
    fill_network(model, checkpoint.weights, checkpoint.path)
    log.info("weights from %s, %d tensors, SHA-256 %s", checkpoint.path, len(checkpoint.weights), checkpoint.sha256)
    return checkpoint.sha256


def read_checkpoint(named: str | os.PathLike[str], how_to_get: str = "") -> Checkpoint:
    """The `Checkpoint` of a file, of a run's folder or of a shipped network (see `find_checkpoint`).

    The weights may be stored alone or under one of WRAPPINGS. `how_to_get` is advice for messages.

    Raises FileNotFoundError, ValueError for what is no checkpoint, and utils.errors.CheckpointError, a ValueError too,
    for a file of ours that was altered."""
    path = find_checkpoint(named, how_to_get)
    content, sha256 = _read(path, how_to_get)
    weights = {name: t for name, t in _unwrapped(content, path).items() if not name.endswith(THOP)}
    config, about = ({} if not isinstance(content.get(key), dict) else content[key] for key in ("config", "about"))
    if isinstance(content.get("epoch"), int):
        about = about | {"epoch": content["epoch"]}
    return Checkpoint(path, sha256, weights, config, about)


def fill_network(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path, left: Collection[str] = ()
) -> None:
    """Puts exactly these weights, which came from `path`, into a network; names in `left` stay as they are.

    Raises ValueError, before anything is filled, if names or shapes are not the network's."""
    network = inner_network(model)
    state = {name: tensor for name, tensor in network.state_dict().items() if name not in left}
    weights = {name: tensor for name, tensor in weights.items() if name not in left}
    check_fit(state, weights, path)
    try:
        network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # tensors of another kind, such as sparse ones
        raise ValueError(
            f"{path}: found weights that can't be copied: {str(error).splitlines()[-1].strip()}"
        ) from error


def inner_network(model: torch.nn.Module) -> torch.nn.Module:
    """The module whose names have no prefix."""
    model = unwrap(model)
    return getattr(model, "vmunet", model)


def check_fit(state: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Raises ValueError unless the weights have the names and shapes of a network's state."""
    missing = [name for name in state if name not in weights]
    foreign = [name for name in weights if name not in state]
    if missing or foreign:
        raise ValueError(
            f"{path}: found {len(state) - len(missing)} of this network's {len(state)} tensors and {len(foreign)} "
            f"foreign ones, expected exactly these; not found: {some(missing, NAMES_SHOWN) or 'none'}; "
            f"foreign: {some(foreign, NAMES_SHOWN) or 'none'}"
        )
    check_shapes(path, weights, state)
    check_values(path, weights)


def check_shapes(path: str | Path, weights: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError that names the weights whose shapes are not those of `state`."""
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(state[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != state[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{path}: found {len(wrong)} tensors of another shape than the model's: {some(wrong, NAMES_SHOWN)}"
        )


def check_values(path: str | Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError that names a weight that is not dense, or not a finite number."""
    for name, tensor in weights.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise ValueError(f"{path}: found {name} as a {kind} tensor, expected an ordinary one")
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: found NaN or infinite values in {name}, expected weights that were trained")


# ---- files


def _read(path: Path, how_to_get: str) -> tuple[Any, str]:
    """The content of a checkpoint file and its SHA-256.

    Nothing in the file can run: it is packed, or read with `weights_only=True`. VMamba's training settings, a yacs
    node, become a dictionary that nobody looks at."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if is_packed(content):
        weights, config, about = read_packed_weights(content, path)
        return {"model": weights, "config": config, "about": about}, sha256
    if has_checksum(content):
        verify_checksum(content, path)
    try:
        with torch.serialization.safe_globals([(OrderedDict, "yacs.config.CfgNode")]):
            check_archive(content)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), sha256
    except ArchiveError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged or hostile file provokes
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise ValueError(
                f"{path}: found {refused[1]}, expected tensors and plain values only, because a file with other "
                f"objects can run code when it is read; {HOW_TO_CONVERT}"
            ) from error
        advice = f"; {how_to_get}" if how_to_get else ""
        raise ValueError(f"{path}: found {_describe(content)}, expected a checkpoint{advice}") from error


def _unwrapped(weights: Any, path: str | Path) -> dict[str, torch.Tensor]:
    for key in WRAPPINGS:
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not named or not weights or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: found no weights, expected named tensors, alone or under {', '.join(WRAPPINGS)}")
    prefix = re.compile(r"^((module|_orig_mod|vmunet)\.)+")
    return {prefix.sub("", name): tensor for name, tensor in weights.items()}


def _describe(content: bytes) -> str:
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file it stands for"
    if content.lstrip().startswith(b"<"):
        return "a web page"
    return f"{len(content)} bytes that PyTorch can't read, perhaps of an incomplete download"
