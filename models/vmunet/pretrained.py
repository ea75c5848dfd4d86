"""VMamba's ImageNet weights into both halves of a fresh VM-UNet.

A file fills what it should fill, to the last tensor, or is refused; nothing is ever matched in part.
"""

import logging
import re

from utils.files import some
from utils.runs.checkpoint import unwrap
from utils.runs.weights import NAMES_SHOWN, check_shapes, read_weights

log = logging.getLogger("vmunet")

DOWNLOADS = "https://github.com/MzeroMiko/VMamba/releases/download/%23v0cls/"
HOW_TO_GET_VMAMBA = (
    f"download {DOWNLOADS}vssmsmall_dp03_ckpt_epoch_238.pth or {DOWNLOADS}vssmtiny_dp01_ckpt_epoch_292.pth (release "
    "v0cls of MzeroMiko/VMamba) and name it with --load-ckpt-path, or train without with --load-ckpt-path none"
)

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
            f"{len(foreign)} foreign ones, expected VMamba v0; not found: "
            f"{some(missing, NAMES_SHOWN) or 'none'}; foreign: {some(foreign, NAMES_SHOWN) or 'none'}; "
            f"{HOW_TO_GET_VMAMBA}"
        )
    filled = {target: weights[source] for target, source in sources.items()}
    check_shapes(path, filled, state)
    model.load_state_dict(filled, strict=False)

    left = [name for name in state if name not in filled]
    log.info("VMamba weights from %s, SHA-256 %s", path, sha256)
    log.info("filled %d encoder and %d decoder tensors, left as initialised: %s", len(encoder), len(decoder), left)
    return {"encoder": len(encoder), "decoder": len(decoder), "left": left, "sha256": sha256}


def _original_name(name):
    for later, original in LATER_NAMES:
        name = re.sub(later, original, name)
    return name
