"""A trained network from its checkpoint file alone, for prediction and export."""

import dataclasses
import logging
import typing

from configs.check import flag
from configs.config_setting_synapse import ORGANS
from configs.stored import CONFIGS, config_from_values, kind_of
from datasets.synapse import HU_WINDOW
from models.build import build_model
from utils.runs.weights import fill_network, read_checkpoint

log = logging.getLogger("vmunet")

CT_DATASETS = ("synapse", "demo")  # trained on Hounsfield units within HU_WINDOW
# What belongs to the machine or the run that trained, not to the network.
NOT_INHERITED = dict(device="auto", scan_backend="auto", use_checkpoint=False, compile=False, load_ckpt_path="none")


def load_trained(path, kind=None, **changes):
    """The network of a checkpoint, in eval mode on the CPU, its config and the file's SHA-256.

    The config is the one stored in the checkpoint. A checkpoint without one, such as the original's or weights alone,
    tells the network's shape by its tensors; all else is as published, for images (one class) or volumes (nine).

    Args:
        kind: "images" or "volumes", if the checkpoint can't tell
        changes: values that replace those of the config; None keeps them

    Raises:
        FileNotFoundError, ValueError: see `utils.pretrained.load_checkpoint_weights`; a change that the config lacks
    """
    weights, stored, sha256 = read_checkpoint(path)
    if not stored:
        stored = shape_of_weights(weights, path)
        stored["kind"] = kind or {1: "images", len(ORGANS) + 1: "volumes"}.get(stored["num_classes"])
        if stored["kind"] is None:
            raise ValueError(f"{path} holds no configuration; say with --kind whether it is for images or volumes")
        log.info("%s holds no configuration: published values for %s", path, stored["kind"])
    config_class = CONFIGS[stored.get("kind") or kind_of(stored)]
    changes = {name: value for name, value in changes.items() if value is not None}
    config = make_config(config_class, stored | NOT_INHERITED, changes, path)
    model = build_model(config)
    fill_network(model, weights, path)
    log.info("weights from %s, %d tensors, SHA-256 %s", path, len(weights), sha256)
    return model.eval(), config, sha256


def make_config(config_class, stored, changes, path):
    """A config from the values in a checkpoint. Those that came into being after it was written have their defaults."""
    known = typing.get_type_hints(config_class)
    foreign = [name for name in changes if name not in known]
    if foreign:
        kind = next(kind for kind, known in CONFIGS.items() if known is config_class)
        raise ValueError(
            f"{flag(foreign[0])}: found a value, but {path} is of a network for {kind}, which has no such setting"
        )
    config = config_from_values(config_class, {name: value for name, value in stored.items() if name in known})
    return dataclasses.replace(config, **changes)


def shape_of_weights(weights, path):
    """The values of a config that VM-UNet's tensors tell: classes, channels, depths, widths, states."""
    try:
        stages = range(4)
        blocks = {
            half: tuple(len({n.split(".")[3] for n in weights if n.startswith(f"{half}.{i}.blocks.")}) for i in stages)
            for half in ("layers", "layers_up")
        }
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


def describe(config):
    """What someone must know who calls the network without this code: a dict of plain values."""
    if config.of_volumes:
        values = "values as in the volumes it was trained on"
        if config.dataset in CT_DATASETS:
            values = "CT, Hounsfield units clipped to {:g}..{:g} and scaled to 0..1".format(*HU_WINDOW)
        preprocessing = (
            f"{values}; axial slices, rows from front to back, columns from the patient's right to left; "
            "cubic zoom of each slice to the input size"
        )
        threshold = None
    else:
        preprocessing = {
            "minmax": "RGB; stretch each image over all channels to 0..255; bilinear resize to the input size",
            "imagenet": "RGB / 255, minus ImageNet's mean, divided by its standard deviation; bilinear resize",
        }[config.normalization] + (" with antialiasing" if config.antialias else "")
        threshold = config.threshold if config.num_classes == 1 else None
    return {
        "network": config.network,
        "dataset": config.dataset,
        "image_size": config.image_size,
        "input_channels": config.input_channels,
        "preprocessing": preprocessing,
        "normalization": getattr(config, "normalization", None),
        "num_classes": config.num_classes,
        "class_names": (["background"] if config.num_classes > 1 else []) + config.class_names,
        "threshold": threshold,
        "output": "sigmoid probability" if config.num_classes == 1 else "softmax probabilities",
    }
