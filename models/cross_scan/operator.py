"""The cross-scan as a PyTorch operator: shapes for the compiler, gradients, a formula for FLOPs.

A backend is a module of this package with

    forward(inputs, save) -> y, saved                   saved: what its backward needs, empty without `save`
    backward(grad_y, saved, inputs) -> gradients        `inputs` and gradients are `ScanInputs`
    saved_shape(inputs) -> the shape of saved

(see `torch_loop.py` for the plainest one). A backend that computes the LayerNorm and the gate after the scan too has

    gated_forward(inputs, eps, save) -> output, y, saved
    gated_backward(grad, y, saved, inputs, eps) -> gradients        `inputs` and gradients are `GatedInputs`

PyTorch knows only this file. Operators take tensors one by one, backends as one object. The gradients are an operator
of their own so that a compiled training step calls them as one piece, too.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import backends
from .problems import GatedInputs, by_name, present

# the name of the package, so that the repository's `models` and an installed `vmunet` can be in one process
NAMESPACE = __name__.partition(".")[0]
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
TENSORS = (  # of `GatedInputs`
    "Tensor x, Tensor? z, Tensor projected, Tensor A, Tensor D, Tensor dt_bias, Tensor? dt_weight, "
    "Tensor? norm_weight, Tensor? norm_bias"
)
FORWARD = f"({TENSORS}, float eps, str backend, bool save) -> (Tensor, Tensor, Tensor)"
BACKWARD = f"(Tensor grad, Tensor y, Tensor saved, {TENSORS}, float eps, str backend) -> Tensor[]"


def operator(schema: str) -> Callable[[Callable], Any]:
    """Make a function the operator of its name, as torch.library.custom_op does; that one imports Dynamo at the first
    call, which takes a second of every prediction."""

    def register(function):
        LIBRARY.define(function.__name__ + schema)
        LIBRARY.impl(function.__name__, function, "CompositeExplicitAutograd")
        return getattr(getattr(torch.ops, NAMESPACE), function.__name__).default

    return register


@operator(FORWARD)
def cross_scan(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scan or, with z, LayerNorm(scan) * SiLU(z), (b, H, W, I); the scan before norm and gate, and what the
    backend keeps for its backward. The second is empty without z, both are without `save`."""
    *tensors, eps, backend, save = args
    inputs, module = GatedInputs(*tensors), backends.load(backend)
    with torch.autocast(inputs.x.device.type, enabled=False):
        if inputs.z is not None:
            return module.gated_forward(inputs, eps, save)
        y, saved = module.forward(inputs.scan(), save)
    return y, y.new_empty(0), saved


@torch.library.register_fake(f"{NAMESPACE}::cross_scan", lib=LIBRARY)
def _(*args):
    *tensors, _eps, backend, save = args
    inputs = GatedInputs(*tensors)
    x, kept = inputs.x, save and inputs.z is not None
    saved = inputs.A.new_empty(backends.load(backend).saved_shape(inputs.scan()) if save else (0,))
    return x.new_empty(x.shape), x.new_empty(x.shape if kept else (0,)), saved


@operator(BACKWARD)
def cross_scan_backward(grad: Tensor, y: Tensor, saved: Tensor, *args: Any) -> list[Tensor]:
    """Return the gradients of the tensors from x on, in their order, without those of tensors that are None."""
    *tensors, eps, backend = args
    inputs, module = GatedInputs(*tensors), backends.load(backend)
    with torch.autocast(inputs.x.device.type, enabled=False):
        if inputs.z is not None:
            return present(module.gated_backward(grad, y, saved, inputs, eps))
        return present(module.backward(grad, saved, inputs.scan()).gated(None, None, None))


@torch.library.register_fake(f"{NAMESPACE}::cross_scan_backward", lib=LIBRARY)
def _(_grad, _y, _saved, *args):
    *tensors, _eps, _backend = args
    return [t.new_empty(t.shape) for t in present(tensors)]


def _setup(ctx, inputs, output):
    *tensors, ctx.eps, ctx.backend, _save = inputs
    _out, y, saved = output
    ctx.save_for_backward(y, saved, *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _grad_y, _grad_saved):
    grads = [None for _ in GatedInputs._fields]
    if grad is not None:
        y, saved, *tensors = ctx.saved_tensors
        inputs = GatedInputs(*tensors)
        grads = by_name(cross_scan_backward(grad, y, saved, *inputs, ctx.eps, ctx.backend), inputs)
    return *grads, None, None, None  # of eps, backend and save


torch.library.register_autograd(f"{NAMESPACE}::cross_scan", _backward, setup_context=_setup, lib=LIBRARY)


# ---- derivatives that the operators don't have


def once_differentiable(*_: Any) -> Any:
    """Raise RuntimeError. This is the backward of operators that compute gradients."""
    raise RuntimeError(
        "found a second derivative, expected a first one: the kernels of scan, LayerNorm and convolution are once "
        f"differentiable; scan backends with all derivatives: {', '.join(backends.PLAIN)}"
    )


torch.library.register_autograd(f"{NAMESPACE}::cross_scan_backward", once_differentiable, lib=LIBRARY)


def transformed() -> bool:
    """Return whether a transform of torch.func or a level of forward-mode derivatives is active. PyTorch's operators
    have rules for both. The operators here have none and would silently drop derivatives. The tensors themselves are
    not inspected, because the compiler traces with tensors that carry no derivatives."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# ---- costs. The formulas get shapes where the operators have tensors


def recurrence_flops(tokens: int, channels: int, states: int) -> int:
    """Return nine operations for each state update, of which a token has one for every direction, channel and state,
    and two for the skip of each direction and channel."""
    return tokens * 4 * channels * (9 * states + 2)


@register_flop_formula(getattr(torch.ops, NAMESPACE).cross_scan)
def _flops(*args: Any, **_kwargs: Any) -> int:
    """The recurrence, and the matmul that makes the steps."""
    shapes: Any = GatedInputs._make(args[: len(GatedInputs._fields)])
    *pixels, channels = shapes.x
    tokens = math.prod(pixels)
    matmul = 0 if shapes.dt_weight is None else 2 * tokens * math.prod(shapes.dt_weight)
    return recurrence_flops(tokens, channels, states=shapes.A[-1]) + matmul


@register_flop_formula(getattr(torch.ops, NAMESPACE).cross_scan_backward)
def _(_grad, _y, _saved, *args, **_kwargs):
    # the states are computed again, then each update is walked back through its two factors
    return 3 * _flops(*args)
