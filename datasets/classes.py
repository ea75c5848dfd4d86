"""Class names, colours and preprocessing that a data folder holds."""

from pathlib import Path
from typing import Any

import numpy as np

from datasets.intensities import Scaling
from datasets.isic import list_images
from datasets.preparation_record import RECORD
from utils.files import REPOSITORY, open_image, read_json

DATA = REPOSITORY / "data"  # data sets by name, without --data-path
ISIC_FOLDERS = {"isic17": DATA / "isic17", "isic18": DATA / "isic18", "demo": DATA / "demo" / "isic"}
SYNAPSE_FOLDERS = {"synapse": DATA / "Synapse", "acdc": DATA / "acdc", "demo": DATA / "demo" / "synapse"}


def check_kind(folder: Path, config: Any, of_volumes: bool) -> None:
    """Raise ValueError for another kind of data, naming the right command, and for a pool without --folds."""
    of_images = ("train/images", "images")
    prepared = any((folder / part).is_dir() for part in ("train_npz", "test_vol_h5"))
    if of_volumes and (prepared or folder.name == "train_npz") or (folder / of_images[0]).is_dir() and not of_volumes:
        return
    command = "python train_synapse.py" if of_volumes else "python train.py"
    raw, how_to_prepare = raw_volume(folder)
    if raw is not None:
        found, expected = raw, f"{how_to_prepare} first, and train_synapse.py on its output"
    elif prepared:
        found, expected = "prepared volumes", f"python train_synapse.py --data-path {folder}"
    elif of_volumes and any((folder / part).is_dir() for part in of_images):
        found, expected = "images", f"python train.py --data-path {folder}"
    elif not of_volumes and (folder / "images").is_dir() and not config.folds and config.protocol != "holdout":
        found, expected = "images and masks without a division into train and val", "--folds 5, which makes one"
    else:
        return
    raise ValueError(f"{command}: found {found} in {folder}, expected {expected}")


def raw_volume(folder: Path) -> tuple[Path | None, str]:
    """Return a NIfTI file in a folder, None without one, and the command that prepares such files."""
    found = next((path for path in folder.rglob("*") if path.name.lower().endswith((".nii", ".nii.gz"))), None)
    images = str(folder) if (folder / "dataset.json").is_file() else "IMAGES --labels LABELS"
    return found, f"python -m datasets.prepare_volumes --images {images} --out data/NAME"


def preparation(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return (path, content) of a folder's preparation.json; the content is {} if there is none."""
    path = next((place / RECORD for place in (folder, folder.parent) if (place / RECORD).is_file()), folder / RECORD)
    return path, read_json(path) if path.is_file() else {}


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
        label_ids, channel = tuple(record.get("labels", ())), record.get("channel")
    except (TypeError, KeyError, ValueError) as error:
        expected = "than prepare_volumes writes"
        raise ValueError(f"{path}: found other intensities, labels or orientation {expected}: {error}") from error
    ranges = {"scaling": scaling.kind, "scaling_range": (scaling.low, scaling.high)}
    return ranges | {"orientation": orientation, "label_ids": label_ids, "channel": channel}


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
