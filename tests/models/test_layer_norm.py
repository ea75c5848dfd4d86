"""The channels-last LayerNorm: on CPUs PyTorch's, on GPUs Triton's, which run here in the interpreter."""

import json

import pytest
import torch
import torch.nn.functional as F

import models.vmunet.layer_norm as layer_norm_module
from models.cross_scan import triton_scan
from models.vmunet.layer_norm import LayerNorm, kernels_work, layer_norm, layer_norm_backward
from tests.interpreter import run_interpreted

CASES = {  # shape, dtype of the input, of the output
    "fewer channels than a power of two": ((2, 3, 5, 24), torch.float32, torch.float32),
    "more rows than a program holds": ((150, 24), torch.float32, torch.float32),
    "one row": ((1, 96), torch.float32, torch.float32),
    "rounded to 16 bits": ((3, 4, 40), torch.float32, torch.float16),
    "16 bits in": ((3, 4, 40), torch.float16, torch.float32),
}
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def errors(shape, dtype, out):
    random = torch.Generator().manual_seed(0)
    x = (3 + 2 * torch.randn(shape, generator=random)).to(dtype)
    weight, bias = (torch.randn(shape[-1], generator=random) for _ in range(2))
    grad = torch.randn(shape, generator=random).to(out)
    y = layer_norm(x, weight, bias, 1e-5, out)
    assert y.dtype == out
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = F.layer_norm(leaves[0], shape[-1:], leaves[1], leaves[2], 1e-5)
    wanted = torch.autograd.grad(expected, leaves, grad.double())
    found = layer_norm_backward(grad, x, weight, 1e-5)
    return [relative(*pair) for pair in zip((y, *found), (expected, *wanted), strict=True)]


@pytest.fixture(scope="module")
def interpreted():
    if triton_scan.IMPORT_ERROR is not None:
        pytest.skip(f"needs Triton: {triton_scan.IMPORT_ERROR}")
    return run_interpreted(__file__)


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_double_precision(interpreted, case):
    y, dx, d_weight, d_bias = interpreted[case]
    _, dtype, out = CASES[case]
    assert y <= TOLERANCE[out] and dx <= TOLERANCE[dtype]
    assert d_weight <= 1e-6 and d_bias <= 1e-6


def test_on_a_cpu_it_is_pytorchs():
    norm = LayerNorm(24, for_matmul=True)
    x = torch.randn(2, 3, 24)
    assert torch.equal(norm(x), F.layer_norm(x, (24,)))


def test_without_a_c_compiler_it_is_pytorchs_and_the_log_says_so(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(layer_norm_module, "layer_norm", fail)
    layer_norm_module._try_kernels.cache_clear()
    choose = torch.compile(lambda x: x + kernels_work("cpu"), backend="eager", fullgraph=True)  # a constant for it
    assert torch.equal(choose(torch.zeros(2)), torch.zeros(2))
    layer_norm_module._try_kernels.cache_clear()
    assert caplog.text.count("ended with RuntimeError: Failed to find C compiler.") == 1


if __name__ == "__main__":
    assert kernels_work("cpu")
    print(json.dumps({case: errors(*arguments) for case, arguments in CASES.items()}))
