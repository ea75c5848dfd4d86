"""Configs as plain values and back: what config.json and checkpoints hold."""

import dataclasses
import json
import typing
from typing import TypeVar

from configs.base import BaseConfig
from configs.check import NOT_OF_THE_RUN, check_config
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from utils.files import read_rows, reading
from utils.runs.run import find_run, of_volumes

Config = TypeVar("Config", bound=BaseConfig)

CONFIGS = {"images": ISICConfig, "volumes": SynapseConfig}  # what a network was trained on, and under
ADDED_LATER = {
    "recipe",
    "stop_when_lost",
    "augmentation",
    "class_names",
    "class_colours",
    "accept_changed_data",
    "scaling",
    "scaling_range",
    "orientation",
    "checkpoint_interval",
}  # fields that runs may have been started without


def kind_of(values: dict) -> str:
    """ "images" or "volumes", whichever these values are of a training on."""
    return "volumes" if of_volumes(values) else "images"


def config_from_values(config_class: type[Config], values: dict) -> Config:
    """A config of plain values, in which JSON has made lists of the tuples. What is not named has its default; what is
    no field raises TypeError."""
    types = typing.get_type_hints(config_class)
    kinds = {name: (kind, *typing.get_args(kind)) for name, kind in types.items()}  # of X | None also X
    tuples = {name for name, parts in kinds.items() if any(typing.get_origin(part) is tuple for part in parts)}
    values = {
        name: tuple(value) if name in tuples and isinstance(value, list) else value for name, value in values.items()
    }
    return config_class(**values)


def config_of_run(config: Config) -> Config:
    """`config`, or with `config.resume` the configuration that this run was started under.

    Raises ValueError if the values can't be meant (configs.check), or if the stored ones are not of this kind of
    config. A value that did not exist yet when the run was started has its default."""
    check_config(config)
    if config.resume is None:
        return config
    path = find_run(config.resume) / "config.json"
    with reading(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        known = typing.get_type_hints(type(config)).keys()
        if not isinstance(values, dict) or not known - ADDED_LATER <= values.keys() <= known:
            odd = (
                ", ".join(sorted(values.keys() - known | known - ADDED_LATER - values.keys()))
                if isinstance(values, dict)
                else values
            )
            raise ValueError(f"{path}: found other fields than expected of a {type(config).__name__}: {odd}")
        stored = config_from_values(type(config), values | {"resume": config.resume})
        check_config(stored)
    if config == dataclasses.replace(stored, **{name: getattr(config, name) for name in NOT_OF_THE_RUN}):
        return config  # of `config_to_resume`
    return stored


def config_to_resume(config: Config, epochs: int | None) -> Config:
    """The configuration that the run `config.resume` was started under, of other `epochs` unless that is None.

    Raises ValueError for fewer than the run has done."""
    stored = config_of_run(config)
    values = {name: getattr(config, name) for name in NOT_OF_THE_RUN}
    values["epochs"] = stored.epochs if epochs is None else epochs
    done = len(read_rows(find_run(str(config.resume)) / "metrics.csv"))
    if epochs is not None and epochs < done:
        raise ValueError(f"--epochs {epochs}: the run has {done} already, expected at least as many")
    return dataclasses.replace(stored, **values)
