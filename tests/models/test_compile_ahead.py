"""Which kernels are compiled before they are wanted. That no others are wanted shows on a GPU, as a wait."""

import pytest
import torch

from models.compile_ahead import compile_ahead
from models.cross_scan.cuda import cuda_scan
from models.kernels import conv_silu, layer_norm, nvrtc
from models.vmunet import VMUNet

SMALL = dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), depths_decoder=(1, 1, 1, 1))


@pytest.fixture
def begun(monkeypatch):
    """What was begun to be compiled: [(source, defines)]."""
    begun = []
    monkeypatch.setattr(nvrtc, "why_not", lambda device: None)
    monkeypatch.setattr(nvrtc, "capability", lambda device: 90)
    monkeypatch.setattr(nvrtc, "compile_ahead", lambda source, defines, capability: begun.append((source, defines)))
    return begun


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_norm_has_its_kernel_for_the_types_that_autocast_gives_it(begun, dtype, monkeypatch):
    network = VMUNet(**SMALL)
    compile_ahead(network, dtype, torch.device("cuda"), trains=True)
    used = set()
    usual = layer_norm.LayerNorm.forward

    def forward(norm, x):
        result = dtype if norm.for_matmul else torch.float32  # as on a GPU
        used.add(layer_norm.defines(norm.weight.numel(), x.dtype, result))
        return usual(norm, x).to(result)

    monkeypatch.setattr(layer_norm.LayerNorm, "forward", forward)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        network(torch.zeros(1, 3, 64, 64))
    of_self_test = layer_norm.defines(layer_norm.TESTED_CHANNELS, torch.float32, torch.float32)
    of_norms = {defines for source, defines in begun if source == layer_norm.KERNELS.source}
    assert used | {of_self_test} <= of_norms and len(of_norms) <= 2 * len(used) + 1


def test_the_self_tests_come_first_and_nothing_is_compiled_twice(begun):
    compile_ahead(VMUNet(**SMALL), torch.bfloat16, torch.device("cuda"), trains=True)
    assert [source for source, _ in begun[:2]] == [cuda_scan.SCAN.source, cuda_scan.AROUND.source]
    assert dict(begun[0][1])["R"] == 4
    assert {dict(defines)["ELEMENT"] for source, defines in begun if source == conv_silu.KERNELS.source} == {
        "float",
        "bf16",
    }
    assert len(begun) == len(set(begun))


def test_without_a_gpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(nvrtc, "compile_ahead", None)
    compile_ahead(VMUNet(**SMALL), torch.float32, torch.device("cpu"), trains=True)
