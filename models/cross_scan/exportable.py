"""The cross-scan in operators that exporters know: no kernel, no operator of ours, any size, a small graph.

Within a row of the map a direction is a recurrence along the row; between rows it hands its state on. So each direction
is three short loops over all rows at once: along the rows from zero, for the state that each row ends with; from row to
row, for the state that each begins with; along the rows again, from there. W + H + W steps instead of H W, and each
works on a whole column of the map. Columns are the rows of the transposed map; backwards is forwards on a turned one.

Exported graphs can't hold Python's loops, and each format has its own: see `Loops`. ONNX has the whole scan as one
function (onnx_scan.py), in whose place `using` puts it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "exportable"


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """It is made of PyTorch's own operators and runs everywhere."""
    return None


# ---- the loops, in Python. Time is the first axis; states are (..., N, I), dt and drive = dt x (..., I), B, C (..., N)


def last_states(h: Tensor, dt: Tensor, drive: Tensor, B: Tensor, A: Tensor) -> Tensor:
    """The state after all steps of h <- exp(dt[t] A) h + B[t] drive[t]."""
    for t in range(dt.size(0)):
        h = (dt[t].unsqueeze(-2) * A).exp() * h + B[t].unsqueeze(-1) * drive[t].unsqueeze(-2)
    return h


def outputs(h: Tensor, dt: Tensor, drive: Tensor, B: Tensor, C: Tensor, A: Tensor) -> Tensor:
    """<C[t], h[t]> of every step of the same recurrence."""
    ys: list[Tensor] = []
    for t in range(dt.size(0)):
        h = (dt[t].unsqueeze(-2) * A).exp() * h + B[t].unsqueeze(-1) * drive[t].unsqueeze(-2)
        ys.append((C[t].unsqueeze(-2) @ h).squeeze(-2))
    return torch.stack(ys)


def first_states(h: Tensor, decay: Tensor, added: Tensor) -> Tensor:
    """The state before each step of h <- decay[t] h + added[t]."""
    states: list[Tensor] = []
    for t in range(decay.size(0)):
        states.append(h)
        h = decay[t] * h + added[t]
    return torch.stack(states)


class Loops(NamedTuple):
    """The three loops in the form that an exporter takes."""

    last_states: Callable = last_states
    outputs: Callable = outputs
    first_states: Callable = first_states


@functools.cache
def torchscript_loops() -> Loops:
    """The same, compiled by TorchScript, which keeps loops; tracing alone would unroll them."""
    return Loops(*(torch.jit.script(loop) for loop in (last_states, outputs, first_states)))


def torch_export_loops() -> Loops:
    """The same as PyTorch's higher-order operator scan, for torch.export."""
    from torch._higher_order_ops.scan import scan as fold  # the public name of a prototype is still to come

    # `fold` takes the state and one slice of everything in time, and wants nothing returned twice
    def run(h, dt, drive, B, C, A):
        def step(h, inputs):
            dt, drive, B, C = inputs
            h = (dt.unsqueeze(-2) * A).exp() * h + B.unsqueeze(-1) * drive.unsqueeze(-2)
            return h, (C.unsqueeze(-2) @ h).squeeze(-2)

        return fold(step, h, (dt, drive, B, C))

    def first(h, decay, added):
        def step(h, inputs):
            return inputs[0] * h + inputs[1], h.clone()

        return fold(step, h, (decay, added))[1]

    return Loops(lambda h, dt, drive, B, A: run(h, dt, drive, B, B, A)[0], lambda *inputs: run(*inputs)[1], first)


PYTHON_LOOPS = Loops()
_implementation: ContextVar[Loops | Callable] = ContextVar("implementation", default=PYTHON_LOOPS)


@contextlib.contextmanager
def using(implementation: Loops | Callable) -> Iterator[None]:
    """Within the block `scan` is made of these loops, or is this function."""
    token = _implementation.set(implementation)
    try:
        yield
    finally:
        _implementation.reset(token)


# ---- the scan


def scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor | None = None,
) -> Tensor:
    """`models.cross_scan.cross_selective_scan`; shapes as there."""
    implementation = _implementation.get()
    if not isinstance(implementation, Loops):
        return implementation(x, dt, B, C, A, D, dt_bias, dt_weight)
    if dt_weight is not None:
        dt = torch.einsum("bhwkr,kir->bhwki", dt, dt_weight)
    steps = F.softplus(dt + dt_bias)
    y = x * D.sum(0)
    for pair in ((0, 2), (1, 3)):  # along the rows, along the columns; forwards and backwards together
        u = torch.stack([_turn(x, k) for k in pair], 3)
        both = (torch.stack([_turn(t[..., k, :], k) for k in pair], 3) for t in (steps, B, C))
        for k, y_k in zip(pair, _along_rows(implementation, u, A[pair[0] :: 2], *both).unbind(3), strict=True):
            y = y + _turn_back(y_k, k)
    return y


def _turn(x, k):
    """The map (b, H, W, I) so that direction k goes along its rows."""
    x = x if k % 2 == 0 else x.transpose(1, 2)
    return x if k < 2 else x.flip(1, 2)


def _turn_back(x, k):
    x = x if k < 2 else x.flip(1, 2)
    return x if k % 2 == 0 else x.transpose(1, 2)


def _along_rows(loops, u, A, dt, B, C):
    """Two directions along the rows of (b, H, W, 2, I or N) maps, A (2, I, N) -> (b, H, W, 2, I)."""
    A = A.transpose(1, 2).contiguous()
    dt, drive, B, C = (t.permute(2, 1, 0, 3, 4).contiguous() for t in (dt, dt * u, B, C))  # (W, H, b, 2, ...)
    zero = (B[0].unsqueeze(-1) * drive[0].unsqueeze(-2)) * 0.0  # (H, b, 2, N, I), made so that no size is fixed
    ends = loops.last_states(zero, dt, drive, B, A)
    starts = loops.first_states(zero[0], (dt.sum(0).unsqueeze(-2) * A).exp(), ends)
    return loops.outputs(starts, dt, drive, B, C, A).permute(2, 1, 0, 3, 4)
