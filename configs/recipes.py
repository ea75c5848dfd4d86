"""Recipes: a few values of the training configs under one name, `--recipe NAME`. Every single flag still wins."""

import dataclasses
import logging
import sys
from typing import Any, TypeVar

import tyro

from configs.base import BaseConfig
from configs.check import check_alone

log = logging.getLogger("vmunet")

Config = TypeVar("Config", bound=BaseConfig)

# What each changes of the config's own values.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},  # the configs as they stand are the original's values
    # From random weights a rate of 1e-3 makes the step sizes of the scans grow without bound, until the network loses
    # what it had learned (docs/collapse.md). Half of it, reached once, has not, and scores higher.
    "stable": dict(lr=5e-4, sch="CosineWarmup", clip_grad_norm=1.0, rotation="sample", decay="weights_only"),
}


def warn_of_collapse(config: BaseConfig) -> None:
    """One sentence where a run is about to do what has ruined others."""
    published = config.sch == "CosineAnnealingLR" and config.lr is None
    if config.network == "vmunet" and config.load_ckpt_path.lower() == "none" and published:
        log.warning(
            "from random weights the published schedule has lost in every long run what it had learned, at a rate near "
            "1e-3 (docs/collapse.md); --recipe stable has not so far, and scores higher"
        )


def with_recipe(config: Config, recipe: str) -> Config:
    """`config` with the values of a recipe; those that this kind of config lacks, such as `rotation` of volumes, are
    left out."""
    known = {field.name for field in dataclasses.fields(config)}
    values = {name: value for name, value in RECIPES[recipe].items() if name in known}
    return dataclasses.replace(config, **values | {"recipe": recipe})


def parse_config(config_class: type[Config], arguments: list[str] | None = None) -> Config:
    """The config that a command line describes: the class's own values, then the recipe's, then every flag's.

    Raises ValueError if anything but --resume was said beside it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    description = sys.modules[config_class.__module__].__doc__
    config = tyro.cli(config_class, description=description, args=arguments)
    check_alone(config)
    if not RECIPES[config.recipe]:
        return config
    start = with_recipe(config_class(), config.recipe)  # type: ignore[call-arg]  # the configs have all defaults
    return tyro.cli(config_class, description=description, args=arguments, default=start)
