"""Backend "mamba_ssm": the CUDA selective scan of the package mamba_ssm, the four directions as groups of channels.

Its kernel wants sequences (b, channels, L), so the four orders are copied out and the results copied back."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from .operator import once_differentiable
from .reference import scan_order

INSTALL = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install mamba_ssm --no-build-isolation"


def selective_scan_fn() -> Callable[..., Tensor]:
    """Import mamba_ssm's differentiable scan. Raises ImportError, also without its CUDA extension."""
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if the package can scan there, otherwise the reason."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 and float16, not {dtype}"
    try:
        selective_scan_fn()
    except ImportError as error:
        return f"{error} ({INSTALL})"
    return None


def scan(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, dt_weight: Tensor | None = None
) -> Tensor:
    """Return the scan, (b, H, W, I), of x (b, H, W, I), dt (b, H, W, 4, R or I), B and C (b, H, W, 4, N), A (4, I, N),
    D and dt_bias (4, I), dt_weight (4, I, R) or None."""
    b, H, W, I = x.shape
    order = scan_order(H, W, x.device)
    k = torch.arange(4, device=x.device)[:, None]
    if dt_weight is not None:
        dt = torch.einsum("bhwkr,kir->bhwki", dt, dt_weight.to(dt.dtype))
    u = x.flatten(1, 2)[:, order].transpose(2, 3)  # (b, 4, I, L)
    dt, B, C = (t.flatten(1, 2)[:, order, k].transpose(2, 3).contiguous() for t in (dt, B, C))  # (b, 4, I or N, L)
    u, dt = u.flatten(1, 2), dt.flatten(1, 2)
    A, D, dt_bias = (t.flatten(0, 1).contiguous() for t in (A, D, dt_bias))
    y = selective_scan_fn()(u, dt, A, B, C, D, delta_bias=dt_bias, delta_softplus=True)
    if y.requires_grad:  # its backward is not an operator, so second derivatives would silently lack a term
        y.register_hook(lambda _: once_differentiable() if torch.is_grad_enabled() else None)
    y = y.view(b, 4, I, H * W).transpose(2, 3)[:, k, order.argsort(1)].float()  # (b, 4, L, I), pixel order
    return (y[:, 0] + y[:, 2] + y[:, 1] + y[:, 3]).view(x.shape).to(x.dtype)
