import dataclasses
import logging

import pytest

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.recipes import RECIPES, parse_config, warn_of_collapse, with_recipe


def changes(config):
    """The values that differ from those of the config class."""
    start = type(config)()
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if value != getattr(start, name)}


@pytest.mark.parametrize("kind", [ISICConfig, SynapseConfig])
def test_without_a_recipe_the_config_stands_as_it_is(kind):
    assert parse_config(kind, []) == kind() == parse_config(kind, ["--recipe", "published"])


def test_a_recipe_sets_its_values_and_its_name():
    assert changes(parse_config(ISICConfig, ["--recipe", "stable"])) == {"recipe": "stable", **RECIPES["stable"]}


def test_volumes_have_no_rotation_of_samples():
    found = changes(parse_config(SynapseConfig, ["--recipe", "stable"]))
    assert found == {"recipe": "stable"} | {
        name: value for name, value in RECIPES["stable"].items() if name != "rotation"
    }


def test_every_flag_wins_even_one_that_says_the_default():
    said = parse_config(
        ISICConfig, ["--lr", "1e-3", "--recipe", "stable", "--sch", "CosineAnnealingLR", "--decay", "all"]
    )
    assert (said.lr, said.sch, said.decay, said.clip_grad_norm) == (1e-3, "CosineAnnealingLR", "all", 1.0)


def test_an_edited_config_keeps_what_the_recipe_does_not_set():
    @dataclasses.dataclass(kw_only=True)
    class Edited(ISICConfig):
        """An edited table."""

        epochs: int = 7
        lr: float | None = 0.1

    said = parse_config(Edited, ["--recipe", "stable"])
    assert said.epochs == 7 and said.lr == RECIPES["stable"]["lr"]


def test_only_resume_may_be_said_beside_resume():
    with pytest.raises(ValueError, match="--resume: found also --recipe"):
        parse_config(ISICConfig, ["--resume", "results/x", "--recipe", "stable"])


@pytest.mark.parametrize(
    "config, warned",
    [
        (ISICConfig(load_ckpt_path="none"), True),
        (SynapseConfig(load_ckpt_path="none"), True),
        (with_recipe(ISICConfig(load_ckpt_path="none"), "stable"), False),
        (ISICConfig(), False),  # from VMamba's weights
        (ISICConfig(load_ckpt_path="none", lr=1e-4), False),
        (ISICConfig(load_ckpt_path="none", network="unet"), False),
    ],
)
def test_the_published_schedule_from_random_weights_gets_a_warning(config, warned, caplog):
    with caplog.at_level(logging.WARNING, "vmunet"):
        warn_of_collapse(config)
    assert ("--recipe stable" in caplog.text) is warned
