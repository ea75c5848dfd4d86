"""The cross-scan as a PyTorch operator: shapes for the compiler, gradients, a formula for FLOPs.

A backend is a module of this package with

    forward(inputs, save) -> y, saved                   saved: what its backward needs, empty without `save`
    backward(grad_y, saved, inputs) -> gradients        `inputs` and gradients are `ScanInputs`
    saved_shape(inputs) -> the shape of saved

(see `torch_loop.py` for the plainest one); this file is all that PyTorch knows of it. Operators take tensors one by
one; backends take them as one object. Gradients have their own operator so that a compiled training step calls it as
one piece too.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..operators import NAMESPACE, operator, register_backward, register_fake
from . import backends
from .inputs import GatedInputs, ScanInputs, by_name, present


@operator
def cross_scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor | None,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """y (b, H, W, I), and what the backend keeps for its backward (empty without `save`)."""
    inputs = ScanInputs(x, dt, B, C, A, D, dt_bias, dt_weight)
    return backends.load(backend).forward(inputs, save)


@register_fake(cross_scan)
def _(*args):
    *tensors, backend, save = args
    inputs = ScanInputs(*tensors)
    return inputs.x.new_empty(inputs.x.shape), _new_saved(inputs, backend, save)


def _new_saved(inputs: ScanInputs, backend: str, save: bool) -> Tensor:
    return inputs.A.new_empty(backends.load(backend).saved_shape(inputs) if save else (0,))


@operator
def cross_scan_backward(
    grad_y: Tensor,
    saved: Tensor,
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor | None,
    backend: str,
) -> list[Tensor]:
    """The gradients of the inputs, in their order; without `dt_weight` its gradient is left out."""
    inputs = ScanInputs(x, dt, B, C, A, D, dt_bias, dt_weight)
    return present(backends.load(backend).backward(grad_y, saved, inputs))


@register_fake(cross_scan_backward)
def _(_grad_y, _saved, *args):
    *tensors, _backend = args
    return [t.new_empty(t.shape) for t in present(tensors)]


def _setup(ctx, inputs, output):
    *tensors, ctx.backend, _save = inputs
    _y, saved = output
    ctx.save_for_backward(saved, *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, _grad_saved):
    grads = [None for _ in ScanInputs._fields]
    if grad_y is not None:
        saved, *tensors = ctx.saved_tensors
        inputs = ScanInputs(*tensors)
        grads = by_name(cross_scan_backward(grad_y, saved, *inputs, ctx.backend), inputs)
    return *grads, None, None  # of backend and save


register_backward(cross_scan, _backward, _setup)


# ---- the same with the LayerNorm and the gate that follow, for backends that fuse them:
#
#   gated_forward(inputs, eps, save) -> output, y, saved
#   gated_backward(grad, y, saved, inputs, eps) -> gradients        `inputs` and gradients are `GatedInputs`


@operator
def gated_cross_scan(
    x: Tensor,
    z: Tensor,
    projected: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(scan) * SiLU(z), the scan, and what the backend keeps (the last two empty without `save`)."""
    inputs = GatedInputs(x, z, projected, A, D, dt_bias, dt_weight, norm_weight, norm_bias)
    return backends.load(backend).gated_forward(inputs, eps, save)


@register_fake(gated_cross_scan)
def _(*args):
    *tensors, _eps, backend, save = args
    inputs = GatedInputs(*tensors)
    x = inputs.x
    return x.new_empty(x.shape), x.new_empty(x.shape if save else (0,)), _new_saved(inputs.scan, backend, save)


@operator
def gated_cross_scan_backward(
    grad: Tensor,
    y: Tensor,
    saved: Tensor,
    x: Tensor,
    z: Tensor,
    projected: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    backend: str,
) -> list[Tensor]:
    """The gradients of the tensors, in their order; without `dt_weight` its gradient is left out."""
    inputs = GatedInputs(x, z, projected, A, D, dt_bias, dt_weight, norm_weight, norm_bias)
    return present(backends.load(backend).gated_backward(grad, y, saved, inputs, eps))


@register_fake(gated_cross_scan_backward)
def _(_grad, _y, _saved, *args):
    *tensors, _eps, _backend = args
    return [t.new_empty(t.shape) for t in present(tensors)]


def _gated_setup(ctx, inputs, output):
    *tensors, ctx.eps, ctx.backend, _save = inputs
    _out, y, saved = output
    ctx.save_for_backward(y, saved, *tensors)
    ctx.set_materialize_grads(False)


def _gated_backward(ctx, grad, _grad_y, _grad_saved):
    grads = [None for _ in GatedInputs._fields]
    if grad is not None:
        y, saved, *tensors = ctx.saved_tensors
        inputs = GatedInputs(*tensors)
        grads = by_name(gated_cross_scan_backward(grad, y, saved, *inputs, ctx.eps, ctx.backend), inputs)
    return *grads, None, None, None  # of eps, backend and save


register_backward(gated_cross_scan, _gated_backward, _gated_setup)


# ---- costs. The formulas get shapes where the operators have tensors


def recurrence_flops(tokens: int, channels: int, states: int) -> int:
    """Nine operations for each state update, of which a token has one for every direction, channel and state, and two
    for the skip of each direction and channel."""
    return tokens * 4 * channels * (9 * states + 2)


def _flops(shapes: Any) -> int:
    """Of `ScanInputs` or `GatedInputs` of shapes: the recurrence, and the matmul that makes the steps."""
    *pixels, channels = shapes.x
    tokens = math.prod(pixels)
    matmul = 0 if shapes.dt_weight is None else 2 * tokens * math.prod(shapes.dt_weight)
    return recurrence_flops(tokens, channels, states=shapes.A[-1]) + matmul


operators = getattr(torch.ops, NAMESPACE)


@register_flop_formula(operators.cross_scan)
def _(*args, **_kwargs):
    *shapes, _backend, _save = args
    return _flops(ScanInputs(*shapes))


@register_flop_formula(operators.cross_scan_backward)
def _(_grad_y, _saved, *args, **_kwargs):
    *shapes, _backend = args
    # the states are computed again, then each update is walked back through its two factors
    return 3 * _flops(ScanInputs(*shapes))


@register_flop_formula(operators.gated_cross_scan)
def _(*args, **_kwargs):
    *shapes, _eps, _backend, _save = args
    return _flops(GatedInputs(*shapes))


@register_flop_formula(operators.gated_cross_scan_backward)
def _(_grad, _y, _saved, *args, **_kwargs):
    *shapes, _eps, _backend = args
    return 3 * _flops(GatedInputs(*shapes))
