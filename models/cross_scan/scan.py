"""The cross-scan for networks, alone and with the norm and the gate after it: checks, and the choice of a backend."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends
from .operator import cross_scan, transformed
from .problems import GatedInputs, ScanInputs, present


def cross_selective_scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the four-directional selective scan, channels last, in pixel order.

    Direction k visits the pixels row by row (0), column by column (1), or backwards (2, 3). Along it

        delta[t] = softplus(dt[t] + dt_bias)
        h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] x[t],    y[t] = <C[t], h[t]> + D x[t]

    and the result is the sum of the four y, each at its pixel.

    Args:
        x: (b, H, W, I) tokens
        dt: (b, H, W, 4, I) raw steps; with `dt_weight` (b, H, W, 4, R), of which dt_weight[k] @ dt[..., k, :] are those
        B, C: (b, H, W, 4, N) input and output weights of the N states
        A: (4, I, N) rates, negative
        D, dt_bias: (4, I)
        dt_weight: (4, I, R) or None
        backend: "auto" (the best for the device and the dtype) or a name of `backends.MODULES`

    x, dt, B and C share one dtype; the parameters are in float32 (float64 with float64 inputs), and so is the state,
    under autocast too.

    Kernels are differentiable once. Under torch.func's transforms and in forward-mode differentiation "auto" takes
    "exportable", which has all derivatives and keeps every state in memory.

    Returns:
        (b, H, W, I) in x's dtype

    Raises:
        ValueError: a shape, dtype or device that does not fit; an unknown backend
        RuntimeError: a backend that can't run here
    """
    inputs = ScanInputs(x, dt, B, C, A, D, dt_bias, dt_weight)
    check_inputs(inputs)
    return _scan(inputs.gated(None, None, None), _resolve(backend, *inputs))


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
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Return LayerNorm(cross_selective_scan(...)) * SiLU(z), (b, H, W, I) in x's dtype: scan, norm and gate.

    z is (b, H, W, I); projected (b, H, W, 4, R + 2 N) has dt, B and C side by side; norm_weight and norm_bias are (I,);
    the other tensors, `backend` and the errors are those of `cross_selective_scan`."""
    inputs = GatedInputs(x, z, projected, A, D, dt_bias, dt_weight, norm_weight, norm_bias)
    check_inputs(inputs.scan())
    name = _resolve(backend, *inputs)
    if backends.is_fused(name):
        return _call_operator(inputs, eps, name)
    y = _scan(inputs._replace(z=None, norm_weight=None, norm_bias=None), name)
    return F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps) * F.silu(z)


def _resolve(backend, *inputs):
    if transformed() and backend not in backends.PLAIN:
        if backend != "auto":
            what = "a transform of torch.func or forward-mode differentiation, for which it has no rules"
            raise RuntimeError(f"scan backend {backend!r}: found {what}; expected 'auto' or one of {backends.PLAIN}")
        backend = "exportable"
    return backends.resolve(backend, inputs[0].device.type, inputs[0].dtype)


def _scan(inputs, backend):
    module = backends.load(backend)
    if not hasattr(module, "scan"):
        return _call_operator(inputs, 0.0, backend)
    device = inputs.x.device.type
    if not torch.is_autocast_enabled(device):  # a graph with the block below can't be exported
        return module.scan(*inputs.scan())
    with torch.autocast(device, enabled=False):
        return module.scan(*inputs.scan())


def _call_operator(inputs, eps, backend):
    save = torch.is_grad_enabled() and any(t.requires_grad for t in present(inputs))
    return cross_scan(*inputs, eps, backend, save)[0]


def check_inputs(inputs: ScanInputs) -> None:
    """Raise ValueError for a shape, dtype or device that does not fit, for all backends."""
    x, A, dt_weight = inputs.x, inputs.A, inputs.dt_weight
    if x.ndim != 4 or A.ndim != 3:
        raise ValueError(
            f"cross-scan: found x {tuple(x.shape)} and A {tuple(A.shape)}, expected (b, H, W, I) and (4, I, N)"
        )
    (b, H, W, I), N = x.shape, A.shape[-1]
    R = I if dt_weight is None else dt_weight.shape[-1]
    expected = {
        "dt": (b, H, W, 4, R),
        "B": (b, H, W, 4, N),
        "C": (b, H, W, 4, N),
        "A": (4, I, N),
        "D": (4, I),
        "dt_bias": (4, I),
        "dt_weight": (4, I, R),
    }
    parameters = torch.promote_types(x.dtype, torch.float32)
    for name, shape in expected.items():
        tensor = getattr(inputs, name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"cross-scan: found {name} of shape {tuple(tensor.shape)}, expected {shape}")
        dtype = x.dtype if name in ("dt", "B", "C") else parameters
        if tensor.dtype != dtype:
            raise ValueError(f"cross-scan: found {name} in {tensor.dtype}, expected {dtype} beside x in {x.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"cross-scan: found {name} on {tensor.device}, expected {x.device}, where x is")
