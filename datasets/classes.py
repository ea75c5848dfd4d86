"""Class names, colours and preprocessing that a data folder holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets.intensities import Scaling
from datasets.isic import list_images
from datasets.preparation_record import RECORD
from utils.files import REPOSITORY, open_image, reading

DATA = REPOSITORY / "data"  # data sets by name, without --data-path
ISIC_FOLDERS = {"isic17": DATA / "isic17", "isic18": DATA / "isic18", "demo": DATA / "demo" / "isic"}
SYNAPSE_FOLDERS = {"synapse": DATA / "Synapse", "acdc": DATA / "acdc", "demo": DATA / "demo" / "synapse"}


def preparation(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return (path, content) of a folder's preparation.json; the content is {} if there is none."""
    path = next((place / RECORD for place in (folder, folder.parent) if (place / RECORD).is_file()), folder / RECORD)
    if not path.is_file():
        return path, {}
    with reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
    return path, record if isinstance(record, dict) else {}


def prepared_names(path: Path, record: dict[str, Any]) -> tuple[str, ...]:
    """Return the class_names of a preparation.json, () if it has none."""
    names = record.get("class_names", ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: found {names!r} as class_names, expected a list of texts")
    return tuple(names)


def prepared_values(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config with which datasets.prepare_volumes made the volumes of a preparation.json."""
    try:
        scaling, orientation = Scaling(**record["intensities"]), record["orientation"]
    except (TypeError, KeyError, ValueError) as error:
        expected = "than prepare_volumes writes"
        raise ValueError(f"{path}: found other intensities or orientation {expected}: {error}") from error
    return {"scaling": scaling.kind, "scaling_range": (scaling.low, scaling.high), "orientation": orientation}


def palette_colours(folder: Path, num_classes: int) -> tuple[str, ...]:
    """Return the colours of the classes 1, 2, ... in the palette of a folder's first mask; () if it has none."""
    folders = [masks for masks in (folder / "train" / "masks", folder / "masks") if masks.is_dir()]
    path = next((paths[0] for masks in folders for paths in list_images(masks).values()), None)
    if path is None:
        return ()
    with open_image(path) as file:
        if file.mode != "P":
            return ()
        palette = np.array(file.getpalette("RGB")).reshape(-1, 3)[1:num_classes]
    coloured = (palette != palette[:, :1]).any() and len({*map(tuple, palette.tolist())}) == num_classes - 1
    return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in palette.tolist()) if coloured else ()
