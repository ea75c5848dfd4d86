"""The networks by name, and a network from a file with its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .baselines import Baseline
from .hub import OF_THE_MACHINE
from .network import SegmentationNetwork
from .ultralight import UltraLightVMUNet
from .vmunet.vmunet import VMUNet
from .vmunet.vmunetv2 import VMUNetV2
from .weights.filling import check_fit, fill_network, inner_weights
from .weights.reading import read_weights
from .weights.shape import shape_of_weights


class Member(NamedTuple):
    """A network of the family, and which values of a config it is built with."""

    network: type[SegmentationNetwork]
    options: tuple[str, ...]  # beside num_classes and input_channels


OF_STAGES = ("depths", "drop_path_rate", "dims", "d_state", "scan_backend", "use_checkpoint")
NETWORKS = {
    "vmunet": Member(VMUNet, (*OF_STAGES, "depths_decoder", "skip_at_quarter")),
    "vmunetv2": Member(VMUNetV2, OF_STAGES),
    "ultralight": Member(UltraLightVMUNet, ("d_state", "scan_backend")),
}


def build_network(values: Mapping[str, Any]) -> SegmentationNetwork:
    """The network `values["network"]` with random weights: one of NETWORKS, or a baseline. What `values` does not say
    is as the network has it; what is no option of the network is not looked at."""
    name = values["network"]
    if name not in NETWORKS:
        return Baseline(name, values["num_classes"], values["input_channels"])
    network, options = NETWORKS[name]
    known = {"num_classes", "input_channels", *options}
    return network(**{option: value for option, value in values.items() if option in known})


def load(path: str | Path) -> SegmentationNetwork:
    """The trained network of a file, in eval mode on the CPU.

    The file is a checkpoint of this project, packed weights (`export.py --format weights`), or a checkpoint of the
    network's original. A file without a configuration tells the network by its weights.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint or does not fit its configuration."""
    checkpoint = read_weights(path)
    values = checkpoint.config or shape_of_weights(checkpoint.weights, path)
    values = {name: value for name, value in values.items() if name not in OF_THE_MACHINE}
    try:
        with torch.device("meta"):  # before memory is taken for it: the configuration may ask for any amount
            expected = inner_weights(build_network(values))
    except (KeyError, TypeError, ValueError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: the configuration stored in it can't be used: found {found}") from error
    check_fit(expected, checkpoint.weights, path)
    network = build_network(values)
    fill_network(network, checkpoint.weights, path)
    return network.eval()
