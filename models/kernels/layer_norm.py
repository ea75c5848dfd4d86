"""LayerNorm over the last axis; on NVIDIA GPUs in one CUDA kernel for each direction.

PyTorch's kernels give every row a block of threads of its own. At the network's end, with two million rows of 24
channels in a batch, that costs more than all its matmuls. Here a warp takes as many rows as fill it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cross_scan.operator import NAMESPACE, once_differentiable, transformed
from . import nvrtc
from .sum_parts import sum_parts

TESTED_CHANNELS = 24


def _error(device):
    x = torch.arange(2.0 * TESTED_CHANNELS).view(2, -1)
    weight, bias = torch.ones(TESTED_CHANNELS, device=device), torch.zeros(TESTED_CHANNELS, device=device)
    found = layer_norm(x.to(device), weight, bias, 1e-5, x.dtype).cpu()
    return (found - F.layer_norm(x, (TESTED_CHANNELS,))).abs().max().item()


NAMES = ("layer_norm_kernel", "layer_norm_backward_kernel")
KERNELS = nvrtc.LayerKernels(Path(__file__).with_suffix(".cu"), NAMES, "LayerNorm", _error)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm for channels-last maps, (..., C) -> (..., C).

    for_matmul: a matmul, and nothing else, reads the result. Under autocast the result then has the matmul's dtype at
    once, instead of float32 that autocast would round to it in a pass of its own."""

    def __init__(self, channels: int, for_matmul: bool = False):
        super().__init__(channels)
        self.for_matmul = for_matmul

    def forward(self, x: Tensor) -> Tensor:
        fits = x.is_cuda and x.dtype in nvrtc.ELEMENTS and x.shape[-1] % 8 == 0 and x.shape[-1] <= nvrtc.MOST_CHANNELS
        fits = fits and self.weight.dtype == torch.float32 and not transformed()
        if not fits or not KERNELS.work(str(x.device)):
            return super().forward(x)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast and self.for_matmul else x.dtype
        if autocast and not self.for_matmul:
            dtype = torch.float32  # as autocast's own LayerNorm
        return layer_norm(x, self.weight, self.bias, self.eps, dtype)

    def programs(self, dtype: torch.dtype, trains: bool) -> list[nvrtc.Program]:
        """Return what is compiled for this layer under autocast to a dtype, after what the self-test needs. The dtype
        of its inputs, this one or float32, depends on what is before it."""
        result = dtype if self.for_matmul else torch.float32
        wanted = [defines(TESTED_CHANNELS, torch.float32, torch.float32)]
        wanted += [defines(self.weight.numel(), x, result) for x in (torch.float32, dtype)]
        return [(KERNELS.source, one) for one in wanted]


def defines(channels: int, x: torch.dtype, result: torch.dtype) -> nvrtc.Defines:
    """Return the macros that the kernels are compiled with."""
    return ("C", channels), ("X", nvrtc.ELEMENTS[x]), ("Y", nvrtc.ELEMENTS[result])


@torch.library.custom_op(f"{NAMESPACE}::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return LayerNorm of x (..., C), computed in float32 and rounded to `dtype`."""
    x = nvrtc.aligned(x)
    out = torch.empty_like(x, dtype=dtype)
    rows = x.numel() // x.shape[-1]
    _launch("layer_norm_kernel", x, dtype, -(-rows // rows_of_block(x, dtype)), x, weight, bias, out, rows, float(eps))
    return out


@layer_norm.register_fake
def _(x, weight, bias, eps, dtype):
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{NAMESPACE}::layer_norm_backward", mutates_args=())
def layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    x, grad = nvrtc.aligned(x), nvrtc.aligned(grad)
    dx = torch.empty_like(x)
    rows = x.numel() // x.shape[-1]
    blocks = min(nvrtc.MOST_BLOCKS, -(-rows // rows_of_block(x, grad.dtype)))
    parts = x.new_empty(blocks, 2, x.shape[-1], dtype=torch.float32)  # of weight and bias
    _launch("layer_norm_backward_kernel", x, grad.dtype, blocks, grad, x, weight, dx, parts, rows, float(eps))
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(weight)
    sum_parts(parts, d_weight, d_bias)
    return dx, d_weight, d_bias


@layer_norm_backward.register_fake
def _(grad, x, weight, eps):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), torch.empty_like(weight)


def _setup(ctx, inputs, output):
    x, weight, _bias, ctx.eps, _dtype = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    return *layer_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None, None


layer_norm.register_autograd(_backward, setup_context=_setup)
layer_norm_backward.register_autograd(once_differentiable)


def rows_of_block(x: Tensor, result: torch.dtype) -> int:
    """Return how many rows a block of threads takes at a time, as the kernels have it."""
    channels = x.shape[-1]
    vectors = channels // (4 if torch.float32 in (x.dtype, result) else 8)
    group = min(32, 1 << (vectors - 1).bit_length())
    return nvrtc.warps_of_block(channels) * 32 // group


def _launch(name, x, result, blocks, *arguments):
    threads = 32 * nvrtc.warps_of_block(x.shape[-1])
    KERNELS.launch(name, x, defines(x.shape[-1], x.dtype, result), (blocks, 1, 1), threads, arguments)
