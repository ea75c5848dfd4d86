"""The network and its shape, from the weights alone: for checkpoints without a configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

STAGES = range(4)


def shape_of_weights(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, Any]:
    """Return the values of a config that weights, by inner name, determine: network, classes, channels, depths, widths,
    states.

    Raises ValueError for weights of another network."""
    try:
        if "sdi_1.convs.0.weight" in weights:
            classes, own = weights["seg_outs.0.weight"], {"network": "vmunetv2"}
        elif "encoder4.0.mamba.A_log" in weights:
            return {
                "network": "ultralight",
                "num_classes": weights["final.weight"].shape[0],
                "input_channels": weights["encoder1.0.weight"].shape[1],
                "d_state": weights["encoder4.0.mamba.A_log"].shape[1],
            }
        else:
            classes = weights["final_conv.weight"]
            own = {"network": "vmunet", "depths_decoder": blocks(weights, "layers_up")}
        return own | {
            "num_classes": classes.shape[0],
            "input_channels": weights["patch_embed.proj.weight"].shape[1],
            "depths": blocks(weights, "layers"),
            "dims": tuple(weights[f"layers.{i}.blocks.0.ln_1.weight"].shape[0] for i in STAGES),
            "d_state": weights["layers.0.blocks.0.self_attention.A_logs"].shape[1],
        }
    except KeyError as error:
        raise ValueError(f"{path}: found no tensor {error.args[0]}, expected the weights of a VM-UNet") from error
    except IndexError as error:
        raise ValueError(f"{path}: found tensors of fewer dimensions than those of a VM-UNet") from error


def blocks(weights: Mapping[str, Tensor], half: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage, `half` being "layers" or "layers_up"."""
    return tuple(len({n.split(".")[3] for n in weights if n.startswith(f"{half}.{i}.blocks.")}) for i in STAGES)
