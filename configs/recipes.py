"""Recipes: a few values of the training configs under one name, `--recipe NAME`. Every single flag still wins."""

import dataclasses
import sys

import tyro

from configs.base import BaseConfig
from configs.check import check_alone

# What each changes of the config's own values.
RECIPES = {
    "published": {},  # the configs as they stand are the original's values
    # From random weights the published schedule loses what it learned when its rate comes back to 1e-3; this one does
    # not (docs/recipes.md).
    "stable": dict(sch="CosineWarmup", clip_grad_norm=1.0, rotation="sample", decay="weights_only"),
}


def with_recipe(config: BaseConfig, recipe: str) -> BaseConfig:
    """`config` with the values of a recipe; those that this kind of config lacks, such as `rotation` of volumes, are
    left out."""
    known = {field.name for field in dataclasses.fields(config)}
    values = {name: value for name, value in RECIPES[recipe].items() if name in known}
    return dataclasses.replace(config, recipe=recipe, **values)


def parse_config(config_class: type[BaseConfig], arguments: list[str] | None = None) -> BaseConfig:
    """The config that a command line describes: the class's own values, then the recipe's, then every flag's.

    Raises ValueError if anything but --resume was said beside it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    description = sys.modules[config_class.__module__].__doc__
    config = tyro.cli(config_class, description=description, args=arguments)
    check_alone(config)
    if not RECIPES[config.recipe]:
        return config
    start = with_recipe(config_class(), config.recipe)
    return tyro.cli(config_class, description=description, args=arguments, default=start)
