"""Read the files of networks: checkpoints of this project, of the originals, of VMamba and of training frameworks,
packed weights, and safetensors with their config.json."""

import hashlib
import pickle
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from .archive import ArchiveError, check_archive
from .filling import first, inner_name
from .foreign import StandIn, load_plain
from .packed import is_packed, named_values, read_packed_weights

HOW_TO_CONVERT = (
    "in the program that wrote it, torch.save(network.state_dict(), 'new.pth') writes the weights alone; do this "
    "only if you trust the file, because that program runs any code in it"
)
# Entries under which training programs keep the weights: state_dict of Lightning and mmseg, network_weights of nnU-Net.
WRAPPINGS = ("model", "model_state_dict", "state_dict", "network_weights", "network", "net")
THOP = ("total_ops", "total_params")  # what this package has left in the original's ISIC checkpoints
CONFIG = "config.json"  # beside safetensors, as save_pretrained writes it


class Checkpoint(NamedTuple):
    """The content of a network's file."""

    path: Path  # the file
    sha256: str  # of the file
    weights: dict[str, torch.Tensor]  # by name, without prefixes (see filling.py), on the CPU
    config: dict[str, Any]  # the configuration stored beside them; {} if there is none
    about: dict[str, Any]  # what else a packed file says, or the epoch of a training checkpoint


def read_weights(path: str | Path) -> Checkpoint:
    """Return the `Checkpoint` of a file, whose weights may be stored alone or under one of WRAPPINGS.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint, or one of ours that has changed."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected one with weights")
    content = path.read_bytes()
    found = _read(content, path)
    weights = _unwrapped(found, path)
    # files of other programs hold other things here: objects, text
    config, about = ({} if type(found.get(key)) is not dict else found[key] for key in ("config", "about"))
    if isinstance(found.get("epoch"), int):
        about = about | {"epoch": found["epoch"]}
    return Checkpoint(path, hashlib.sha256(content).hexdigest(), weights, config, about)


def _read(content: bytes, path: Path) -> Any:
    """Return the content of a checkpoint file. Reading executes nothing."""
    if is_packed(content):
        weights, config, about = read_packed_weights(content, path)
        return {"model": weights, "config": config, "about": about}
    if _is_safetensors(content):
        try:
            return {"model": safetensors.torch.load(content), "config": read_config(path.with_name(CONFIG))}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: found damaged safetensors ({error}), expected whole ones") from error
    try:
        check_archive(content)
        return load_plain(content)
    except ArchiveError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged or hostile file provokes
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            expected = "tensors and plain values only, because a file with other objects can run code when it is read"
            raise ValueError(f"{path}: found {refused[1]}, expected {expected}; {HOW_TO_CONVERT}") from error
        raise ValueError(f"{path}: found {_describe(content)}, expected a checkpoint") from error


def _is_safetensors(content: bytes) -> bool:
    """Return whether these bytes begin as safetensors do: with the length of a header in JSON, and the header."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") < 2**27


def read_config(path: Path) -> dict[str, Any]:
    """Return the values in a config.json, {} without one. Raises ValueError for JSON that is not names and values."""
    return named_values(path.read_bytes(), path) if path.is_file() else {}


def _unwrapped(found: Any, path: Path) -> dict[str, torch.Tensor]:
    weights = found
    for key in WRAPPINGS:
        if isinstance(weights, dict) and isinstance(weights.get(key), dict | StandIn):
            weights = weights[key]
    if isinstance(weights, StandIn):
        raise ValueError(f"{path}: found an object, {weights.name}, expected named tensors; {HOW_TO_CONVERT}")
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not named or not weights or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        entries = f" but {first(map(repr, weights))}" if isinstance(weights, dict) else ""
        expected = f"named tensors, alone or under {', '.join(WRAPPINGS)}"
        raise ValueError(f"{path}: found no weights{entries}, expected {expected}")
    names: dict[str, str] = {}  # by the name without prefix
    for name in (name for name in weights if not name.endswith(THOP)):
        if (other := names.setdefault(inner_name(name), name)) != name:
            raise ValueError(f"{path}: found both {other} and {name}, expected the weights of one network")
    return {inner: weights[name] for inner, name in names.items()}


def _describe(content: bytes) -> str:
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file it stands for"
    if content.lstrip().startswith(b"<"):
        return "a web page"
    try:
        is_zip = zipfile.is_zipfile(BytesIO(content))
    except zipfile.BadZipFile:  # for some damaged files
        is_zip = False
    if is_zip:
        return "a zip archive that torch.save did not write, perhaps a compiled or exported program"
    if re.match(rb"(?s)\x08.\x12.pytorch", content):  # the version of the format, and who wrote it
        return "an ONNX file, for ONNX Runtime"
    return f"{len(content)} bytes that PyTorch can't read, perhaps of an incomplete download"
