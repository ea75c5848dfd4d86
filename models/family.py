"""The networks by name, and a network from a file with its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .baselines import Baseline
from .hub import MACHINE_OPTIONS, WEIGHTS
from .network import SegmentationNetwork
from .ultralight import UltraLightVMUNet
from .vmunet.vmunet import VMUNet
from .vmunet.vmunetv2 import VMUNetV2
from .weights.filling import fitted
from .weights.reading import CONFIG, read_config, read_weights
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

    The file is a checkpoint of this project, packed weights (`export.py --format weights`), the model.safetensors of
    `save_pretrained`, or a checkpoint of the network's original. Without a stored configuration, the weights tell the
    network.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint or does not fit its configuration."""
    path = Path(path)
    saved = read_config(path.with_name(CONFIG)).get("network") if path.name == WEIGHTS[0] else None
    if isinstance(saved, str) and saved in NETWORKS:
        return NETWORKS[saved].from_pretrained(path.parent)
    checkpoint = read_weights(path)
    values = checkpoint.config
    if not isinstance(values.get("network", ""), str):
        raise ValueError(f"{path}: found the network {values['network']!r}, expected one of {', '.join(NETWORKS)}")
    if "network" not in values:
        values = shape_of_weights(checkpoint.weights, path) | values
    values = {name: value for name, value in values.items() if name not in MACHINE_OPTIONS}
    return fitted(lambda: build_network(values), checkpoint.weights, path, path).prepared_as(values)
