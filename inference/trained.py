"""A trained network from its checkpoint file alone, for prediction and export."""

import contextlib
import dataclasses
import logging
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from configs.check import check_config, flag
from configs.config_setting_synapse import ORGANS
from configs.network import build_model
from configs.stored import CONFIGS, config_from_values, kind_of
from datasets.intensities import HU_WINDOW
from models.family import NETWORKS, build_network
from models.network import SegmentationNetwork
from models.weights.filling import check_fit, fill_network, inner_weights
from models.weights.reading import Checkpoint
from models.weights.shape import shape_of_weights
from utils.runs.weights import read_checkpoint

log = logging.getLogger("vmunet")

Kind = Literal["images", "volumes"]
KIND_OF_CLASSES = {1: "images", len(ORGANS) + 1: "volumes"}  # as published
CT_DATASETS = ("synapse", "demo")  # trained on Hounsfield units within HU_WINDOW
# What belongs to the machine or the run that trained, not to the network.
NOT_INHERITED = dict(device="auto", scan_backend="auto", use_checkpoint=False, compile=False, load_ckpt_path="none")


class Trained(NamedTuple):
    """A network with the values it was trained under."""

    network: SegmentationNetwork  # in eval mode, on the CPU
    config: Any  # an ISICConfig or a SynapseConfig
    checkpoint: Checkpoint


def load_trained(named: str | os.PathLike[str], kind: Kind | None = None, **changes: Any) -> Trained:
    """The network of a checkpoint file, a run's folder or a shipped network (see `find_checkpoint`).

    The config is the one stored in the checkpoint. A checkpoint without one, such as the original's or weights alone,
    tells the network's shape by its tensors; all else is as published, for images (one class) or volumes (nine).

    Args:
        kind: of a checkpoint that can't tell
        changes: values that replace those of the config; None keeps them

    Raises:
        FileNotFoundError, ValueError: see `utils.runs.weights.read_checkpoint`; a stored configuration that can't be
            meant or does not fit the weights; a change that the config lacks
    """
    checkpoint = read_checkpoint(named)
    path = checkpoint.path
    found: str | None
    if checkpoint.config:
        values, found = checkpoint.config, kind_of(checkpoint.config)
    else:
        values = shape_of_weights(checkpoint.weights, path)
        found = kind or KIND_OF_CLASSES.get(values["num_classes"])
        if found is None:
            raise ValueError(f"{path} holds no configuration; say with --kind whether it is for images or volumes")
        log.info("%s holds no configuration: published values for %s", path, found)
    config = config_of_checkpoint(found, values, path)
    config = changed(config, {name: value for name, value in changes.items() if value is not None}, found, path)
    check_size(config, checkpoint)
    network = build_model(config)
    fill_network(network, checkpoint.weights, path)
    log.info("weights from %s, %d tensors, SHA-256 %s", path, len(checkpoint.weights), checkpoint.sha256)
    return Trained(network.eval(), config, checkpoint)


def config_of_checkpoint(kind: str, values: Mapping[str, Any], path: Path) -> Any:
    """A config from the values in a checkpoint. Those that came into being after it was written have their defaults.

    Raises ValueError for values of other types and out of range."""
    known = typing.get_type_hints(CONFIGS[kind])
    inherited = {name: value for name, value in values.items() if name in known}
    config = config_from_values(CONFIGS[kind], inherited | NOT_INHERITED)
    with naming(path):
        check_config(config)
    return config


def changed(config: Any, changes: Mapping[str, Any], kind: str, path: Path) -> Any:
    """A config with other values. Raises ValueError for those that it lacks or that can't be meant."""
    known = typing.get_type_hints(type(config))
    foreign = [name for name in changes if name not in known]
    if foreign:
        raise ValueError(
            f"{flag(foreign[0])}: found a value, but {path} is of a network for {kind}, which has no such setting"
        )
    config = dataclasses.replace(config, **changes)
    check_config(config)
    return config


def check_size(config: Any, checkpoint: Checkpoint) -> None:
    """Raises ValueError if a config is not of a network with the checkpoint's weights, before memory is taken for it:
    the config may ask for any amount."""
    if config.network in NETWORKS:
        with naming(checkpoint.path), torch.device("meta"):
            network = build_network(vars(config))
        check_fit(inner_weights(network), checkpoint.weights, checkpoint.path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of a stored configuration name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: the configuration stored in it can't be used: {error}") from error


def describe(config: Any) -> dict[str, Any]:
    """What someone must know who calls the network without this code: a dict of plain values."""
    if config.of_volumes:
        values = "values as in the volumes it was trained on"
        if config.dataset in CT_DATASETS:
            values = "CT, Hounsfield units clipped to {:g}..{:g} and scaled to 0..1".format(*HU_WINDOW)
        if config.scaling:
            values = "{} {:g}..{:g} of each volume scaled to 0..1".format(config.scaling, *config.scaling_range)
        axes = "axial slices, rows from front to back, columns from the patient's right to left"
        if config.orientation != "LPS":
            axes = f"columns, rows and slices {config.orientation}"
        preprocessing = f"{values}; {axes}; cubic zoom of each slice to the input size"
        normalization, threshold = None, None
    else:
        colour = "grey (0.299 R + 0.587 G + 0.114 B)" if config.input_channels == 1 else "RGB"
        preprocessing = {
            "minmax": f"{colour}; stretch each image over all channels to 0..255; bilinear resize to the input size",
            "imagenet": f"{colour} / 255, minus ImageNet's mean, divided by its standard deviation; bilinear resize",
        }[config.normalization] + (" with antialiasing" if config.antialias else "")
        normalization = config.normalization
        threshold = config.threshold if config.num_classes == 1 else None
    return {
        "network": config.network,
        "dataset": config.dataset,
        "image_size": config.image_size,
        "input_channels": config.input_channels,
        "preprocessing": preprocessing,
        "normalization": normalization,
        "num_classes": config.num_classes,
        "class_names": (["background"] if config.num_classes > 1 else []) + config.structures,
        "class_colours": list(config.structure_colours),  # of the classes 1, 2, ...; none where the user gave none
        "threshold": threshold,
        "output": "sigmoid probability" if config.num_classes == 1 else "softmax probabilities",
    }
