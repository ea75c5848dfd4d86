"""Recipes: a few values of the training configs under one name, `--recipe NAME`. Every single flag still wins."""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from configs.base import BaseConfig
from configs.check import check_alone, check_config
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from utils.runs.flags import parse_flags

log = logging.getLogger("vmunet")

Config = TypeVar("Config", bound=BaseConfig)

# What each changes of the config's own values.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},  # the configs as they stand are the original's values
    # From random weights a rate of 1e-3 makes the step sizes of the scans grow without bound, until the network loses
    # what it had learned (docs/collapse.md). Half of it, reached once, has not, and scores higher.
    "stable": dict(lr=5e-4, sch="CosineWarmup", clip_grad_norm=1.0, rotation="sample", decay="weights_only"),
}
PUBLISHED_DATA = ("isic17", "isic18", "synapse", "demo")
DEFAULT_FOR_OWN_DATA = "stable"


def log_recipe(config: BaseConfig) -> None:
    """Says what the recipe is of a run on own data, for which it is another than for the published."""
    if own_data(config) and config.recipe == DEFAULT_FOR_OWN_DATA:
        log.info("recipe %s, the default for own data; --recipe published has the paper's values", config.recipe)


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

    Own data have the recipe "stable" unless another is said; values that an edited config (configs/config_own.py) has
    instead of the published ones then stay. With --resume it is the config of that run, of --epochs epochs if that was
    said; with --test-only the checkpoint's, under every flag's.

    Raises ValueError for values that can't be meant, and if more was said beside --resume."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config, said = parse_flags(config_class, arguments), said_flags(arguments)
    if config.resume is not None:
        check_alone(config)
        from configs.stored import config_to_resume  # needs PyTorch

        return config_to_resume(config, config.epochs if "epochs" in said else None)
    if config.test_only is not None:
        from configs.tested import config_to_test  # needs PyTorch

        start = config_to_test(config, said)
    else:
        start = config_class(network=config.network)  # type: ignore[call-arg]  # the configs have all defaults
        default_recipe = "recipe" not in said and own_data(config)
        start = for_own_data(start) if default_recipe else with_recipe(start, config.recipe)
    config = parse_flags(config_class, arguments, start)
    check_config(config)
    return config


def said_flags(arguments: Sequence[str]) -> set[str]:
    """The fields that a command line names."""
    flags = {text[2:].partition("=")[0].replace("-", "_") for text in arguments if text.startswith("--")}
    return flags | {name.removeprefix("no_") for name in flags}


def own_data(config: BaseConfig) -> bool:
    """Whether it is about data that no published number is about; the demo's are made like the published ones."""
    return config.dataset not in PUBLISHED_DATA  # type: ignore[attr-defined]  # a field of both configs


def for_own_data(config: Config) -> Config:
    """`config` with those values of DEFAULT_FOR_OWN_DATA whose fields it does not change itself."""
    published = SynapseConfig() if config.of_volumes else ISICConfig()
    chosen = with_recipe(config, DEFAULT_FOR_OWN_DATA)
    kept = {n: v for n, v in vars(config).items() if v != getattr(published, n, v)}
    return dataclasses.replace(chosen, **kept)
