"""The cross-scan alone on this machine's CPU: time of each backend at the network's shapes.

    python -m benchmarks.scan [--output FILE]

Shapes are those of one 256 x 256 image. Times are medians of runs that take turns, in one process. `reference` is the
definition; `original` is the scan of mamba_ssm's `selective_scan_ref`, which the original VM-UNet uses on CPUs. Tests
hold the backends' accuracy."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from models.cross_scan import backends, cross_selective_scan
from models.cross_scan.problems import ScanInputs
from models.cross_scan.reference import make_inputs, scan_order

ROUNDS = 5


def original(inputs: ScanInputs) -> Tensor:
    """Compute `cross_selective_scan` with the directions as further channels: first the decay and the input of every
    state at every step, (b, 4 I, L, N) each, then a loop over the steps."""
    x, dt, B, C, A, D, dt_bias, dt_weight = inputs
    b, H, W, I = x.shape
    order, k = scan_order(H, W), torch.arange(4)[:, None]
    u = x.flatten(1, 2)[:, order].permute(0, 1, 3, 2).flatten(1, 2)  # (b, 4 I, L)
    dt = torch.einsum("bhwkr,kir->bhwki", dt, dt_weight) + dt_bias
    dt, B, C = (t.flatten(1, 2)[:, order, k].permute(0, 1, 3, 2) for t in (dt, B, C))  # (b, 4, I or N, L)
    steps = F.softplus(dt.flatten(1, 2))
    B, C = (t.repeat_interleave(I, 1) for t in (B, C))  # (b, 4 I, N, L)
    decays = torch.exp(torch.einsum("bdl,dn->bdln", steps, A.flatten(0, 1)))
    drive = torch.einsum("bdl,bdnl,bdl->bdln", steps, B, u)
    h, ys = torch.zeros_like(decays[:, :, 0]), []
    for t in range(H * W):
        h = decays[:, :, t] * h + drive[:, :, t]
        ys.append(torch.einsum("bdn,bdn->bd", h, C[:, :, :, t]))
    y = (torch.stack(ys, 2) + D.flatten()[:, None] * u).view(b, 4, I, -1)
    inverse = order.argsort(1)
    return sum(y[:, k, :, inverse[k]] for k in range(4)).transpose(1, 2).reshape(x.shape)  # of (b, I, L)


def forward(backend: str, inputs: ScanInputs) -> Tensor:
    with torch.no_grad():
        return original(inputs) if backend == "original" else cross_selective_scan(*inputs, backend=backend)


def forward_backward(backend: str, inputs: ScanInputs) -> tuple[Tensor, ...]:
    """Return the gradients of all inputs, with x as the gradient of the output."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    return torch.autograd.grad(cross_selective_scan(*leaves, backend=backend), leaves, inputs.x)


def time_stages(run: Callable, names: list[str], slow: list[str]) -> list[dict]:
    """Return rows of each stage and of all scans of the network, and how many times faster each backend is than the
    `slow` ones."""
    rows = []
    for stage, (side, I, R, blocks) in common.STAGES.items():
        inputs = make_inputs(1, side, side, I, R=R)
        runs = {name: functools.partial(run, name, inputs) for name in names}
        rows.append({"ms": f"stage {stage}", "scans": blocks, **common.medians(runs, ROUNDS)})
    total = {name: sum(row["scans"] * row[name] for row in rows) for name in names}
    rows.append({"ms": "all", "scans": sum(row["scans"] for row in rows), **total})
    return rows + [{"ms": f"{other} / this", **{n: total[other] / total[n] for n in names}} for other in slow]


def main() -> None:
    report = common.start(__doc__, "scan")
    names = [name for name in backends.PREFERENCE if backends.why_not(name, "cpu", torch.float32) is None]
    slow = ["reference", "original"]
    report.table("forward", time_stages(forward, names + slow, slow))
    report.table("forward and backward", time_stages(forward_backward, names, ["torch"]))


if __name__ == "__main__":
    main()
