"""Weights from files: VMamba's for ImageNet into both halves of a fresh VM-UNet, and whole VM-UNet checkpoints.

A file fills what it should fill, to the last tensor, or is refused; nothing is ever matched in part.
"""

import hashlib
import io
import logging
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import torch

from utils.files import some
from utils.runs.checkpoint import has_checksum, unwrap, verify_checksum

log = logging.getLogger("vmunet")

HOW_TO_CONVERT = (
    "if you trust where it comes from, convert it once: python -c \"import torch; c = torch.load('old.pth', 'cpu', "
    "weights_only=False); torch.save(c.get('model_state_dict', c.get('model', c)), 'new.pth')\""
)
WRAPPINGS = ("model", "model_state_dict", "state_dict")  # entries under which training scripts keep the weights
NAMES_SHOWN = 5


def load_checkpoint_weights(model, path):
    """Fills a whole network from a checkpoint of this project or, if it is a VMUNet, of the original.

    Takes the weights alone or under `model`, `model_state_dict` or `state_dict`, with prefixes like `module.`, and
    ignores the `total_ops` and `total_params` that thop has left in the original's ISIC checkpoints.

    Returns the file's SHA-256. Raises FileNotFoundError, ValueError for names or shapes that are not the model's, and
    utils.checkpoint.CheckpointError, a ValueError too, for a file of ours that was altered."""
    weights, _, sha256 = read_checkpoint(path)
    fill_network(model, weights, path)
    log.info("weights from %s, %d tensors, SHA-256 %s", path, len(weights), sha256)
    return sha256


def read_checkpoint(path):
    """(weights by name, the configuration stored beside them or {}, the file's SHA-256) of a network's checkpoint."""
    content, sha256 = _read(path, "name a checkpoint of VM-UNet, such as results/<run>/checkpoints/best.pth")
    weights = _unwrapped(content, path)
    weights = {name: t for name, t in weights.items() if not name.endswith(("total_ops", "total_params"))}
    config = content.get("config") if isinstance(content.get("config"), dict) else {}
    return weights, config, sha256


def fill_network(model, weights, path):
    """Puts exactly these weights, which `path` held, into a network. Raises ValueError if the names don't fit."""
    model = unwrap(model)
    model = getattr(model, "vmunet", model)  # prefixes are gone from the names
    state = model.state_dict()
    missing = [name for name in state if name not in weights]
    foreign = [name for name in weights if name not in state]
    if missing or foreign:
        raise ValueError(
            f"{path}: found {len(state) - len(missing)} of this network's {len(state)} tensors and {len(foreign)} "
            f"foreign ones, expected exactly these; not found: {some(missing, NAMES_SHOWN) or 'none'}; "
            f"foreign: {some(foreign, NAMES_SHOWN) or 'none'}"
        )
    check_shapes(path, weights, state)
    model.load_state_dict(weights)


def read_weights(path, how_to_get):
    """The tensors of a checkpoint file by name, without wrapping and prefixes, and the file's SHA-256."""
    content, sha256 = _read(path, how_to_get)
    return _unwrapped(content, path), sha256


def _read(path, how_to_get):
    """The content of a checkpoint file and its SHA-256.

    Nothing in the file can run: it is read with `weights_only=True`. VMamba's training settings, a yacs node, become a
    dictionary that nobody looks at."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; {how_to_get}")
    content = path.read_bytes()
    if has_checksum(content):
        verify_checksum(content, path)
    try:
        with torch.serialization.safe_globals([(OrderedDict, "yacs.config.CfgNode")]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), _sha256(content)
    except Exception as error:  # whatever a damaged or hostile file provokes
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise ValueError(
                f"{path}: found {refused[1]}, expected tensors and plain values only, because a file with other "
                f"objects can run code when it is read; {HOW_TO_CONVERT}"
            ) from error
        raise ValueError(f"{path}: found {_describe(content)}, expected a checkpoint; {how_to_get}") from error


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _unwrapped(weights, path):
    for key in WRAPPINGS:
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not weights or not all(isinstance(t, torch.Tensor) for t in weights.values()):
        raise ValueError(f"{path}: found no weights, expected named tensors, alone or under {', '.join(WRAPPINGS)}")
    prefix = re.compile(r"^((module|_orig_mod|vmunet)\.)+")
    return {prefix.sub("", name): tensor for name, tensor in weights.items()}


def _describe(content):
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file it stands for"
    if content.lstrip().startswith(b"<"):
        return "a web page"
    return f"{len(content)} bytes that PyTorch can't read, perhaps of an incomplete download"


def check_shapes(path, weights, state):
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(state[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != state[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{path}: found {len(wrong)} tensors of another shape than the model's: {some(wrong, NAMES_SHOWN)}"
        )
