"""The channels-last LayerNorm and the convolution with SiLU: on CPUs PyTorch's, on GPUs CUDA kernels, which
`test_cuda_kernels.py` holds against double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.kernels import conv_silu as conv_silu_module
from models.kernels import layer_norm as layer_norm_module
from models.kernels.conv_silu import conv_silu
from models.kernels.layer_norm import LayerNorm


def test_on_a_cpu_layer_norm_is_pytorchs():
    norm = LayerNorm(24, for_matmul=True)
    x = torch.randn(2, 3, 24)
    assert torch.equal(norm(x), F.layer_norm(x, (24,)))


def test_on_a_cpu_the_convolution_is_pytorchs():
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    x = torch.randn(2, 4, 5, 6)
    found = conv_silu(x, conv)
    assert torch.equal(found, F.silu(conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1))


@pytest.mark.parametrize("module", [layer_norm_module, conv_silu_module])
def test_without_the_kernels_it_is_pytorchs_and_the_log_says_so(module, caplog):
    module.KERNELS.self_test.cache_clear()
    choose = torch.compile(lambda x: x + module.KERNELS.work("cpu"), backend="eager", fullgraph=True)
    assert torch.equal(choose(torch.zeros(2)), torch.zeros(2))  # a constant for the compiler
    module.KERNELS.self_test.cache_clear()
    assert caplog.text.count(f"{module.KERNELS.layer}: ") == 1


@pytest.mark.parametrize("module", [layer_norm_module, conv_silu_module])
def test_a_driver_that_fails_is_passed_over(module, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA: CUDA_ERROR_NO_BINARY_FOR_GPU")

    monkeypatch.setattr(module.nvrtc, "why_not", lambda device: None)
    monkeypatch.setattr(module.nvrtc, "functions", fail)
    module.KERNELS.self_test.cache_clear()
    assert not module.KERNELS.work("cpu")
    module.KERNELS.self_test.cache_clear()
    assert "RuntimeError: CUDA: CUDA_ERROR_NO_BINARY_FOR_GPU" in caplog.text


@pytest.mark.parametrize("operator", ["layer_norm", "conv_silu"])
def test_the_compiler_knows_the_operators_shapes(operator):
    with torch.device("meta"):
        x, weight, bias = torch.empty(2, 3, 4, 8), torch.empty(8, 1, 3, 3), torch.empty(8)
        if operator == "layer_norm":
            out = layer_norm_module.layer_norm(x, bias, bias, 1e-5, torch.bfloat16)
            grads = layer_norm_module.layer_norm_backward(out, x, bias, 1e-5)
            expected = (x, bias, bias)
            assert out.dtype == torch.bfloat16
        else:
            out = conv_silu_module.convolve(x, weight, bias)
            grads = conv_silu_module.convolve_backward(out, x, weight, bias)
            expected = (x, weight, bias)
    assert out.shape == x.shape
    assert [g.shape for g in grads] == [t.shape for t in expected]
