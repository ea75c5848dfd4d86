"""The config of `--test-only CHECKPOINT`: that of the checkpoint, but for what the command line says."""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from configs.base import BaseConfig
from configs.check import check_config, flag
from configs.stored import config_from_values, kind_of
from models.family import NETWORKS
from models.weights.reading import Checkpoint
from models.weights.shape import shape_of_weights
from utils.runs.weights import read_checkpoint

log = logging.getLogger("vmunet")

Config = TypeVar("Config", bound=BaseConfig)

# What belongs to the machine or to the run, not to the network and the way it was trained.
OF_THE_MACHINE = {"device", "scan_backend", "use_checkpoint", "compile", "cuda_graphs", "num_workers", "cache"}
OF_THE_RUN = {"work_dir", "print_interval", "save_interval", "resume", "test_only", "debug", "load_ckpt_path"}
OF_THE_RUN |= {"accept_changed_data", "checkpoint_interval"}
DATA = {"dataset", "data_path", "list_dir", "volume_path"}  # where one is said, the others are not the checkpoint's
PART = {"protocol", "folds", "fold", "fold_seed", "fold_group"}  # nor which part of other data is tested
SHOWN = ("network", "num_classes", "image_size", "normalization", "threshold")


def config_to_test(config: Config, said: Collection[str]) -> Config:
    """What the flags in `said` are to be read on top of: the values in the checkpoint `config.test_only`. One without a
    config, such as the original's or weights alone, tells the network's shape, and the rest is as in `config`.

    Raises ValueError for a checkpoint of the other script, and for values that can't be meant."""
    assert config.test_only is not None
    checkpoint = read_checkpoint(config.test_only)
    return config_from_values(type(config), dataclasses.asdict(config) | values_to_test(config, checkpoint, said))


def values_to_test(config: BaseConfig, checkpoint: Checkpoint, said: Collection[str]) -> dict[str, Any]:
    """The values that a test takes from a checkpoint."""
    stored: Mapping[str, Any] = checkpoint.config
    if not stored:
        return shape_of_weights(checkpoint.weights, checkpoint.path) if config.network in NETWORKS else {}
    if (kind_of(dict(stored)) == "volumes") is not config.of_volumes:
        script = "train.py" if config.of_volumes else "train_synapse.py"
        raise ValueError(f"--test-only {checkpoint.path}: its network is for {kind_of(dict(stored))}: python {script}")
    left_out = OF_THE_MACHINE | OF_THE_RUN | (DATA | PART if DATA & set(said) else set())
    known = {field.name for field in dataclasses.fields(config)}
    values = {name: value for name, value in stored.items() if name in known - left_out}
    try:
        check_config(config_from_values(type(config), values))
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: the configuration stored in it can't be used: {error}") from error
    return values


def log_test(config: BaseConfig) -> Checkpoint:
    """Says under which values the checkpoint `config.test_only` is tested, and which are not those of its training.
    Returns the checkpoint."""
    assert config.test_only is not None
    checkpoint = read_checkpoint(config.test_only)
    if not checkpoint.config:
        text = "%s holds no configuration: its shape is that of its weights, all else as the flags say"
        log.info(text, checkpoint.path)
    values = {name: getattr(config, name) for name in SHOWN if hasattr(config, name)}
    log.info("tested with %s", ", ".join(f"{name} {value}" for name, value in values.items()))
    here = vars(config_from_values(type(config), dataclasses.asdict(config)))
    for name, stored in values_to_test(config, checkpoint, DATA if changed_data(config, checkpoint) else ()).items():
        stored = tuple(stored) if isinstance(stored, list) else stored
        if here[name] != stored:
            log.warning("%s %s instead of the checkpoint's %s", flag(name), here[name], stored)
    return checkpoint


def changed_data(config: BaseConfig, checkpoint: Checkpoint) -> bool:
    """Whether other data are tested than those of the training."""
    return any(getattr(config, name, None) != checkpoint.config.get(name) for name in DATA & checkpoint.config.keys())
