"""What a fresh network can start from: VMamba's ImageNet weights, or those of another network of its kind.

A file fills what it should fill, to the last tensor, or is refused; nothing is ever matched in part. There is one
exception: the last layers of a network for another number of classes are left out.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..network import SegmentationNetwork
from ..weights.filling import check_tensors, copy_weights, fill_network, first, inner_weights
from ..weights.reading import Checkpoint, read_weights

log = logging.getLogger("vmunet")

ENCODER = ("patch_embed.", "layers.")  # names of its weights start so

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


def load_pretrained(model: SegmentationNetwork, path: str | Path) -> dict[str, Any]:
    """Fill a fresh network from a file.

    Return what was done: the numbers of tensors filled, `encoder` and `decoder` (with what follows it); `left`, the
    names that keep their initialisation; `sha256` of the file.

    A VMamba v0 classification file (small or tiny of github.com/MzeroMiko/VMamba/releases/tag/%23v0cls) fills the
    encoder of a VMUNet or a VMUNetV2. In a VMUNet it also fills the decoder, in reverse: stage i of the encoder seeds
    stage 3 - i of the decoder. Surplus blocks and the classifier stay unused, and all else keeps its initialisation, as
    in the originals (`load_from`).

    A checkpoint of a network of the same kind fills everything, or all but the last layers if its number of classes
    differs.

    Raises FileNotFoundError, and ValueError for a file that does not fill all that it should, or holds more."""
    checkpoint = read_weights(path)
    own = [name for name in inner_weights(model) if not name.startswith(ENCODER)]  # VMamba has no such names
    if any(name in checkpoint.weights for name in own):
        return _fill_from_its_kind(model, checkpoint)
    return _fill_from_vmamba(model, checkpoint)


def _fill_from_its_kind(model: SegmentationNetwork, checkpoint: Checkpoint) -> dict[str, Any]:
    weights, state = checkpoint.weights, inner_weights(model)
    there, here = (shape_of_last_layer(model, tensors) for tensors in (weights, state))
    other_classes = there[:1] != here[:1] and there[1:] == here[1:]
    left = [name for name in state if name.startswith(model.classifier)] if other_classes else []
    fill_network(model, weights, checkpoint.path, left)
    log.info("%s weights from %s, SHA-256 %s", model.name, checkpoint.path, checkpoint.sha256)
    if left:
        classes, filled = f"{there[0]} classes there, {here[0]} here", len(state) - len(left)
        log.info("filled %d of %d tensors (%s); left as initialised: %s", filled, len(state), classes, left)
    else:
        log.info("filled all %d tensors", len(state))
    encoder = sum(name.startswith(ENCODER) for name in state)
    return dict(encoder=encoder, decoder=len(state) - encoder - len(left), left=left, sha256=checkpoint.sha256)


def shape_of_last_layer(model: SegmentationNetwork, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """(classes, channels, 1, 1), or () if there is none."""
    names = [name for name in weights if name.startswith(model.classifier[0]) and name.endswith("weight")]
    return tuple(weights[names[0]].shape) if names else ()


def _fill_from_vmamba(model: SegmentationNetwork, checkpoint: Checkpoint) -> dict[str, Any]:
    path, weights = checkpoint.path, checkpoint.weights
    v2_name = next((name for name in weights if V2_NAMES.search(name)), None)
    if v2_name is not None:
        raise ValueError(f"{path}: found VMamba v2 (it has {v2_name}), whose blocks differ; expected VMamba v0")
    for later, original in LATER_NAMES:
        weights = {re.sub(later, original, name): tensor for name, tensor in weights.items()}

    state = inner_weights(model)
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
    if missing or foreign or not encoder:
        found = [sum(source in weights for source in half.values()) for half in (encoder, decoder)]
        network_there = checkpoint.config.get("network")
        kind = f"the weights of a network {network_there!r}, " if network_there else ""
        expected = ("VMamba v0 or " if encoder else "") + f"a checkpoint of {model.name}"
        raise ValueError(
            f"{path}: found {kind}{found[0]} of {len(encoder)} encoder and {found[1]} of {len(decoder)} decoder "
            f"tensors and {len(foreign)} foreign ones, expected {expected}; "
            f"not found: {first(missing)}; foreign: {first(foreign)}"
        )
    filled = {target: weights[source] for target, source in sources.items()}
    check_tensors(path, filled, state)
    copy_weights(model, filled)

    left = [name for name in state if name not in filled]
    log.info("VMamba weights from %s, SHA-256 %s", path, checkpoint.sha256)
    log.info("filled %d encoder and %d decoder tensors, left as initialised: %s", len(encoder), len(decoder), left)
    return dict(encoder=len(encoder), decoder=len(decoder), left=left, sha256=checkpoint.sha256)
