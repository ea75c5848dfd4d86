"""LayerNorm over the last axis; on NVIDIA GPUs in one CUDA kernel for each direction.

PyTorch's kernels give every row a block of threads of its own, which at the network's end, with two million rows of 24
channels in a batch, cost more than all its matmuls. Here a warp takes as many rows as fill it."""

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cross_scan import nvrtc
from ..cross_scan.backends import constant_for_compiler
from ..cross_scan.sum_parts import sum_parts
from ..operators import operator, register_backward, register_fake

SOURCE = Path(__file__).with_suffix(".cu")
KERNELS = ("layer_norm_kernel", "layer_norm_backward_kernel")
MOST_CHANNELS = 3072  # whose sums fit into 48 KiB
TESTED_CHANNELS = 24
BLOCKS = 528  # that share all rows in the backward: four for each multiprocessor of the largest GPUs


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm for channels-last maps, (..., C) -> (..., C).

    for_matmul: the result goes to a matmul and nowhere else. Under autocast it then already has the matmul's dtype,
    instead of float32 that autocast would round to it in a pass of its own."""

    def __init__(self, channels: int, for_matmul: bool = False):
        super().__init__(channels)
        self.for_matmul = for_matmul

    def forward(self, x: Tensor) -> Tensor:
        fits = x.is_cuda and x.dtype in nvrtc.ELEMENTS and x.shape[-1] % 8 == 0 and x.shape[-1] <= MOST_CHANNELS
        if not fits or self.weight.dtype != torch.float32 or not kernels_work(str(x.device)):
            return super().forward(x)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast and self.for_matmul else x.dtype
        if autocast and not self.for_matmul:
            dtype = torch.float32  # as autocast's own LayerNorm
        return layer_norm(x, self.weight, self.bias, self.eps, dtype)


def compile_ahead(norms: Iterable[LayerNorm], dtype: torch.dtype, device: torch.device) -> None:
    """Begins to compile what these layers, and the self-test, will need under autocast to a dtype. Their inputs can be
    of that dtype or float32, which depends on what is before them."""
    wanted = {defines(TESTED_CHANNELS, torch.float32, torch.float32): None}  # a dict, which keeps the order
    for norm, x in itertools.product(norms, (torch.float32, dtype)):
        wanted[defines(norm.weight.numel(), x, dtype if norm.for_matmul else torch.float32)] = None
    for one in wanted:
        nvrtc.compile_ahead(SOURCE, one, nvrtc.capability(device))


def defines(channels: int, x: torch.dtype, result: torch.dtype) -> nvrtc.Defines:
    """What the kernels are compiled for."""
    return ("C", channels), ("X", nvrtc.ELEMENTS[x]), ("Y", nvrtc.ELEMENTS[result])


@constant_for_compiler
def kernels_work(device: str) -> bool:
    """Whether the kernels run there and agree with PyTorch on a tiny input. The log says why not."""
    return _try_kernels(device)


@functools.cache
def _try_kernels(device):
    return nvrtc.agree("LayerNorm", device, _error)


def _error(device):
    x = torch.arange(2.0 * TESTED_CHANNELS).view(2, -1)
    weight, bias = torch.ones(TESTED_CHANNELS, device=device), torch.zeros(TESTED_CHANNELS, device=device)
    found = layer_norm(x.to(device), weight, bias, 1e-5, x.dtype).cpu()
    return (found - F.layer_norm(x, (TESTED_CHANNELS,))).abs().max().item()


@operator
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm of x (..., C) in float32, rounded to `dtype`."""
    x = nvrtc.aligned(x)
    out = torch.empty_like(x, dtype=dtype)
    rows = x.numel() // x.shape[-1]
    _launch("layer_norm_kernel", x, dtype, -(-rows // rows_of_block(x, dtype)), x, weight, bias, out, rows, float(eps))
    return out


@register_fake(layer_norm)
def _(x, weight, bias, eps, dtype):
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@operator
def layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    x, grad = nvrtc.aligned(x), nvrtc.aligned(grad)
    dx = torch.empty_like(x)
    rows = x.numel() // x.shape[-1]
    blocks = min(BLOCKS, -(-rows // rows_of_block(x, grad.dtype)))
    parts = x.new_empty(blocks, 2, x.shape[-1], dtype=torch.float32)  # of weight and bias
    _launch("layer_norm_backward_kernel", x, grad.dtype, blocks, grad, x, weight, dx, parts, rows, float(eps))
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(weight)
    sum_parts(parts, d_weight, d_bias)
    return dx, d_weight, d_bias


@register_fake(layer_norm_backward)
def _(grad, x, weight, eps):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), torch.empty_like(weight)


def _setup(ctx, inputs, output):
    x, weight, _bias, ctx.eps, _dtype = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    return *layer_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None, None


register_backward(layer_norm, _backward, _setup)


def warps_of_block(channels: int) -> int:
    """As the kernels have it."""
    return 8 if channels <= 384 else 4 if channels <= 768 else 2


def rows_of_block(x: Tensor, result: torch.dtype) -> int:
    """Rows that a block of threads has at a time; as the kernels have it."""
    channels = x.shape[-1]
    vectors = channels // (4 if torch.float32 in (x.dtype, result) else 8)
    group = min(32, 1 << (vectors - 1).bit_length())
    return warps_of_block(channels) * 32 // group


def _launch(name, x, result, blocks, *arguments):
    with torch.cuda.device_of(x):
        kernels = nvrtc.functions(SOURCE, KERNELS, defines(x.shape[-1], x.dtype, result), x.device.index)
        nvrtc.launch(kernels[name], (blocks, 1, 1), 32 * warps_of_block(x.shape[-1]), arguments)
