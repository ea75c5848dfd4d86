"""The networks by name, and a network from a file with its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .baselines import Baseline
from .hub import MACHINE_OPTIONS
from .network import SegmentationNetwork
from .ultralight import UltraLightVMUNet
from .vmunet.vmunet import VMUNet
from .vmunet.vmunetv2 import VMUNetV2
from .weights.filling import check_fit, fill_network, inner_weights
from .weights.reading import read_weights
from .weights.shape import shape_of_weights

NETWORKS: dict[str, type[SegmentationNetwork]] = {c.name: c for c in (VMUNet, VMUNetV2, UltraLightVMUNet)}


def build_network(values: Mapping[str, Any]) -> SegmentationNetwork:
    """Return the network `values["network"]` with random weights: one of NETWORKS, or a baseline. Options that `values`
    lacks have the network's defaults; values that are no options of the network are ignored."""
    name = values["network"]
    if name not in NETWORKS:
        return Baseline(name, values["num_classes"], values["input_channels"])
    options = {"num_classes", "input_channels", *NETWORKS[name].options}
    return NETWORKS[name](**{option: value for option, value in values.items() if option in options})


def load(path: str | Path) -> SegmentationNetwork:
    """Return the trained network of a file, in eval mode on the CPU.

    The file is a checkpoint of this project, packed weights (`export.py --format weights`), or a checkpoint of the
    network's original. Without a stored configuration, the weights tell the network.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint or does not fit its configuration."""
    checkpoint = read_weights(path)
    values = checkpoint.config or shape_of_weights(checkpoint.weights, path)
    values = {name: value for name, value in values.items() if name not in MACHINE_OPTIONS}
    try:
        with torch.device("meta"):  # takes no memory: the configuration may ask for any amount
            expected = inner_weights(build_network(values))
    except (KeyError, TypeError, ValueError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: the configuration stored in it can't be used: found {found}") from error
    check_fit(expected, checkpoint.weights, path)
    network = build_network(values)
    fill_network(network, checkpoint.weights, path)
    return network.eval()
