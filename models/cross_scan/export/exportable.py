"""The cross-scan in operators that exporters know: no kernel, no operator of ours, any size, a small graph.

Within a row of the map a direction is a recurrence along the row; between rows it hands its state on. So each direction
is three short loops over all rows at once: along the rows from zero, for the state that each row ends with; from row to
row, for the state that each begins with; along the rows again, from there. W + H + W steps instead of H W, and each
works on a whole column of the map. Columns are the rows of the transposed map; backwards is forwards on a turned one.

Exported graphs can't hold Python's loops: `using` puts a loop of PyTorch's in their place, or for ONNX, which has the
whole scan as one function (onnx_scan.py), that function.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None: it consists of PyTorch's own operators and runs everywhere."""
    return None


def python_loop(step: Callable, state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Apply state, output = step(state, slices) to the inputs along their first axis; return last state and outputs."""
    outputs = []
    for slices in zip(*(tensor.unbind() for tensor in inputs), strict=True):
        state, output = step(state, slices)
        outputs.append(output)
    return state, torch.stack(outputs)


def graph_loop(step: Callable, state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the same as `python_loop`, by PyTorch's higher-order operator scan, which torch.export keeps as a loop."""
    from torch._higher_order_ops.scan import scan as fold  # the public name of a prototype is still to come

    return fold(step, state, inputs)


_parts: ContextVar[tuple[Callable, Callable | None]] = ContextVar("parts", default=(python_loop, None))


@contextlib.contextmanager
def using(loop: Callable = python_loop, scan: Callable | None = None) -> Iterator[None]:
    """Within the block `scan` uses this loop or, if given, is this function."""
    token = _parts.set((loop, scan))
    try:
        yield
    finally:
        _parts.reset(token)


def scan(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, dt_weight: Tensor | None = None
) -> Tensor:
    """Return the scan, (b, H, W, I), of x (b, H, W, I), dt (b, H, W, 4, R or I), B and C (b, H, W, 4, N), A (4, I, N),
    D and dt_bias (4, I), dt_weight (4, I, R) or None."""
    loop, replacement = _parts.get()
    if replacement is not None:
        return replacement(x, dt, B, C, A, D, dt_bias, dt_weight)
    dtype, precise = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, dt, B, C = (t.to(precise) for t in (x, dt, B, C))
    if dt_weight is not None:
        dt = torch.einsum("bhwkr,kir->bhwki", dt, dt_weight)
    steps = F.softplus(dt + dt_bias)
    y = x * D.sum(0)
    for pair in ((0, 2), (1, 3)):  # along the rows, along the columns; forwards and backwards together
        u = torch.stack([_turn(x, k) for k in pair], 3)
        both = (torch.stack([_turn(t[..., k, :], k) for k in pair], 3) for t in (steps, B, C))
        for k, y_k in zip(pair, _along_rows(loop, u, A[pair[0] :: 2], *both).unbind(3), strict=True):
            y = y + _turn_back(y_k, k)
    return y.to(dtype)


def _turn(x, k):
    """Return the map (b, H, W, I) turned so that direction k goes along its rows."""
    x = x if k % 2 == 0 else x.transpose(1, 2)
    return x if k < 2 else x.flip(1, 2)


def _turn_back(x, k):
    x = x if k < 2 else x.flip(1, 2)
    return x if k % 2 == 0 else x.transpose(1, 2)


def _along_rows(loop, u, A, dt, B, C):
    """Return y of two directions along the rows of (b, H, W, 2, I or N) maps, A (2, I, N) -> (b, H, W, 2, I)."""
    A = A.transpose(1, 2).contiguous()

    def step(h, inputs):  # the state (..., N, I), dt and drive = dt x (..., I), B and C (..., N)
        dt, drive, B, C = inputs
        h = (dt.unsqueeze(-2) * A).exp() * h + B.unsqueeze(-1) * drive.unsqueeze(-2)
        return h, (C.unsqueeze(-2) @ h).squeeze(-2)

    def step_of_rows(h, inputs):  # returns the state before the row, copied: nothing may be returned twice
        decay, added = inputs
        return decay * h + added, h.clone()

    dt, drive, B, C = (t.permute(2, 1, 0, 3, 4).contiguous() for t in (dt, dt * u, B, C))  # (W, H, b, 2, ...)
    zero = (B[0].unsqueeze(-1) * drive[0].unsqueeze(-2)) * 0.0  # (H, b, 2, N, I), made so that no size is fixed
    ends, _ = loop(step, zero, (dt, drive, B, B))
    _, starts = loop(step_of_rows, zero[0], ((dt.sum(0).unsqueeze(-2) * A).exp(), ends))
    return loop(step, starts, (dt, drive, B, C))[1].permute(2, 1, 0, 3, 4)
