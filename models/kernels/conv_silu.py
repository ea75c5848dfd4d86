"""SiLU of a depthwise 3x3 convolution, as SS2D has it; on NVIDIA GPUs in one CUDA kernel, its backward in two.

cuDNN's convolution, the bias and SiLU pass six times over a map of all inner channels, their backward eight times;
these kernels pass over it two and five times."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cross_scan.operator import NAMESPACE, once_differentiable, transformed
from . import nvrtc
from .sum_parts import sum_parts

WARPS, CHANNELS = 8, 64  # rows and channels of a block of threads


def _error(device):
    weight, bias = torch.linspace(-1, 1, 36).view(4, 1, 3, 3), torch.ones(4)
    x = torch.linspace(-3, 3, 60).view(1, 3, 5, 4)
    convolved = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=4)
    found = convolve(*(t.to(device) for t in (x, weight, bias))).cpu()
    return (found - F.silu(convolved).permute(0, 2, 3, 1)).abs().max().item()


NAMES = ("conv_silu_kernel", "conv_silu_backward_kernel", "conv_transposed_kernel")
KERNELS = nvrtc.LayerKernels(Path(__file__).with_suffix(".cu"), NAMES, "depthwise convolution", _error)


def conv_silu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return SiLU(conv(x)) of a channels-last map (B, H, W, I) by a depthwise convolution of kernel 3 and padding 1."""
    fits = x.is_cuda and x.dtype in nvrtc.ELEMENTS and x.shape[-1] % 2 == 0 and conv.weight.dtype == torch.float32
    if fits and not transformed() and KERNELS.work(str(x.device)):
        assert conv.bias is not None
        return convolve(x, conv.weight, conv.bias)
    return F.silu(conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


def programs(dtype: torch.dtype) -> list[nvrtc.Program]:
    """Return what is compiled for maps of a dtype, after what the self-test needs."""
    return [(KERNELS.source, defines(one)) for one in (torch.float32, dtype)]


def defines(dtype: torch.dtype) -> nvrtc.Defines:
    """Return the macros that the kernels are compiled with."""
    return (("ELEMENT", nvrtc.ELEMENTS[dtype]),)


@torch.library.custom_op(f"{NAMESPACE}::convolve", mutates_args=())
def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return SiLU of the convolution of x (B, H, W, I) with weight (I, 1, 3, 3), float32, with zeros as padding."""
    x = nvrtc.aligned(x)
    out = torch.empty_like(x)
    _launch("conv_silu_kernel", x, x, weight.contiguous(), bias.contiguous(), out)
    return out


@convolve.register_fake
def _(x, weight, bias):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{NAMESPACE}::convolve_backward", mutates_args=())
def convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    x, weight = nvrtc.aligned(x), weight.contiguous()
    I = x.shape[-1]
    d_sum, dx = torch.empty_like(x), torch.empty_like(x)
    parts = x.new_empty(-(-x.shape[0] * x.shape[1] // WARPS), 10, I, dtype=torch.float32)
    _launch("conv_silu_backward_kernel", x, nvrtc.aligned(grad), x, weight, bias.contiguous(), d_sum, parts)
    _launch("conv_transposed_kernel", x, d_sum, weight, dx)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    sum_parts(parts, d_weight, d_bias)
    return dx, d_weight, d_bias


@convolve_backward.register_fake
def _(grad, x, weight, bias):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), torch.empty_like(bias)


def _launch(name, x, *tensors):
    B, H, W, I = x.shape
    grid = (-(-B * H // WARPS), -(-I // CHANNELS), 1)
    KERNELS.launch(name, x, defines(x.dtype), grid, 32 * WARPS, (*tensors, B * H, H, W, I))


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return convolve_backward(grad, *ctx.saved_tensors)


convolve.register_autograd(_backward, setup_context=_setup)
convolve_backward.register_autograd(once_differentiable)
