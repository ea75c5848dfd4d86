"""Names and colours of the classes, where the data folder knows them."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import TypeVar

import numpy as np

from configs.check import check_config
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from datasets.isic import list_images
from datasets.prepared import RECORD
from utils.files import open_image, reading

log = logging.getLogger("vmunet")

Config = TypeVar("Config", ISICConfig, SynapseConfig)


def with_classes(config: Config) -> Config:
    """`config` with the names and colours that its data folder has for its classes, where it names none itself.

    Names are in preparation.json (datasets.prepare_volumes); colours are those of masks with a coloured palette. Raises
    ValueError for names of another number of classes."""
    folder = None if config.data_path is None else Path(config.data_path)
    if folder is None or not folder.is_dir():
        return config
    if not config.class_names:
        names = prepared_names(folder, config.num_classes)
        config = dataclasses.replace(config, class_names=names)
    if config.num_classes > 1 and not config.of_volumes and not config.structure_colours:
        config = dataclasses.replace(config, class_colours=palette_colours(folder, config.num_classes))
    check_config(config)
    return config


def prepared_names(folder: Path, num_classes: int) -> tuple[str, ...]:
    """The class_names of a folder's preparation.json, () without them."""
    path = next((place / RECORD for place in (folder, folder.parent) if (place / RECORD).is_file()), None)
    if path is None:
        return ()
    with reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        names = record.get("class_names", ()) if isinstance(record, dict) else ()
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: found {names!r} as class_names, expected a list of texts")
    if names and len(names) != max(1, num_classes - 1):
        expected = f"expected --num-classes {len(names) + 1} for the {len(names)} classes of {path}"
        raise ValueError(f"--num-classes {num_classes}: {expected} and the background")
    return tuple(names)


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
