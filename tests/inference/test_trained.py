"""Trained networks from files, folders and names; a configuration in a file is checked before it is used."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from configs.config_setting_synapse import SynapseConfig
from inference.trained import describe, load_trained
from models import VMUNet
from predict import PredictConfig, Predictor
from tests.inference.networks import SIZE, SMALL
from tests.tiny import NETWORK, write_packed_weights
from utils.runs import named_weights
from utils.runs.checkpoint import save_checkpoint
from utils.runs.named_weights import read_checkpoint

DEEPEST = [512, 1024, 2048, 4096]


def test_a_checkpoint_without_config_tells_its_shape(binary, colours, tmp_path):
    weights = torch.load(binary, weights_only=True)["model"]
    torch.save(weights, tmp_path / "weights.pth")
    options = dict(device="cpu", image_size=SIZE, scan_backend="torch")
    found = Predictor(tmp_path / "weights.pth", **options)
    assert found.config.dims == SMALL["dims"] and found.config.d_state == 4 and found.config.depths == (1, 1, 1, 1)
    np.testing.assert_array_equal(found.predict(colours).mask, Predictor(binary, **options).predict(colours).mask)


@pytest.mark.parametrize("kind", ["a run", "packed", "shipped"])
def test_a_run_a_packed_file_and_a_name_stand_for_their_checkpoint(kind, binary, colours, tmp_path, monkeypatch):
    expected = Predictor(binary, device="cpu", probabilities=True).predict(colours)
    named = tmp_path / "run"
    if kind == "a run":
        (named / "checkpoints").mkdir(parents=True)
        shutil.copy(binary, named / "checkpoints/best.pth")
    else:
        stored = read_checkpoint(binary)
        write_packed_weights(tmp_path / "tiny.h5", stored.weights, stored.config, {})
        named = tmp_path / "tiny.h5"
    if kind == "shipped":
        monkeypatch.setattr(named_weights, "FOLDER", tmp_path)
        monkeypatch.setitem(named_weights.SHIPPED, "tiny", "tiny.h5")
        named = "tiny"
    predictor = Predictor(named, device="cpu", probabilities=True)
    assert predictor.config == Predictor(binary, device="cpu").config
    difference = np.abs(predictor.predict(colours).probabilities - expected.probabilities)
    assert difference.max() < 1e-2 and difference.mean() < 1e-3  # of rounding
    assert kind != "a run" or difference.max() == 0
    Image.fromarray(colours).save(tmp_path / "a.png")
    options = dict(inputs=(str(tmp_path / "a.png"),), output=str(tmp_path / "out"), device="cpu")
    predict.main(PredictConfig(checkpoint=str(named), **options))
    about = json.loads((tmp_path / "out/prediction.json").read_text(encoding="utf-8"))
    assert about["checkpoint"] == str(named) and about["sha256"] == predictor.sha256
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        np.testing.assert_array_equal(np.array(mask) > 0, predictor.predict(colours).mask)


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(depths=5), "depths: found 5, expected tuple"),
        (dict(depths=[1, 1, 1, 65]), "depths: found 65, expected 0 to 64"),
        (dict(depths_decoder=[10**9, 1, 1, 1]), "depths_decoder: found 1000000000, expected 0 to 64"),
        (dict(dims=[2**16, 16, 32, 64]), "dims: found 65536, expected 1 to 4096"),
        (dict(dims="8 16 32 64"), "dims: found '8 16 32 64', expected tuple"),
        (dict(num_classes="x"), "num_classes: found 'x', expected int"),
        (dict(d_state=10**7), "d_state: found 10000000, expected 1 to 256"),
        (dict(threshold="x"), "threshold: found 'x', expected float"),
        (dict(threshold=float("nan")), "threshold: found nan, expected 0 to 1"),
        (dict(precision="fp8"), "precision: found 'fp8', expected one of fp32, bf16, fp16"),
        (dict(network=3), "network: found 3, expected str"),
        (dict(image_size=10**6), "image_size: found 1000000, expected 32 to 8192"),
        # right by themselves: tens of gigabytes, if they were believed before the tensors are looked at
        (dict(dims=DEEPEST, depths=[64] * 4, depths_decoder=[64] * 4), "found 131 of this network's"),
        (dict(dims=DEEPEST), "tensors of another shape than the model's: patch_embed.proj.weight"),
        (dict(dims=[64, 32, 16, 8]), "expected dims doubling"),
        (dict(kind="x", epoch=[]), None),  # unknown names are those of other versions
        (dict(device="cuda:7", scan_backend="magic", compile="yes", load_ckpt_path=None), None),  # of another machine
    ],
)
def test_a_stored_config_is_not_believed_unseen(values, words, binary, tmp_path):
    content = torch.load(binary, weights_only=True)
    path = tmp_path / "altered.pth"
    save_checkpoint(path, content | {"config": content["config"] | values})
    if words is None:
        assert load_trained(path).config == load_trained(binary).config
        return
    with pytest.raises(ValueError) as error:
        load_trained(path)
    assert str(path) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_what_weights_tell_is_not_believed_unseen(binary, tmp_path):
    weights = torch.load(binary, weights_only=True)["model"]
    state = "vmunet.layers.0.blocks.0.self_attention.A_logs"
    small = torch.ones(1)  # a few bytes in the file
    for name, tensor, words in (
        (state, small.expand(32, 10**9), "d_state: found 1000000000, expected 1 to 256"),
        (state, small, "found tensors of fewer dimensions than those of a VM-UNet"),
        (
            "vmunet.final_conv.weight",
            small.expand(1, 10**9),
            "final_conv.weight [1, 1000000000] instead of [1, 2, 1, 1]",
        ),
    ):
        torch.save(weights | {name: tensor}, tmp_path / "w.pth")
        with pytest.raises(ValueError) as error:
            load_trained(tmp_path / "w.pth")
        assert "w.pth" in str(error.value) and words in str(error.value)


def test_a_flag_out_of_range_is_not_blamed_on_the_file(binary):
    with pytest.raises(ValueError, match="^--threshold: found 2, expected 0 to 1$"):
        Predictor(binary, device="cpu", threshold=2)


def test_the_channels_and_the_fit_of_slices_are_described():
    alone = describe(SynapseConfig())["preprocessing"]
    assert "cubic zoom" in alone and "channels" not in alone
    text = describe(SynapseConfig(context=2, input_channels=5, slice_fit="pad"))["preprocessing"]
    assert "2 before it, itself, 2 after it" in text and "zoom" not in text and "middle of zeros" in text


def test_a_folder_without_preprocessing_is_noted_and_a_wrong_value_is_its_config_jsons(tmp_path, caplog):
    VMUNet(num_classes=1, **NETWORK).save_pretrained(tmp_path)
    assert load_trained(tmp_path).config.image_size == 256
    assert f"{tmp_path / 'config.json'} holds no preprocessing of images: taken as published" in caplog.text
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"threshold": 7}))
    with pytest.raises(ValueError, match=r"config\.json.*threshold"):
        load_trained(tmp_path)
