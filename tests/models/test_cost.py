import copy
import json

import pytest
import torch

from models.cost import measure_cost
from models.vmunet import VMUNet
from tests.tiny import NETWORK


@pytest.fixture(scope="module")
def cost():
    return measure_cost(VMUNet(), 256, 256)


def test_published_figures(cost):
    """thop's numbers for the original, taken by running it."""
    assert cost.published_macs == 4_111_859_712
    assert cost.published_parameters == 22_037_737


def test_published_figures_of_nine_classes():
    cost = measure_cost(VMUNet(num_classes=9), 256, 256)
    assert (cost.parameters, cost.published_macs, cost.published_parameters) == (27_427_761, 4_124_442_624, 22_037_937)


def test_true_cost(cost):
    assert cost.parameters == 27_427_561
    assert cost.matmul_macs == 5_288_361_984
    assert cost.scan_flops == 9 * 327_155_712 + 2 * 20_447_232
    assert cost.flops == 13_617_070_080


@pytest.mark.parametrize("case, num_classes, size", [("synapse_224", 9, 224), ("isic_64", 1, 64)])
def test_other_sizes_match_the_analytic_count(shared, case, num_classes, size):
    golden = json.loads((shared / "oracle/golden/flops.json").read_text(encoding="utf-8"))[case]
    cost = measure_cost(VMUNet(num_classes=num_classes), size, size)
    assert cost.matmul_macs == golden["dense_macs"]
    assert cost.scan_flops == golden["scan_flops_9BLDN_plus_D"]
    assert cost.flops == golden["total_flops"]


def test_the_sentence_names_both_counts(cost):
    text = str(cost)
    assert "27.43 M" in text and "13.62 GFLOP" in text and "4.11 G" in text and "5.29 G" in text


def test_measuring_leaves_the_model_alone():
    model = VMUNet(**NETWORK).train()
    before = copy.deepcopy(model.state_dict())
    measure_cost(model, 64, 64)
    assert model.training and list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert {module.scan_backend for module in model.modules() if hasattr(module, "scan_backend")} == {"auto"}
