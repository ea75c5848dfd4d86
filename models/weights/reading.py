"""Read the files of networks: checkpoints of this project, of the originals and of VMamba, and packed weights."""

import hashlib
import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .archive import ArchiveError, check_archive, has_checksum, verify_checksum
from .filling import inner_name
from .packed import is_packed, read_packed_weights

HOW_TO_CONVERT = (
    "if you trust where it comes from, convert it once: python -c \"import torch; c = torch.load('old.pth', 'cpu', "
    "weights_only=False); torch.save(c.get('model_state_dict', c.get('model', c)), 'new.pth')\""
)
WRAPPINGS = ("model", "model_state_dict", "state_dict")  # entries under which training scripts keep the weights
THOP = ("total_ops", "total_params")  # what this package has left in the original's ISIC checkpoints


class Checkpoint(NamedTuple):
    """The content of a network's file."""

    path: Path  # the file
    sha256: str  # of the file
    weights: dict[str, torch.Tensor]  # by name, without prefixes (see filling.py), on the CPU
    config: dict[str, Any]  # the configuration stored beside them; {} if there is none
    about: dict[str, Any]  # what else a packed file says, or the epoch of a training checkpoint


def read_weights(path: str | Path, how_to_get: str = "") -> Checkpoint:
    """Return the `Checkpoint` of a file, whose weights may be stored alone or under one of WRAPPINGS. `how_to_get` is
    advice for messages.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint, or one of ours that has changed."""
    path = Path(path)
    advice = f"; {how_to_get}" if how_to_get else ""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected one with weights{advice}")
    content, sha256 = _read(path, advice)
    weights = {name: t for name, t in _unwrapped(content, path).items() if not name.endswith(THOP)}
    config, about = ({} if not isinstance(content.get(key), dict) else content[key] for key in ("config", "about"))
    if isinstance(content.get("epoch"), int):
        about = about | {"epoch": content["epoch"]}
    return Checkpoint(path, sha256, weights, config, about)


def _read(path: Path, advice: str) -> tuple[Any, str]:
    """Return the content of a checkpoint file and its SHA-256.

    Reading executes nothing: the file is packed, or read with `weights_only=True`. VMamba's training settings, a yacs
    node, become a dictionary that is not used."""
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
            expected = "tensors and plain values only, because a file with other objects can run code when it is read"
            raise ValueError(f"{path}: found {refused[1]}, expected {expected}; {HOW_TO_CONVERT}") from error
        raise ValueError(f"{path}: found {_describe(content)}, expected a checkpoint{advice}") from error


def _unwrapped(weights: Any, path: str | Path) -> dict[str, torch.Tensor]:
    for key in WRAPPINGS:
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not named or not weights or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: found no weights, expected named tensors, alone or under {', '.join(WRAPPINGS)}")
    return {inner_name(name): tensor for name, tensor in weights.items()}


def _describe(content: bytes) -> str:
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file it stands for"
    if content.lstrip().startswith(b"<"):
        return "a web page"
    return f"{len(content)} bytes that PyTorch can't read, perhaps of an incomplete download"
