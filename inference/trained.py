"""A trained network from its checkpoint file alone, for prediction and export."""

import logging
import os
from typing import Any, Literal, NamedTuple

from configs.build import build_model, check_size
from configs.resolve import config_of_checkpoint, kind_of
from datasets.intensities import HU_WINDOW
from datasets.masks import MaskValue, parse_mask_values
from datasets.synapse import ORGANS
from models.hub import WEIGHTS, describe_images
from models.network import SegmentationNetwork
from models.weights.filling import fill_network
from models.weights.reading import CONFIG, Checkpoint
from models.weights.shape import shape_of_weights
from utils.runs.named_weights import read_checkpoint

log = logging.getLogger("vmunet")

Kind = Literal["images", "volumes"]
KIND_OF_CLASSES = {1: "images", len(ORGANS) + 1: "volumes"}  # as published
CT_DATASETS = ("synapse", "demo")  # trained on Hounsfield units within HU_WINDOW


class TrainedNetwork(NamedTuple):
    """A network with the values it was trained under."""

    network: SegmentationNetwork  # in eval mode, on the CPU
    config: Any  # an ISICConfig or a SynapseConfig
    checkpoint: Checkpoint


def load_trained(name: str | os.PathLike[str], kind: Kind | None = None, **changes: Any) -> TrainedNetwork:
    """Return the network of a checkpoint file, a run's folder or a shipped network (see `find_checkpoint`).

    The config is the one stored in the checkpoint. Without one, as in the original's checkpoints and in bare weights,
    the tensors tell the network's shape; the rest is as published, for images (one class) or volumes (nine).

    Args:
        kind: of a checkpoint that can't tell
        changes: values that replace those of the config; None keeps them

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint`; a stored configuration with invalid values, or one that
            does not fit the weights; a change that the config lacks
    """
    checkpoint = read_checkpoint(name)
    path = checkpoint.path
    if not checkpoint.config.get("deep_supervision", True):
        raise ValueError(f"{path}: found deep_supervision off, which only models.load can build; expected it on")
    found: str | None
    of_hub = path.name in WEIGHTS  # the folder of `save_pretrained`
    if checkpoint.config:
        values, found = checkpoint.config, kind_of(checkpoint.config)
        if of_hub and "image_size" not in values:
            log.warning("%s holds no preprocessing of images: taken as published", path.with_name(CONFIG))
    else:
        values = shape_of_weights(checkpoint.weights, path)
        found = kind or KIND_OF_CLASSES.get(values["num_classes"])
        if found is None:
            raise ValueError(f"{path} holds no configuration; --kind tells whether it is for images or volumes")
        log.info("%s holds no configuration: published values for %s", path, found)
    given = {name: value for name, value in changes.items() if value is not None}
    config = config_of_checkpoint(found, values, path.with_name(CONFIG) if of_hub else path, given)
    check_size(config, checkpoint)
    network = build_model(config)
    fill_network(network, checkpoint.weights, path)
    log.info("weights from %s, %d tensors, SHA-256 %s", path, len(checkpoint.weights), checkpoint.sha256)
    return TrainedNetwork(network.eval(), config, checkpoint)


def mask_values(config: Any) -> tuple[MaskValue, ...]:
    """Return the values of the classes 0, 1, ... in masks: the numbers, or colours (r, g, b), of the labels that the
    network was trained on. () stands for class numbers, the only values of binary images."""
    if config.of_volumes:
        return (0, *config.label_ids) if config.label_ids else ()
    return parse_mask_values(config.mask_values, config.num_classes) if config.num_classes > 1 else ()


def describe(config: Any) -> dict[str, Any]:
    """Return what is needed to call the network without this code, as plain values."""
    if config.of_volumes:
        values = "values as in the volumes it was trained on"
        if config.dataset in CT_DATASETS:
            values = "CT, Hounsfield units clipped to {:g}..{:g} and scaled to 0..1".format(*HU_WINDOW)
        if config.scaling:
            values = "{} {:g}..{:g} of each volume scaled to 0..1".format(config.scaling, *config.scaling_range)
        axes = "axial slices, rows from front to back, columns from the patient's right to left"
        if config.orientation != "LPS":
            axes = f"columns, rows and slices {config.orientation}"
        fit = "cubic zoom of each slice to the input size"
        if config.slice_fit == "pad":
            fit = "pixels as they are, slices smaller than the input size in the middle of zeros"
        preprocessing = f"{values}; {axes}; {fit}"
        if config.context:
            around = f"{config.context} before it, itself, {config.context} after it"
            preprocessing += f"; channels of a slice: {around}, beyond the ends the outermost one"
        normalization, threshold = None, None
    else:
        preprocessing = describe_images(vars(config))
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
        "mask_values": list(mask_values(config)),  # of the classes 0, 1, ...; none: class numbers
        "class_colours": list(config.structure_colours),  # of the classes 1, 2, ...; none where the user gave none
        "threshold": threshold,
        "output": "sigmoid probability" if config.num_classes == 1 else "softmax probabilities",
    }
