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

from utils.checkpoint import has_checksum, unwrap, verify_checksum

log = logging.getLogger("vmunet")

DOWNLOADS = "https://github.com/MzeroMiko/VMamba/releases/download/%23v0cls/"
HOW_TO_GET_VMAMBA = (
    f"download {DOWNLOADS}vssmsmall_dp03_ckpt_epoch_238.pth or {DOWNLOADS}vssmtiny_dp01_ckpt_epoch_292.pth (release "
    "v0cls of MzeroMiko/VMamba) and name it with --load-ckpt-path, or train without with --load-ckpt-path none"
)
HOW_TO_CONVERT = (
    "if you trust where it comes from, convert it once: python -c \"import torch; c = torch.load('old.pth', 'cpu', "
    "weights_only=False); torch.save(c.get('model_state_dict', c.get('model', c)), 'new.pth')\""
)
WRAPPINGS = ("model", "model_state_dict", "state_dict")  # entries under which training scripts keep the weights
NAMES_SHOWN = 5

# Later versions of VMamba renamed the same modules.
LATER_NAMES = [
    (r"^patch_embed\.0\.", "patch_embed.proj."),
    (r"^patch_embed\.2\.", "patch_embed.norm."),
    (r"(\.blocks\.\d+)\.norm\.", r"\1.ln_1."),
    (r"(\.blocks\.\d+)\.op\.", r"\1.self_attention."),
    (r"\.downsample\.1\.", ".downsample.norm."),
    (r"\.downsample\.2\.", ".downsample.reduction."),
    (r"^classifier\.(norm|head)\.", r"\1."),
]
# VMamba v2: an MLP in each block, a stem of two convolutions, a convolution between the stages.
V2_NAMES = re.compile(r"\.blocks\.\d+\.(mlp|norm2)\.|^patch_embed\.[57]\.|\.downsample\.3\.")


def load_vmamba(model, path):
    """Fills the encoder of a VMUNet, and its decoder upside down, from a VMamba v0 classification file.

    Stage i of the encoder also seeds stage 3 - i of the decoder; surplus blocks and the classifier stay unused, and the
    three expansions, `final_up` and `final_conv` keep their initialisation, as in the original (`load_from`).

    Returns:
        {"encoder": tensors filled, "decoder": tensors filled, "left": names that keep their initialisation,
        "sha256": of the file}

    Raises:
        FileNotFoundError: with where to get the file
        ValueError: a file that is not VMamba v0 or does not fill the whole encoder and all blocks of the decoder
    """
    weights, sha256 = read_weights(path, HOW_TO_GET_VMAMBA)
    v2_name = next((name for name in weights if V2_NAMES.search(name)), None)
    if v2_name is not None:
        raise ValueError(
            f"{path}: found VMamba v2 (it has {v2_name}), whose blocks differ; expected VMamba v0: {HOW_TO_GET_VMAMBA}"
        )
    if any(name.startswith("layers_up.") for name in weights):
        raise ValueError(f"{path}: found a VM-UNet checkpoint, expected VMamba's encoder: {HOW_TO_GET_VMAMBA}")
    weights = {_original_name(name): tensor for name, tensor in weights.items()}

    model = unwrap(model).vmunet
    state = model.state_dict()
    encoder = {name: name for name in state if name.startswith(("patch_embed.", "layers."))}
    decoder = {
        name: re.sub(r"^layers_up\.(\d)", lambda match: f"layers.{3 - int(match[1])}", name)
        for name in state
        if re.match(r"layers_up\.\d\.blocks\.", name)
    }
    sources = encoder | decoder
    missing = [source for source in sources.values() if source not in weights]
    used = re.compile(r"(patch_embed|norm|head)\.|layers\.\d\.(blocks\.\d+\.(ln_1|self_attention)|downsample)\.")
    foreign = [name for name in weights if not used.match(name)]
    if missing or foreign:
        found = [sum(source in weights for source in half.values()) for half in (encoder, decoder)]
        raise ValueError(
            f"{path}: found {found[0]} of {len(encoder)} encoder and {found[1]} of {len(decoder)} decoder tensors and "
            f"{len(foreign)} foreign ones, expected VMamba v0; not found: {_some(missing)}; foreign: {_some(foreign)}; "
            f"{HOW_TO_GET_VMAMBA}"
        )
    filled = {target: weights[source] for target, source in sources.items()}
    _check_shapes(path, filled, state)
    model.load_state_dict(filled, strict=False)

    left = [name for name in state if name not in filled]
    log.info("VMamba weights from %s, SHA-256 %s", path, sha256)
    log.info("filled %d encoder and %d decoder tensors, left as initialised: %s", len(encoder), len(decoder), left)
    return {"encoder": len(encoder), "decoder": len(decoder), "left": left, "sha256": sha256}


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
            f"foreign ones, expected exactly these; not found: {_some(missing)}; foreign: {_some(foreign)}"
        )
    _check_shapes(path, weights, state)
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


def _original_name(name):
    for later, original in LATER_NAMES:
        name = re.sub(later, original, name)
    return name


def _check_shapes(path, weights, state):
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(state[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != state[name].shape
    ]
    if wrong:
        raise ValueError(f"{path}: found {len(wrong)} tensors of another shape than the model's: {_some(wrong)}")


def _some(names):
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(names[:NAMES_SHOWN]) or "none") + more
