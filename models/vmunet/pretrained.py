"""What a fresh VM-UNet can start from: VMamba's ImageNet weights, for both halves, or another VM-UNet's.

A file fills what it should fill, to the last tensor, or is refused; nothing is ever matched in part. There is one
exception: the last layer of a VM-UNet for another number of classes is left out.
"""

import logging
import os
import re
from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import nn

from utils.files import some
from utils.runs.shipped import SHIPPED
from utils.runs.weights import NAMES_SHOWN, Checkpoint, check_shapes, fill_network, inner_network, read_checkpoint

log = logging.getLogger("vmunet")

DOWNLOADS = "https://github.com/MzeroMiko/VMamba/releases/download/%23v0cls/"
HOW_TO_GET_VMAMBA = (
    f"download {DOWNLOADS}vssmsmall_dp03_ckpt_epoch_238.pth or {DOWNLOADS}vssmtiny_dp01_ckpt_epoch_292.pth (release "
    "v0cls of MzeroMiko/VMamba) and name it with --load-ckpt-path, or train without with --load-ckpt-path none"
)
ENCODER = ("patch_embed.", "layers.")  # names of its weights start so
LAST_LAYER = "final_conv."

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


class Report(TypedDict):
    """What `load_pretrained` has done."""

    encoder: int  # tensors filled
    decoder: int  # tensors filled, those after it included
    left: list[str]  # names that keep their initialisation
    sha256: str  # of the file


def load_pretrained(model: nn.Module, named: str | os.PathLike[str]) -> Report:
    """Fills a fresh VMUNet from a file, a run's folder or a shipped network (see `find_checkpoint`).

    A VMamba v0 classification file fills the encoder and, upside down, the decoder: stage i of the encoder also seeds
    stage 3 - i of the decoder; surplus blocks and the classifier stay unused, and the three expansions, `final_up` and
    `final_conv` keep their initialisation, as in the original (`load_from`).

    A VM-UNet checkpoint fills everything, or all but `final_conv` if its number of classes differs.

    Raises:
        FileNotFoundError: with where to get the file
        ValueError: a file that does not fill all that it should, or holds more
    """
    checkpoint = read_checkpoint(named, HOW_TO_GET_VMAMBA)
    is_vmunet = any(name.startswith("layers_up.") for name in checkpoint.weights)
    return _fill_from_vmunet(model, checkpoint) if is_vmunet else _fill_from_vmamba(model, checkpoint)


def _fill_from_vmunet(model: nn.Module, checkpoint: Checkpoint) -> Report:
    weights, state = checkpoint.weights, inner_network(model).state_dict()
    there, here = (shape_of_last_layer(tensors) for tensors in (weights, state))
    other_classes = there[:1] != here[:1] and there[1:] == here[1:]
    left = [name for name in state if name.startswith(LAST_LAYER)] if other_classes else []
    fill_network(model, weights, checkpoint.path, left)
    log.info("VM-UNet weights from %s, SHA-256 %s", checkpoint.path, checkpoint.sha256)
    if left:
        classes = f"classes: {there[0]} there, {here[0]} here"
        filled = f"filled {len(state) - len(left)} of {len(state)} tensors, all but the last layer ({classes})"
        log.info("%s; left as initialised: %s", filled, left)
    else:
        log.info("filled all %d tensors", len(state))
    encoder = sum(name.startswith(ENCODER) for name in state)
    return Report(encoder=encoder, decoder=len(state) - encoder - len(left), left=left, sha256=checkpoint.sha256)


def shape_of_last_layer(weights: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """(classes, channels, 1, 1), or () if there is none."""
    name = f"{LAST_LAYER}weight"
    return tuple(weights[name].shape) if name in weights else ()


def _fill_from_vmamba(model: nn.Module, checkpoint: Checkpoint) -> Report:
    path, weights = checkpoint.path, checkpoint.weights
    v2_name = next((name for name in weights if V2_NAMES.search(name)), None)
    if v2_name is not None:
        raise ValueError(
            f"{path}: found VMamba v2 (it has {v2_name}), whose blocks differ; expected VMamba v0: {HOW_TO_GET_VMAMBA}"
        )
    weights = {_original_name(name): tensor for name, tensor in weights.items()}

    network = inner_network(model)
    state = network.state_dict()
    encoder = {name: name for name in state if name.startswith(ENCODER)}
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
        network_there = checkpoint.config.get("network")
        kind = f"the weights of a network {network_there!r}, " if network_there else ""
        raise ValueError(
            f"{path}: found {kind}{found[0]} of {len(encoder)} encoder and {found[1]} of {len(decoder)} decoder "
            f"tensors and {len(foreign)} foreign ones, expected VMamba v0 or a VM-UNet, such as {', '.join(SHIPPED)}; "
            f"not found: {some(missing, NAMES_SHOWN) or 'none'}; foreign: {some(foreign, NAMES_SHOWN) or 'none'}; "
            f"{HOW_TO_GET_VMAMBA}"
        )
    filled = {target: weights[source] for target, source in sources.items()}
    check_shapes(path, filled, state)
    network.load_state_dict(filled, strict=False)

    left = [name for name in state if name not in filled]
    log.info("VMamba weights from %s, SHA-256 %s", path, checkpoint.sha256)
    log.info("filled %d encoder and %d decoder tensors, left as initialised: %s", len(encoder), len(decoder), left)
    return Report(encoder=len(encoder), decoder=len(decoder), left=left, sha256=checkpoint.sha256)


def _original_name(name):
    for later, original in LATER_NAMES:
        name = re.sub(later, original, name)
    return name
