"""models/ as a library: networks of files, through torch.hub, and in folders of huggingface_hub."""

import json
import sys
import types

import pytest
import safetensors.torch
import torch

import models
from tests.tiny import NETWORK, ROOT

SMALL = {"vmunet": NETWORK, "vmunetv2": dict(depths=(1, 1, 1, 1), dims=(32, 64, 128, 256), d_state=4), "ultralight": {}}


def small(name, **options):
    torch.manual_seed(0)
    return models.NETWORKS[name](**SMALL[name] | options)


def assert_same(network, other):
    assert type(network) is type(other)
    state, expected = network.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


# ---- a network from a file


@pytest.mark.parametrize("name", SMALL)
def test_load_finds_the_network_of_a_file(name, tmp_path):
    """By its configuration or, as with checkpoints of the originals, by its weights."""
    network = small(name, num_classes=2)
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "original.pth")
    values = {"network": name, "num_classes": 2, "scan_backend": "cuda", "compile": True, **SMALL[name]}
    torch.save({"model": network.state_dict(), "config": values}, tmp_path / "ours.pth")
    for file in ("original.pth", "ours.pth"):
        loaded = models.load(tmp_path / file)
        assert_same(loaded, network)
        assert not loaded.training and loaded.num_classes == 2
        assert {m.scan_backend for m in loaded.modules() if hasattr(m, "scan_backend")} == {"auto"}


def test_load_says_what_does_not_fit(tmp_path):
    path, weights = tmp_path / "a.pth", small("vmunet").state_dict()
    with pytest.raises(FileNotFoundError, match="a.pth: found no"):
        models.load(path)
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="a.pth: found no .*final_conv.weight"):
        models.load(path)
    torch.save({"model": weights, "config": {"network": "vmunet", "depths": [1, 1]}}, path)
    with pytest.raises(ValueError, match=r"a.pth: .* depths \[1, 1\]"):
        models.load(path)
    torch.save({"model": weights, "config": {"network": "vmunet", "dims": [2**9 * 2**i for i in range(4)]}}, path)
    with pytest.raises(ValueError, match="a.pth: found"):  # and no memory taken for it
        models.load(path)


# ---- torch.hub


def test_torch_hub_has_the_networks():
    def load(name, **options):
        return torch.hub.load(str(ROOT), name, source="local", **options)

    assert load("vmunet", **NETWORK, num_classes=3)(torch.rand(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    assert sum(p.numel() for p in load("ultralight").parameters()) == 49_457
    assert isinstance(load("vmunetv2", **SMALL["vmunetv2"]), models.VMUNetV2)


def test_torch_hub_does_not_take_another_repositorys_models_for_its_own(monkeypatch, tmp_path):
    other = types.ModuleType("models")
    other.__file__ = str(tmp_path / "models" / "__init__.py")
    monkeypatch.setitem(sys.modules, "models", other)
    with pytest.raises(ImportError, match="found .*'models' of .*expected none"):
        torch.hub.load(str(ROOT), "vmunet", source="local")


@pytest.mark.slow
def test_torch_hub_has_the_shipped_weights():
    network = torch.hub.load(str(ROOT), "isic17", source="local")
    expected = models.load(ROOT / "pretrained_weights/vmunet_isic17.h5")
    images = torch.rand(1, 3, 64, 64) * 255
    assert torch.equal(network.predict(images), expected.predict(images))


# ---- huggingface_hub


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_of_huggingface_hub_gives_the_network_back(name, tmp_path):
    network = small(name, num_classes=2, scan_backend="torch")
    network.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # all may be read by others, or none
    assert "scan_backend" not in json.loads((tmp_path / "config.json").read_text())
    assert "library_name: vmunet" in (tmp_path / "README.md").read_text()
    loaded = type(network).from_pretrained(tmp_path)
    assert_same(loaded, network)
    assert not loaded.training and loaded.num_classes == 2


def test_weights_of_another_network_are_not_matched_in_part(tmp_path):
    small("ultralight").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json: found .*'ultralight', expected 'vmunet'"):
        models.VMUNet.from_pretrained(tmp_path, **NETWORK)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="model.safetensors: found 0 of "):
        models.VMUNet.from_pretrained(tmp_path, **NETWORK)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"drop_path_rate": float("nan")}, "drop_path_rate nan, .* 0.99"),
        ({"drop_path_rate": -5}, "drop_path_rate -5, .* 0.99"),
        ({"depths": [10**6, 1, 1, 1]}, r"depths \[1000000, 1, 1, 1\], expected 4 .*64"),
        ({"depths": 3}, "depths 3, expected 4"),
        ({"dims": [2**31] * 4}, "dims .* 4096"),
        ({"d_state": "4"}, "d_state '4'"),
        ({"num_classes": True}, "num_classes True"),
        ({"input_channels": None}, "input_channels None"),
        ("[1]", "found list"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_configuration_that_makes_no_network_is_named(change, words, tmp_path):
    small("vmunet").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(values)
    for read in (models.VMUNet.from_pretrained, lambda folder: models.load(folder / "model.safetensors")):
        with pytest.raises(ValueError, match=f"config.json: .*{words}"):
            read(tmp_path)


def test_a_folder_does_not_choose_the_machines_options(tmp_path):
    small("vmunet").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scan_backend": "reference", "use_checkpoint": True}))
    loaded = models.VMUNet.from_pretrained(tmp_path)
    assert {m.scan_backend for m in loaded.modules() if hasattr(m, "scan_backend")} == {"auto"}
    assert (
        models.VMUNet.from_pretrained(tmp_path, scan_backend="torch")
        .vmunet.layers[0]
        .blocks[0]
        .self_attention.scan_backend
        == "torch"
    )


def test_options_that_shapes_do_not_tell_come_from_the_folder(tmp_path):
    small("vmunetv2", deep_supervision=False).save_pretrained(tmp_path)
    assert not models.load(tmp_path / "model.safetensors").deep_supervision


@pytest.mark.parametrize("value", [float("nan"), 1j, 1])
def test_a_folder_with_weights_that_are_no_floats_is_refused(value, tmp_path):
    small("vmunet").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["vmunet.final_conv.bias"] = torch.tensor([value])
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ValueError, match="model.safetensors: found .*final_conv.bias"):
        models.VMUNet.from_pretrained(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="model.safetensors: found damaged"):
        models.VMUNet.from_pretrained(tmp_path)


def test_the_card_says_how_images_are_prepared(tmp_path):
    values = dict(image_size=128, normalization="minmax", antialias=True, threshold=0.4, data_path="/home/me")
    content = {"model": small("vmunet").state_dict(), "config": {"network": "vmunet", **NETWORK, **values}}
    torch.save(content, tmp_path / "best.pth")
    models.load(tmp_path / "best.pth").save_pretrained(tmp_path / "a")
    models.VMUNet.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for folder in ("a", "b"):
        card = (tmp_path / folder / "README.md").read_text()
        for fact in ("RGB", "0..255", "bilinear", "antialias", "128 x 128", "0.4", "vmunet.VMUNet.from_pretrained"):
            assert fact in card
        assert "/home/me" not in card + (tmp_path / folder / "config.json").read_text()
    small("vmunet").save_pretrained(tmp_path / "c")
    assert "Not recorded" in (tmp_path / "c/README.md").read_text()
