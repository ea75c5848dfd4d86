"""What the data folder knows: names and colours of the classes, intensities and orientation of prepared volumes."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from configs.check import check_config
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from datasets.intensities import Scaling
from datasets.isic import list_images
from datasets.loaders import ISIC_FOLDERS, SYNAPSE_FOLDERS
from datasets.prepared import RECORD
from utils.files import open_image, reading

log = logging.getLogger("vmunet")

Config = TypeVar("Config", ISICConfig, SynapseConfig)


def with_classes(config: Config) -> Config:
    """`config` with the names and colours that its data folder has for its classes, where it names none itself, and
    with intensities and orientation of prepared volumes. Training on these also takes the number of classes from there,
    unless another than the published one is said.

    Names are in preparation.json (datasets.prepare_volumes); colours are those of masks with a coloured palette. Raises
    ValueError for names of another number of classes."""
    folders = SYNAPSE_FOLDERS if config.of_volumes else ISIC_FOLDERS
    folder = Path(config.data_path) if config.data_path else folders.get(config.dataset)
    if folder is None or not folder.is_dir():
        return config
    path, record = preparation(folder)
    names = prepared_names(path, record)
    unsaid = config.of_volumes and config.test_only is None and config.num_classes == SynapseConfig.num_classes
    if names and unsaid:
        config = dataclasses.replace(config, num_classes=len(names) + 1)
    if names and not config.class_names:
        if len(names) != max(1, config.num_classes - 1):
            expected = f"expected --num-classes {len(names) + 1} for the {len(names)} classes of {path}"
            raise ValueError(f"--num-classes {config.num_classes}: {expected} and the background")
        config = dataclasses.replace(config, class_names=names)
    if config.of_volumes and "intensities" in record:
        config = dataclasses.replace(config, **prepared_values(path, record))
    if config.num_classes > 1 and not config.of_volumes and not config.structure_colours:
        config = dataclasses.replace(config, class_colours=palette_colours(folder, config.num_classes))
    check_config(config)
    return config


def preparation(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(path, content) of a folder's preparation.json; the content is {} if there is none."""
    path = next((place / RECORD for place in (folder, folder.parent) if (place / RECORD).is_file()), folder / RECORD)
    if not path.is_file():
        return path, {}
    with reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
    return path, record if isinstance(record, dict) else {}


def prepared_names(path: Path, record: dict[str, Any]) -> tuple[str, ...]:
    """The class_names of a preparation.json, () without them."""
    names = record.get("class_names", ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: found {names!r} as class_names, expected a list of texts")
    return tuple(names)


def prepared_values(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """How datasets.prepare_volumes made the volumes of a preparation.json, as values of a config."""
    try:
        scaling, orientation = Scaling(**record["intensities"]), record["orientation"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: found other intensities or orientation than prepare_volumes writes: {error}"
        ) from error
    return {"scaling": scaling.kind, "scaling_range": (scaling.low, scaling.high), "orientation": orientation}


def palette_colours(folder: Path, num_classes: int) -> tuple[str, ...]:
    """The colours of the classes 1, 2, ... in the palette of a folder's first mask; () if it has no coloured one."""
    for masks in (folder / "train" / "masks", folder / "masks"):
        paths = [path for found in (list_images(masks).values() if masks.is_dir() else ()) for path in found]
        if not paths:
            continue
        with open_image(paths[0]) as file:
            if file.mode != "P":
                return ()
            palette = np.array(file.getpalette("RGB")).reshape(-1, 3)[1:num_classes]
        coloured = (palette != palette[:, :1]).any() and len({*map(tuple, palette.tolist())}) == num_classes - 1
        return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in palette.tolist()) if coloured else ()
    return ()
