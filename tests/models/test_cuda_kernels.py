"""The CUDA kernels' own source on an emulated GPU, against double precision and with the threads in both orders.

What it can not show (speed, registers, memory of other blocks) `benchmarks/gpu.py --check` does on a real one."""

import pytest
import torch

from benchmarks.on_gpu import correctness
from models.cross_scan import reference
from models.cross_scan.cuda import cuda_scan
from models.kernels import conv_silu, layer_norm, nvrtc
from tests.emulated_gpu import EmulatedGPU, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = correctness.TOLERANCE | {FP16: (1e-3, 5e-3)}  # sums over channels are bfloat16 on their way


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    gpu = EmulatedGPU(tmp_path_factory.mktemp("kernels"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "functions", gpu.functions)
        patch.setattr(nvrtc, "launch", gpu.launch)
        yield gpu


def make_inputs(b, H, W, I, R, dtype):
    """The gated scan's inputs."""
    torch.manual_seed(0)
    inputs = reference.make_inputs(b, H, W, I, cuda_scan.STATES, R)
    both = torch.randn(b, H, W, 2 * I).to(dtype)
    maps = {name: getattr(inputs, name).to(dtype) for name in ("x", "dt", "B", "C")}
    return inputs._replace(**maps).gated(both[..., I:], 1 + 0.1 * torch.randn(I), 0.1 * torch.randn(I))


@pytest.mark.parametrize(
    "b, H, W, I, R, dtype, chunks",
    [
        (1, 5, 7, 64, 6, FP32, 1),
        (2, 9, 10, 64, 12, BF16, 3),
        (1, 4, 5, 64, 48, BF16, 1),
        (2, 6, 7, 32, 6, BF16, 1),
        (1, 9, 8, 32, 24, BF16, 3),
        (1, 5, 5, 32, 5, BF16, 1),
        (1, 13, 5, 32, 24, FP16, 3),
        (1, 1, 65, 32, 3, FP32, 3),
    ],
)
def test_the_scan_with_norm_and_gate(emulated, b, H, W, I, R, dtype, chunks):
    inputs, grad = make_inputs(b, H, W, I, R, dtype), torch.randn(b, H, W, I).to(dtype)
    assert cuda_scan.fits(inputs.scan()) and cuda_scan.CUDAProblem(inputs.scan(), inputs.projected).chunks == chunks
    exact, exact_grads = correctness.gated_in_double(inputs, grad)
    runs = []
    for emulated.reversed in (False, True):
        out, y, saved = cuda_scan.gated_forward(inputs, correctness.EPS)
        unsaved, *_ = cuda_scan.gated_forward(inputs, correctness.EPS, save=False)
        grads = cuda_scan.gated_backward(grad, y, saved, inputs, correctness.EPS)
        assert torch.equal(out, unsaved)
        runs.append((out, *grads))
    assert all(torch.equal(there, back) for there, back in zip(*runs, strict=True))
    errors = correctness.errors_by_name(grads, exact_grads)
    forward, backward = TOLERANCE[dtype]
    assert correctness.relative(out, exact) < forward and errors[correctness.worst_of(errors)] < backward, errors


@pytest.mark.parametrize("threads_reversed", [False, True])
@pytest.mark.parametrize(
    "channels, x, y", [(8, FP32, BF16), (24, BF16, FP32), (40, FP16, FP16), (96, FP32, FP32), (768, BF16, BF16)]
)
def test_layer_norm(emulated, channels, x, y, threads_reversed):
    emulated.reversed = threads_reversed
    row = correctness.check_layer_norm((37, channels), x, y, "cpu")
    assert row["ok"] == "ok", row


@pytest.mark.parametrize("threads_reversed", [False, True])
@pytest.mark.parametrize("shape, dtype", [((2, 7, 5, 70), FP32), ((3, 1, 9, 32), BF16), ((1, 4, 6, 66), FP16)])
def test_the_convolution_with_silu(emulated, shape, dtype, threads_reversed):
    emulated.reversed = threads_reversed
    row = correctness.check_convolution(shape, dtype, "cpu")
    assert row["ok"] == "ok", row


@pytest.mark.parametrize("layer", ["LayerNorm", "convolution"])
def test_the_layers_are_once_differentiable(emulated, layer):
    x, bias = torch.randn(2, 3, 4, 32).requires_grad_(), torch.randn(32)
    if layer == "LayerNorm":
        y = layer_norm.layer_norm(x, bias, bias, 1e-5, FP32)
    else:
        y = conv_silu.convolve(x, torch.randn(32, 1, 3, 3), bias)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(first.sum() + x.sum(), x)


@pytest.mark.parametrize(
    "line",
    [
        "    finish_copies();\n",
        "weight, lane, warp, step, last);\n        __syncthreads();\n        {",
        "            __syncthreads();  // the sums are done, parts takes their place\n",
        "        }\n        __syncthreads();\n        if (MATRIX) step_gradients",
        "        }\n        __syncthreads();\n        constexpr int PER",
    ],
    ids=["copy", "steps", "parts", "gradients", "sums"],
)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_missing_barrier_is_noticed(emulated, line, dtype, monkeypatch, tmp_path):
    source = cuda_scan.SCAN.source.read_text(encoding="utf-8")
    assert source.count(line) == 1
    slip = tmp_path / f"{tmp_path.name}.cu"
    slip.write_text(source.replace(line, line.replace("__syncthreads();", "").replace("finish_copies();", "")), "utf-8")
    scan = make_inputs(1, 3, 6, 32, 6, dtype).scan()
    y, saved = cuda_scan.forward(scan)
    monkeypatch.setattr(cuda_scan.SCAN, "source", slip)
    runs = []
    for emulated.reversed in (False, True):
        try:
            runs.append(cuda_scan.backward(torch.ones_like(y), saved, scan))
        except AssertionError as error:
            assert str(error) == "copies were not waited for"
            return
    assert not all(torch.equal(there, back) for there, back in zip(*runs, strict=True) if there is not None)
