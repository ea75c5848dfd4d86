"""The shape of a VM-UNet from its weights alone, for checkpoints without a configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def shape_of_weights(weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """The values of a config that VM-UNet's tensors tell: classes, channels, depths, widths, states."""
    stages = range(4)
    blocks = {
        half: tuple(len({n.split(".")[3] for n in weights if n.startswith(f"{half}.{i}.blocks.")}) for i in stages)
        for half in ("layers", "layers_up")
    }
    try:
        return {
            "num_classes": weights["final_conv.weight"].shape[0],
            "input_channels": weights["patch_embed.proj.weight"].shape[1],
            "depths": blocks["layers"],
            "depths_decoder": blocks["layers_up"],
            "dims": tuple(weights[f"layers.{i}.blocks.0.ln_1.weight"].shape[0] for i in stages),
            "d_state": weights["layers.0.blocks.0.self_attention.A_logs"].shape[1],
        }
    except KeyError as error:
        raise ValueError(f"{path}: found no tensor {error.args[0]}, expected the weights of a VM-UNet") from error
    except IndexError as error:
        raise ValueError(f"{path}: found tensors of fewer dimensions than those of a VM-UNet") from error
