"""The cross-scan as a PyTorch operator: shapes for the compiler, gradients, a formula for FLOPs.

A backend is a module of this package with `forward`, `backward` and `saved_shape` (see `torch_loop.py` for the plainest
one); this file is all that PyTorch knows of it. Gradients have their own operator so that a compiled training step
calls it as one piece too.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from . import backends


@torch.library.custom_op("vmunet::cross_scan", mutates_args=())
def cross_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    dt_weight: torch.Tensor | None,
    backend: str,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (b, H, W, I), and what the backend keeps for its backward (empty without `save`)."""
    return backends.load(backend).forward(x, dt, B, C, A, D, dt_bias, dt_weight, save=save)


@cross_scan.register_fake
def _(x, dt, B, C, A, D, dt_bias, dt_weight, backend, save):
    shape = backends.load(backend).saved_shape(*x.shape, A.shape[-1]) if save else (0,)
    return x.new_empty(x.shape), A.new_empty(shape)


@torch.library.custom_op("vmunet::cross_scan_backward", mutates_args=())
def cross_scan_backward(
    grad_y: torch.Tensor,
    saved: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    dt_weight: torch.Tensor | None,
    backend: str,
) -> list[torch.Tensor]:
    """The gradients of the inputs, in their order; without `dt_weight` its gradient is left out."""
    grads = backends.load(backend).backward(grad_y, saved, x, dt, B, C, A, D, dt_bias, dt_weight)
    return [grad for grad in grads if grad is not None]


@cross_scan_backward.register_fake
def _(grad_y, saved, x, dt, B, C, A, D, dt_bias, dt_weight, backend):
    inputs = (x, dt, B, C, A, D, dt_bias, dt_weight)
    return [t.new_empty(t.shape) for t in inputs if t is not None]


def _setup(ctx, inputs, output):
    *tensors, ctx.backend, _save = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, _grad_saved):
    if grad_y is None:
        return (None,) * 10
    saved, *tensors = ctx.saved_tensors
    grads = cross_scan_backward(grad_y, saved, *tensors, ctx.backend)
    return *grads, *[None] * (10 - len(grads))


cross_scan.register_autograd(_backward, setup_context=_setup)


# ---- the same with the LayerNorm and the gate that follow, for backends that fuse them


@torch.library.custom_op("vmunet::gated_cross_scan", mutates_args=())
def gated_cross_scan(
    x: torch.Tensor,
    z: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    dt_weight: torch.Tensor | None,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    backend: str,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerNorm(scan) * SiLU(z), the scan, and what the backend keeps (the last two empty without `save`)."""
    inputs = (x, z, dt, B, C, A, D, dt_bias, dt_weight, norm_weight, norm_bias)
    return backends.load(backend).gated_forward(*inputs, eps, save=save)


@gated_cross_scan.register_fake
def _(x, z, dt, B, C, A, D, dt_bias, dt_weight, norm_weight, norm_bias, eps, backend, save):
    shape = backends.load(backend).saved_shape(*x.shape, A.shape[-1]) if save else (0,)
    return x.new_empty(x.shape), x.new_empty(x.shape if save else (0,)), A.new_empty(shape)


@torch.library.custom_op("vmunet::gated_cross_scan_backward", mutates_args=())
def gated_cross_scan_backward(
    grad: torch.Tensor,
    y: torch.Tensor,
    saved: torch.Tensor,
    x: torch.Tensor,
    z: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    dt_weight: torch.Tensor | None,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    backend: str,
) -> list[torch.Tensor]:
    """The gradients of the tensors, in their order; without `dt_weight` its gradient is left out."""
    inputs = (x, z, dt, B, C, A, D, dt_bias, dt_weight, norm_weight, norm_bias)
    grads = backends.load(backend).gated_backward(grad, y, saved, *inputs, eps)
    return [grad for grad in grads if grad is not None]


@gated_cross_scan_backward.register_fake
def _(grad, y, saved, x, z, dt, B, C, A, D, dt_bias, dt_weight, norm_weight, norm_bias, eps, backend):
    inputs = (x, z, dt, B, C, A, D, dt_bias, dt_weight, norm_weight, norm_bias)
    return [t.new_empty(t.shape) for t in inputs if t is not None]


def _gated_setup(ctx, inputs, output):
    *tensors, ctx.eps, ctx.backend, _save = inputs
    ctx.save_for_backward(output[1], output[2], *tensors)
    ctx.set_materialize_grads(False)


def _gated_backward(ctx, grad, _grad_y, _grad_saved):
    if grad is None:
        return (None,) * 14
    y, saved, *tensors = ctx.saved_tensors
    grads = gated_cross_scan_backward(grad, y, saved, *tensors, ctx.eps, ctx.backend)
    if tensors[8] is None:
        grads.insert(8, None)
    return *grads, None, None, None


gated_cross_scan.register_autograd(_gated_backward, setup_context=_gated_setup)


# ---- costs


def _flops(x_shape, dt_shape, A_shape, dt_weight_shape):
    """Nine operations for each of the b L 4 I N state updates, two for the skip, two for each product of the steps."""
    tokens, I = x_shape[0] * x_shape[1] * x_shape[2], x_shape[3]
    products = 0 if dt_weight_shape is None else 2 * tokens * 4 * I * dt_shape[-1]
    return tokens * 4 * I * (9 * A_shape[-1] + 2) + products


@register_flop_formula(torch.ops.vmunet.cross_scan)
def _(x, dt, B, C, A, D, dt_bias, dt_weight, *args, **kwargs):
    return _flops(x, dt, A, dt_weight)


@register_flop_formula(torch.ops.vmunet.cross_scan_backward)
def _(grad_y, saved, x, dt, B, C, A, D, dt_bias, dt_weight, *args, **kwargs):
    # the states are computed again, then each update is walked back through its two factors
    return 3 * _flops(x, dt, A, dt_weight)


@register_flop_formula(torch.ops.vmunet.gated_cross_scan)
def _(x, z, dt, B, C, A, D, dt_bias, dt_weight, *args, **kwargs):
    return _flops(x, dt, A, dt_weight)


@register_flop_formula(torch.ops.vmunet.gated_cross_scan_backward)
def _(grad, y, saved, x, z, dt, B, C, A, D, dt_bias, dt_weight, *args, **kwargs):
    return 3 * _flops(x, dt, A, dt_weight)
