import argparse
import collections
import json
import logging
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import torch

from configs.build import load_initial_weights
from configs.config_setting import ISICConfig
from models.vmunet import VMUNet, pretrained
from models.weights.reading import read_weights
from tests.tiny import write_packed_weights
from utils.runs import named_weights
from utils.runs.checkpoint import save_checkpoint
from utils.runs.named_weights import find_checkpoint, load_checkpoint_weights

SMALL = dict(dims=16, d_state=4)
RENAMED = [  # original, later
    ("patch_embed.proj", "patch_embed.0"),
    ("patch_embed.norm", "patch_embed.2"),
    (".ln_1.", ".norm."),
    (".self_attention.", ".op."),
    (".downsample.norm", ".downsample.1"),
    (".downsample.reduction", ".downsample.2"),
]


def load_pretrained(model, named):
    """As --load-ckpt-path does it."""
    return pretrained.load_pretrained(model, find_checkpoint(named))


def tagged(shapes):
    """Tensors that all differ, each a single number spread over its shape: small files, whatever the shapes."""
    return {name: torch.tensor(1.0 + i).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def vmamba(depths=(2, 2, 9, 2), **sizes):
    """A VMamba v0 classification file's weights: an encoder, a norm and a head."""
    encoder = VMUNet(depths=depths, **(sizes or SMALL)).vmunet.state_dict()
    shapes = {name: t.shape for name, t in encoder.items() if name.startswith(("patch_embed.", "layers."))}
    shapes |= {"norm.weight": (128,), "norm.bias": (128,), "head.weight": (10, 128), "head.bias": (10,)}
    return tagged(shapes)


def with_later_names(weights):
    renamed = {}
    for name, tensor in weights.items():
        for original, later in RENAMED:
            name = name.replace(original, later)
        renamed[f"classifier.{name}" if name.startswith(("norm.", "head.")) else name] = tensor
    return renamed


@pytest.fixture
def save(tmp_path):
    def save(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def model():
    return VMUNet(**SMALL)


def assert_filled_like_the_original(model, weights):
    for name, tensor in model.vmunet.state_dict().items():
        stage, block = name.split(".")[1:2], ".blocks." in name
        if name.startswith("layers_up.") and block:
            source = name.replace(f"layers_up.{stage[0]}", f"layers.{3 - int(stage[0])}")
        elif name.startswith(("patch_embed.", "layers.")):
            source = name
        else:
            continue
        assert torch.equal(tensor, weights[source]), name


@pytest.mark.parametrize("depths", [(2, 2, 9, 2), (2, 2, 27, 2)], ids=["VMamba-T", "VMamba-S"])
@pytest.mark.parametrize("rename", [dict, with_later_names], ids=["original names", "later names"])
def test_vmamba_fills_the_encoder_and_the_decoder_upside_down(model, save, depths, rename):
    weights = vmamba(depths)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = load_pretrained(model, save({"model": rename(weights)}))
    assert (report["encoder"], report["decoder"], len(report["left"])) == (117, 91, 14)
    assert_filled_like_the_original(model, weights)
    for name in report["left"]:
        assert torch.equal(model.state_dict()[f"vmunet.{name}"], before[f"vmunet.{name}"])


def test_vmamba_counts_follow_the_depths_of_the_model(save):
    model = VMUNet(depths=(2, 2, 9, 2), depths_decoder=(2, 9, 2, 2), **SMALL)
    report = load_pretrained(model, save({"model": vmamba()}))
    assert (report["encoder"], report["decoder"]) == (117 + 7 * 13, 91 + 8 * 13)


def test_vmamba_goes_to_the_log(model, save, caplog):
    with caplog.at_level(logging.INFO, "vmunet"):
        report = load_pretrained(model, save({"model": vmamba()}))
    assert "117 encoder and 91 decoder" in caplog.text
    assert report["sha256"] in caplog.text and "final_conv.bias" in caplog.text


@pytest.mark.parametrize("case", ["vmamba_small_v0_2_2_27_2", "vmamba_tiny_v0_2_2_9_2"])
def test_each_tensor_comes_from_where_the_original_took_it(shared, save, case):
    golden = json.loads((shared / "oracle/golden/pretrained.json").read_text(encoding="utf-8"))[case]
    weights = tagged(dict(golden["checkpoint_layout"]))
    model = VMUNet()
    report = load_pretrained(model, save({"model": weights}))
    assert sorted(f"vmunet.{name}" for name in report["left"]) == sorted(golden["left_at_init"])
    for name, tensor in model.state_dict().items():
        if name not in golden["left_at_init"]:
            assert torch.equal(tensor, weights[golden["filled_from"][name]]), name


def test_vmamba_settings_in_the_file_are_read_without_yacs(model, save, monkeypatch):
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    node = module.CfgNode(MODEL=module.CfgNode(DEPTHS=[2, 2, 9, 2]))
    node.__dict__["__immutable__"] = False
    path = save({"model": vmamba(), "config": node, "max_accuracy": 82.2})
    monkeypatch.undo()
    assert load_pretrained(model, path)["encoder"] == 117


def test_vmamba_v2_is_recognised(model, save):
    weights = with_later_names(vmamba()) | {"layers.0.blocks.0.mlp.fc1.weight": torch.ones(4)}
    with pytest.raises(ValueError, match="VMamba v2 .*mlp.fc1.weight.*VMamba v0"):
        load_pretrained(model, save({"model": weights}))


def test_vmamba_refuses_a_missing_tensor_and_a_foreign_one(model, save):
    weights = vmamba() | {"extra.weight": torch.ones(4)}
    del weights["layers.3.blocks.1.self_attention.Ds"]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_pretrained(model, save({"model": weights}))
    for part in ("116 of 117", "90 of 91", "layers.3.blocks.1.self_attention.Ds", "extra.weight"):
        assert part in str(error.value)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_vmamba_refuses_weights_of_another_kind(model, save):
    with pytest.raises(ValueError, match="0 of 117 .*0 of 91 .*conv1.weight"):
        load_pretrained(model, save({"conv1.weight": torch.ones(3)}))
    with pytest.raises(ValueError, match="found no weights"):
        load_pretrained(model, save({"epoch": 3}))


def test_weights_of_a_baseline_are_named(model, save):
    content = {"model": {"network.encoder.conv1.weight": torch.ones(3)}, "config": {"network": "smp:fpn"}}
    with pytest.raises(ValueError, match="'smp:fpn', 0 of 117 .*VMamba v0"):
        load_pretrained(model, save(content))


def test_vmamba_names_shapes_that_differ(model, save):
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight \[32, 3, 4, 4\] .*\[16, 3, 4, 4\]"):
        load_pretrained(model, save({"model": vmamba(dims=32, d_state=4)}))


def test_a_missing_file_says_where_it_can_be_had_and_how_to_do_without(model, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_initial_weights(model, ISICConfig(load_ckpt_path=str(tmp_path / "vmamba_small_e238_ema.pth")))
    for part in ("vmamba_small_e238_ema.pth", "vmamba-small", "vmamba-tiny", "--load-ckpt-path none"):
        assert part in str(error.value)


# ---- fine-tuning from a VM-UNet


def trained_weights(**changes):
    return tagged({name: tensor.shape for name, tensor in VMUNet(**SMALL | changes).state_dict().items()})


@pytest.fixture(params=["ours", "the original's", "packed", "a run", "shipped"])
def checkpoint(request, save, tmp_path, monkeypatch):
    """The same network of one class as everything that can be named: (name, weights)."""
    weights = trained_weights()
    if request.param == "ours":
        save_checkpoint(tmp_path / "best.pth", {"model": weights, "epoch": 3, "config": {"network": "vmunet"}})
        return tmp_path / "best.pth", weights
    if request.param == "the original's":
        return save(with_thop_buffers(weights)), weights
    if request.param == "a run":
        (tmp_path / "run/checkpoints").mkdir(parents=True)
        save_checkpoint(tmp_path / "run/checkpoints/best.pth", {"model": weights, "epoch": 3, "config": {}})
        return tmp_path / "run", weights
    write_packed_weights(tmp_path / "tiny.h5", weights, {"network": "vmunet"}, {})  # whole numbers: nothing is rounded
    if request.param == "packed":
        return tmp_path / "tiny.h5", weights
    monkeypatch.setattr(named_weights, "FOLDER", tmp_path)
    monkeypatch.setitem(named_weights.SHIPPED, "tiny", "tiny.h5")
    return "tiny", weights


def test_a_vmunet_fills_everything(model, checkpoint, caplog):
    named, weights = checkpoint
    with caplog.at_level(logging.INFO, "vmunet"):
        report = load_pretrained(model, named)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert (report["encoder"], report["encoder"] + report["decoder"], report["left"]) == (117, 222, [])
    assert "222 tensors" in caplog.text and report["sha256"] in caplog.text


def test_a_vmunet_of_other_classes_fills_all_but_the_last_layer(checkpoint, caplog):
    named, weights = checkpoint
    model = VMUNet(num_classes=3, **SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "vmunet"):
        report = load_pretrained(model, named)
    assert report["left"] == ["final_conv.weight", "final_conv.bias"]
    for name, tensor in model.state_dict().items():
        kept = name.removeprefix("vmunet.") in report["left"]
        assert torch.equal(tensor, (before if kept else weights)[name]), name
    assert "220 of 222" in caplog.text


def test_a_test_takes_the_same_names(model, checkpoint):
    """--test-only"""
    named, weights = checkpoint
    load_checkpoint_weights(model, named)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_training_starts_from_a_name(model, save, monkeypatch, tmp_path):
    """--load-ckpt-path"""
    weights = trained_weights()
    write_packed_weights(tmp_path / "tiny.h5", weights, {}, {})
    monkeypatch.setattr(named_weights, "FOLDER", tmp_path)
    monkeypatch.setitem(named_weights.SHIPPED, "tiny", "tiny.h5")
    load_initial_weights(model, ISICConfig(load_ckpt_path="tiny"))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "theirs, words",
    [
        (
            dict(depths=(2, 2, 3, 2)),
            ["found 222 of", "222", "13", "layers.2.blocks.2"],
        ),
        (dict(depths=(2, 2, 1, 2)), ["found 209 of", "222", "layers.2.blocks.1"]),
        (dict(dims=32), ["patch_embed.proj.weight [32, 3, 4, 4] instead of [16, 3, 4, 4]"]),
        (dict(d_state=8), ["A_logs [128, 8] instead of [128, 4]"]),
        (dict(num_classes=3, dims=32), ["patch_embed.proj.weight [32, 3, 4, 4] instead of [16, 3, 4, 4]"]),
        (dict(num_classes=3, input_channels=4), ["patch_embed.proj.weight [16, 4, 4, 4] instead of [16, 3, 4, 4]"]),
    ],
)
def test_a_vmunet_of_another_shape_is_refused_and_changes_nothing(model, save, theirs, words):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_pretrained(model, save(trained_weights(**theirs), "other.pth"))
    for word in ["other.pth: found", *words]:
        assert word in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- whole networks, files that are none


@pytest.mark.parametrize(
    "content, found",
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x08\n\x12\x07pytorch\x1a\n2.13.0+cpu:", "an ONNX file, for ONNX Runtime"),
        (b"\n<!DOCTYPE html>", "web page"),
        (b"", "0 bytes"),
        (bytes(range(256)) * 4, "1024 bytes"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_described(model, tmp_path, content, found):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    for load in (load_pretrained, load_checkpoint_weights):
        with pytest.raises(ValueError, match=f"weights.pth: found .*{found}"):
            load(model, path)


def test_a_truncated_file_is_refused(model, save):
    path = save(model.state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="found [0-9]+ bytes"):
        load_checkpoint_weights(model, path)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_file_that_calls_the_system_is_refused_and_never_run(model, save, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = save({"model_state_dict": model.state_dict(), "loss": RunsCode()})
    with pytest.raises(ValueError, match=r"found .*mkdir.*network\.state_dict\(\)"):
        load_checkpoint_weights(model, path)
    assert not (tmp_path / "executed").exists()


class SettingsDict(dict):
    """A dictionary of a training framework's own class."""


class CallsBack:
    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


@pytest.mark.parametrize(
    "others",
    [
        {"min_loss": np.float64(0.5), "epoch": 3},  # the original's latest.pth
        {"hyper_parameters": argparse.Namespace(lr=0.1), "callbacks": {"a": pathlib.PurePosixPath("a")}},  # Lightning
        {"meta": {"seed": np.int64(1), "rng": np.random.RandomState(0).get_state()}, "settings": SettingsDict(a=[1])},
        {"config": SettingsDict(network="resnet"), "seen": collections.defaultdict(list, a=[1])},
        {"callback": CallsBack()},
    ],
    ids=["numpy scalar", "Namespace", "mmseg", "settings as config", "code"],
)
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "network_weights"])
def test_objects_beside_the_weights_are_neither_made_nor_needed(model, save, monkeypatch, tmp_path, key, others):
    monkeypatch.chdir(tmp_path)
    state = tagged({f"net.{name}": tensor.shape for name, tensor in model.state_dict().items()})
    path = save({key: state} | others)
    load_checkpoint_weights(model, path)
    assert all(torch.equal(tensor, state[f"net.{name}"]) for name, tensor in model.state_dict().items())
    assert read_weights(path).config == {}
    assert not (tmp_path / "executed").exists()


def test_a_whole_module_is_named(model, save):
    for content in (torch.nn.Conv2d(1, 1, 3), {"model": torch.nn.Conv2d(1, 1, 3)}):
        with pytest.raises(ValueError, match=r"weights.pth: found .*torch.nn.modules.conv.Conv2d.*state_dict\(\)"):
            load_checkpoint_weights(model, save(content))


def test_foreign_checkpoints_give_their_weights(shared):
    files = [path for path in (shared / "cases/foreign-checkpoints").iterdir() if path.suffix != ".txt"]
    assert len(files) == 6
    for path in files:
        if path.name == "whole-module.pth":
            continue
        assert set(read_weights(path).weights) == {
            "patch_embed.proj.weight",
            "patch_embed.proj.bias",
            "patch_embed.norm.weight",
        }


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.to(torch.int8), "torch.int8"),
        (lambda t: t.to(torch.complex64), "torch.complex64"),
        (lambda t: t.fill_(float("nan")), "NaN"),
        (lambda t: t.double().fill_(1e300), "infinite"),
    ],
    ids=["int8", "complex", "NaN", "float64 beyond float32"],
)
@pytest.mark.parametrize("source", ["VM-UNet", "VMamba"])
def test_weights_that_are_no_finite_floats_are_refused(model, save, source, change, words):
    weights = vmamba() if source == "VMamba" else tagged({n: t.shape for n, t in model.vmunet.state_dict().items()})
    weights["patch_embed.norm.bias"] = change(weights["patch_embed.norm.bias"].clone())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"weights.pth: found .*{words}") as error:
        load_pretrained(model, save({"model": weights}))
    assert "patch_embed.norm.bias" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_repeat_a_few_numbers_do_not_fill_the_memory(save):
    network = torch.nn.Module()
    network.a = torch.nn.Parameter(torch.empty(10**12, device="meta"))
    with pytest.raises(ValueError, match=r"weights.pth: found a \[1000000000000\] with few"):
        load_checkpoint_weights(network, save({"a": torch.ones(1).expand(10**12)}))


