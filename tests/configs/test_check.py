"""Values of another type or out of range, and options that exclude each other."""

import dataclasses

import pytest

from configs.check import check_config
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig


@pytest.mark.parametrize("config", [ISICConfig(), SynapseConfig(), ISICConfig(lr=None, depths=None, epochs=1)])
def test_values_of_the_right_kind_pass(config):
    check_config(config)
    check_config(dataclasses.replace(config, weight_decay=0, checkpoint_interval=0))  # whole numbers are floats too


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"epochs": True}, "--epochs.*True.*int"),
        ({"epochs": 0}, "--epochs.* 0,.* 1"),
        ({"image_size": 16}, "--image-size.* 16,.* 32"),
        ({"lr": -1.0}, "--lr.*-1"),
        ({"lr": float("nan")}, "--lr.*nan"),
        ({"lr": "1"}, "--lr.*'1'"),
        ({"threshold": 2.0}, "--threshold.* 2.0,.* 0 to 1"),
        ({"depths": (2, 2, 2)}, r"--depths.*\(2, 2, 2\)"),
        ({"depths": [2, 2, 2, 2]}, "--depths"),
        ({"dims": (96, 192, 384, 0)}, "--dims.* 0,"),
        ({"opt_args": {"eps": 1}}, "--opt-args.*eps"),
        ({"precision": "fp8"}, "--precision.*'fp8'.*fp32, bf16, fp16"),
        ({"decay": "some"}, "--decay.*'some'.*all, weights_only"),
        ({"warmup": "slow"}, "--warmup.*'slow'.*from_first_step, published"),
        ({"loss": "bce"}, "--loss.*'bce'.*auto, bce_dice, ce_dice"),
        ({"loss_weight": (0, 0)}, "--loss-weight"),
        ({"resume": "x", "test_only": "y"}, "--resume.*--test-only"),
        ({"folds": 1}, "--folds 1"),
        ({"folds": 5, "fold": 5}, "--folds 5 --fold 5"),
        ({"fold": "all"}, "--fold all.*--folds"),
        ({"folds": 5, "fold": "all", "test_only": "y"}, "--fold all --test-only"),
    ],
)
def test_values_that_no_training_can_have_are_named_by_their_flags(changes, words):
    with pytest.raises(ValueError, match=words):
        check_config(ISICConfig(**changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"network": "resnet"}, "--network.*'resnet'.*vmunet, vmunetv2, ultralight, unet"),
        ({"network": "smp:"}, "--network.*'smp:'"),
        ({"network": "unet"}, "--load-ckpt-path.*unet"),
        ({"network": "unet", "load_ckpt_path": "none", "d_state": 8}, "--network unet.*--d-state.*vmunet"),
        ({"network": "vmunetv2", "depths_decoder": (1, 1, 1, 1)}, "--network vmunetv2.*--depths-decoder.*vmunet"),
    ],
)
def test_options_that_a_network_does_not_have_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        check_config(ISICConfig(**changes))
    check_config(ISICConfig(network="unet", load_ckpt_path="none"))


def test_a_value_has_the_name_of_the_place_it_comes_from():
    with pytest.raises(ValueError, match=r"^config\.json: epochs: "):
        check_config(ISICConfig(epochs=0), {"epochs": "config.json: epochs"})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"class_names": ("a",)}, "--class-names.* 1 .* 2 .*--num-classes 3"),
        ({"class_names": ("a", "a")}, "--class-names.*a, a"),
        ({"class_names": ("a", "b/c")}, "--class-names.*'b/c'"),
        ({"class_names": ("a", "b\n")}, r"--class-names.*'b\\n'.* 60 "),
        ({"class_names": ("background", "a")}, "--class-names.*'background'"),
        ({"class_colours": ("#ff0000",)}, "--class-colours.* 1,.* 2 .*--num-classes 3"),
        ({"class_colours": ("red", "blue")}, "--class-colours.*'red'.*#ff0000"),
        ({"num_classes": 1, "class_colours": ("#ff0000",)}, "--class-colours.* 1,.* 0 "),
    ],
)
def test_names_and_colours_of_classes_must_fit_their_number(changes, words):
    with pytest.raises(ValueError, match=words):
        check_config(ISICConfig(**{"num_classes": 3} | changes))


def test_a_loss_weight_that_the_loss_does_not_take_is_an_error():
    with pytest.raises(ValueError, match="--loss-weight.* focal .*bce_dice"):
        check_config(ISICConfig(loss="focal", loss_weight=(3, 1)))


def test_context_needs_as_many_channels():
    check_config(SynapseConfig(context=1))
    check_config(SynapseConfig(context=2, input_channels=5))
    with pytest.raises(ValueError, match="--context 2: found --input-channels 3, expected 5"):
        check_config(SynapseConfig(context=2))
