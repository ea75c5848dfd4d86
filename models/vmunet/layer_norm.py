"""LayerNorm over the last axis; on NVIDIA GPUs in one Triton kernel for each direction.

PyTorch's kernels give every row a block of threads of its own, which at the network's end, with two million rows of 24
channels in a batch, cost more than all its matmuls. Here a program takes as many rows as fill it."""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cross_scan import triton_scan
from ..cross_scan.backends import describe_failure
from ..cross_scan.operator import NAMESPACE

if triton_scan.IMPORT_ERROR is None:
    from . import layer_norm_kernels as kernels

log = logging.getLogger("vmunet")


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm for channels-last maps, (..., C) -> (..., C).

    for_matmul: the result goes to a matmul and nowhere else. Under autocast it then already has the matmul's dtype,
    instead of float32 that autocast would round to it in a pass of its own."""

    def __init__(self, channels: int, for_matmul: bool = False):
        super().__init__(channels)
        self.for_matmul = for_matmul

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda or x.dtype == torch.float64 or not kernels_work("cuda"):
            return super().forward(x)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast and self.for_matmul else x.dtype
        if autocast and not self.for_matmul:
            dtype = torch.float32  # as autocast's own LayerNorm
        return layer_norm(x, self.weight, self.bias, self.eps, dtype)


@torch.compiler.assume_constant_result
def kernels_work(device_type: str) -> bool:
    """Whether Triton's kernels run and agree with PyTorch's on a tiny input. The log says why not."""
    return _try_kernels(device_type)


@functools.cache
def _try_kernels(device_type):
    try:
        x = torch.arange(48.0, device=device_type).view(2, 24)
        weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
        error = (layer_norm(x, weight, bias, 1e-5, x.dtype) - F.layer_norm(x, (24,))).abs().max().item()
    except Exception as failure:  # without Triton, without the C compiler that it needs, or on a card it does not know
        log.warning("LayerNorm: PyTorch's, which is slower; Triton's ended with %s", describe_failure(failure))
        return False
    if not error < 1e-5:
        log.warning("LayerNorm: PyTorch's, which is slower; Triton's is off by %.1e", error)
    return error < 1e-5


@torch.library.custom_op(f"{NAMESPACE}::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm of x (..., C) in float32, rounded to `dtype`."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    rows, width, length, programs = _grid(x)
    with torch.cuda.device_of(x):
        kernels.layer_norm_kernel[(programs,)](
            x, weight, bias, out, rows, x.shape[-1], eps, BT=length, BI=width, num_warps=4
        )
    return out


@layer_norm.register_fake
def _(x, weight, bias, eps, dtype):
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{NAMESPACE}::layer_norm_backward", mutates_args=())
def layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    x, grad = x.contiguous(), grad.contiguous()
    dx = torch.empty_like(x)
    rows, width, length, programs = _grid(x, most=528)
    parts = x.new_empty(programs, 2, x.shape[-1], dtype=torch.float32)  # of weight and bias
    with torch.cuda.device_of(x):
        kernels.layer_norm_backward_kernel[(programs,)](
            grad, x, weight, dx, parts, rows, x.shape[-1], eps, BT=length, BI=width, num_warps=4
        )
    d_weight, d_bias = parts.sum(0).unbind(0)
    return dx, d_weight.clone(), d_bias.clone()


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


def _grid(x, most=None):
    """Rows, the power of two that holds their channels, rows of a step of a program, and programs."""
    rows, width = x.numel() // x.shape[-1], kernels.next_power_of_2(x.shape[-1])
    length = max(1, 2048 // width)
    programs = -(-rows // length)
    return rows, width, length, programs if most is None else min(most, programs)
