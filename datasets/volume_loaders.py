"""Loaders for volumes: slices to train on, whole volumes to validate and test on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.augmentation import StrongAugmentation
from datasets.classes import SYNAPSE_FOLDERS
from datasets.folds import group_of, nnunet_folds
from datasets.loaders import Loader, check_disjoint, check_foreground, data_folder, fill_cache, make_loader
from datasets.synapse import (
    HOLDOUT_LISTS,
    SynapseSlices,
    SynapseVolumes,
    case_of_slice,
    cases_of_slices,
    listed_files,
    read_list,
)
from datasets.transforms import RandomGenerator
from utils.files import read_rows

LIST_FOLDERS = ("list_volumes", "list_Synapse", "lists_Synapse")
AUGMENTATIONS: dict[str, Callable] = {"published": RandomGenerator, "strong": StrongAugmentation}  # for slices


def synapse_folders(config: Any) -> tuple[Path, Path, Path]:
    """Return the folders (slices, lists, volumes) below data_path (or its train_npz), or the config's."""
    root = data_folder(config, SYNAPSE_FOLDERS)
    root = root.parent if root.name == "train_npz" else root
    names = (HOLDOUT_LISTS, *LIST_FOLDERS) if config.protocol == "holdout" else LIST_FOLDERS
    found = [root / "lists" / name for name in names if (root / "lists" / name).is_dir()]
    list_dir = Path(config.list_dir or (found or [root / "lists" / "list_Synapse"])[0])
    return root / "train_npz", list_dir, Path(config.volume_path or root / "test_vol_h5")


def listed_names(config: Any, list_name: str) -> list[str]:
    """Return the names in a list. With `folds`, the cases of train.txt are divided into them: a fold's are left out
    there, and are test_vol.txt; with protocol holdout they are val_vol.txt."""
    _, lists, _ = synapse_folders(config)
    of_fold = "val_vol.txt" if config.protocol == "holdout" else "test_vol.txt"
    if not config.folds or list_name not in ("train.txt", of_fold):
        return read_list(lists, list_name)
    slices, patients = read_list(lists, "train.txt"), {} if config.fold_group else patients_of_cases(config)
    cases = {case: patients.get(case) or group_of(case, config.fold_group) for case in cases_of_slices(slices)}
    fold = nnunet_folds(cases, config.folds, config.fold_seed)
    if list_name == "train.txt":
        return [name for name in slices if fold[case_of_slice(name)] != config.fold]
    return sorted(case for case in fold if fold[case] == config.fold)


def build_synapse_loaders(
    config: Any, rank: int = 0, world_size: int = 1, list_name: str = "test_vol.txt"
) -> tuple[Loader, SynapseVolumes]:
    """Return (train loader of (images, labels, names), data set of a list's volumes); each rank trains on its share."""
    slices, lists, _ = synapse_folders(config)
    transform = AUGMENTATIONS[config.augmentation](config.image_size, config.slice_fit)
    ignore_label = getattr(config, "ignore_label", None)
    options = (config.num_classes, config.seed, ignore_label, config.context, listed_names(config, "train.txt"))
    dataset = SynapseSlices(slices, lists, transform, *options)
    fill_cache(dataset, config.cache)
    check_foreground(dataset, slices, ignore_label)
    return make_loader(dataset, config, True, rank, world_size), build_synapse_volumes(config, list_name)


def build_synapse_volumes(config: Any, list_name: str = "test_vol.txt") -> SynapseVolumes:
    """Return the volumes of a list, a data set of (image, label, name, spacing)."""
    _, lists, volumes = synapse_folders(config)
    ignore_label, names = getattr(config, "ignore_label", None), listed_names(config, list_name)
    return SynapseVolumes(volumes, lists, config.num_classes, list_name, ignore_label, names=names)


def pooled_slices(config: Any) -> list[Path]:
    """Return the files of all slices in train.txt, whatever the fold."""
    slices, lists, _ = synapse_folders(config)
    return listed_files(slices, read_list(lists, "train.txt"), ".npz")


def check_synapse_parts(config: Any) -> None:
    """Check for --protocol holdout that train.txt, val_vol.txt and test_vol.txt exist and have no cases in common."""
    _, lists, _ = synapse_folders(config)
    parts = {name: set(listed_names(config, name)) for name in ("train.txt", "val_vol.txt", "test_vol.txt")}
    parts["train.txt"] = cases_of_slices(parts["train.txt"])
    check_disjoint(lists, parts)


def patients_of_cases(config: Any) -> dict[str, str]:
    """Return {case: patient} from the data folder's cases.csv (datasets.prepare_volumes); {} without that file."""
    rows = read_rows(synapse_folders(config)[0].parent / "cases.csv", "case")
    return {row["case"]: row["patient"] for row in rows if row.get("case") and row.get("patient")}