def with_thop_buffers(state):
    modules = {""} | {name.rsplit(".", i)[0] + "." for name in state for i in (1, 2, 3)}
    buffers = [f"{module}{kind}" for module in modules for kind in ("total_ops", "total_params")]
    return state | dict.fromkeys(buffers, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        with_thop_buffers,
        lambda state: {"state_dict": state},
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"vmunet.{name}": tensor for name, tensor in state.items()},
        lambda state: {name.removeprefix("vmunet."): tensor for name, tensor in state.items()},
    ],
    ids=["222", "with thop's buffers", "state_dict", "model_state_dict", "module.", "vmunet.vmunet.", "no prefix"],
)
def test_vmunet_checkpoints_fill_everything(model, save, wrap):
    state = tagged({name: tensor.shape for name, tensor in model.state_dict().items()})
    load_checkpoint_weights(model, save(wrap(state)))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused_by_name(model, save):
    with pytest.raises(ValueError, match=r"final_conv.weight \[9, 4, 1, 1\] .*\[1, 4, 1, 1\]"):
        load_checkpoint_weights(model, save(VMUNet(num_classes=9, **SMALL).state_dict()))
    with pytest.raises(ValueError, match="found 117 of .*222 .*95 .*layers_up.0"):
        load_checkpoint_weights(model, save({"model": vmamba()}))


def test_our_own_checkpoint_is_verified(model, tmp_path):
    path = tmp_path / "best.pth"
    save_checkpoint(path, {"model": model.state_dict(), "epoch": 3})
    load_checkpoint_weights(VMUNet(**SMALL), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="best.pth: found SHA-256 .*expected"):
        load_checkpoint_weights(model, path)


def test_two_networks_in_one_file_are_an_error(model, save):
    state = model.state_dict()
    path = save(state | {f"module.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(ValueError, match="weights.pth: found both (.*) and module.\\1"):
        read_weights(path)
