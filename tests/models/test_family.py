"""VM-UNetV2 and UltraLight VM-UNet against numbers that were taken from their original code on a CPU, with weights and
images made by the rules below (tests/golden/networks.*)."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from models.ultralight import Mamba, UltraLightVMUNet
from models.vmunet.vmunetv2 import VMUNetV2

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = json.loads((GOLDEN / "networks.json").read_text())
NETWORKS = {"vmunetv2": lambda: VMUNetV2(drop_path_rate=0.0), "ultralight": UltraLightVMUNet}


def weight(name, shape):
    """Every tensor of a state dict from its name alone."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    noise, last = rng.standard_normal(shape), name.rsplit(".", 1)[-1]
    if last in ("A_logs", "A_log"):
        return np.log(np.arange(1, shape[-1] + 1)) + 0.1 * noise
    if last == "dt_projs_bias" or name.endswith("dt_proj.bias"):
        steps = np.exp(rng.uniform(math.log(1e-3), math.log(0.1), shape))
        return steps + np.log(-np.expm1(-steps))
    if last == "running_var":
        return 1 + 0.1 * np.abs(noise)
    if last == "running_mean":
        return 0.1 * noise
    if last == "num_batches_tracked":
        return np.zeros(shape)
    if last == "bias":
        return 0.05 * noise
    if last in ("Ds", "D", "skip_scale") or len(shape) == 1:
        return 1 + 0.1 * noise
    scale = 3 if "sdi" in name or "Translayer" in name else 1
    return scale * noise / math.sqrt(np.prod(shape[1:]))


def filled(network):
    values = {
        name: torch.from_numpy(np.asarray(weight(name, tuple(tensor.shape)))).to(tensor.dtype).reshape(tensor.shape)
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(values)
    return network


def image(name, shape):
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(generator.randint(0, 256, shape).astype(np.float32))


@pytest.fixture(scope="module")
def outputs():
    return np.load(GOLDEN / "networks.npz")


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_have_the_original_names_shapes_and_number(name):
    network, facts = NETWORKS[name](), FACTS[name]
    assert {key: list(tensor.shape) for key, tensor in network.state_dict().items()} == facts["shapes"]
    assert sum(p.numel() for p in network.parameters()) == facts["parameters"]
    assert facts["parameters"] == {"vmunetv2": 22_770_934, "ultralight": 49_457}[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_probabilities_agree_with_the_original(name, outputs):
    network = filled(NETWORKS[name]()).eval()
    with torch.inference_mode():
        ours = network.predict(image(name, (2, 3, 64, 64))).numpy()
    assert np.abs(ours - outputs[name]).max() < 3e-4 * outputs[name].std()  # float32, sums in another order


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_agree_with_the_original(name):
    """Of the mean of the squared probabilities in training mode; where the original has none there is none."""
    network, facts = filled(NETWORKS[name]()).train(), FACTS[name]
    loss = (network.predict(image(name, (2, 3, 64, 64))) ** 2).mean()
    loss.backward()
    assert abs(loss.item() - facts["loss"]) < 1e-5
    for key, parameter in network.named_parameters():
        expected = facts["gradients"][key]
        if expected is None:
            assert parameter.grad is None and not parameter.requires_grad, key
        else:
            assert parameter.grad is not None, key
            assert abs(parameter.grad.norm().item() - expected) <= 2e-3 * expected + 1e-7, key


def test_other_outputs_of_the_originals(outputs):
    plain = filled(VMUNetV2(drop_path_rate=0.0, deep_supervision=False)).eval()
    with torch.inference_mode():
        ours = plain.predict(image("vmunetv2", (2, 3, 64, 64))).numpy()
    assert np.abs(ours - outputs["vmunetv2_plain"]).max() < 3e-4 * outputs["vmunetv2_plain"].std()
    wide = filled(UltraLightVMUNet()).eval()
    with torch.inference_mode():
        ours = wide.predict(image("wide", (1, 3, 64, 96))).numpy()
    assert np.abs(ours - outputs["ultralight_wide"]).max() < 3e-4 * outputs["ultralight_wide"].std()


@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_and_several_classes(name):
    network = {"vmunetv2": VMUNetV2, "ultralight": UltraLightVMUNet}[name](num_classes=3)
    logits = network(torch.rand(2, 1, 45, 70))
    assert logits.shape == (2, 3, 45, 70)
    logits.sum().backward()


def test_a_token_depends_on_those_before_it_only():
    torch.manual_seed(0)
    block, tokens = Mamba(8, 4, "auto"), torch.rand(1, 12, 8)
    changed = tokens.clone()
    changed[:, 7] += 1
    difference = (block(tokens) - block(changed)).abs().amax((0, 2))
    assert (difference[:7] == 0).all() and (difference[7:] > 0).all()


def test_refused_sizes():
    with pytest.raises(ValueError, match=r"vmunetv2: found depths \[2, 2\]"):
        VMUNetV2(depths=(2, 2))
    with pytest.raises(ValueError, match=r"ultralight: found dims \[8, 16, 24, 32, 48, 63\]"):
        UltraLightVMUNet(dims=(8, 16, 24, 32, 48, 63))
