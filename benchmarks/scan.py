"""The cross-scan alone on this machine's CPU: time of each backend at the network's shapes, accuracy, first compile.

    python -m benchmarks.scan [--output FILE]

Shapes are those of one 256 x 256 image. Times are medians of runs that take turns, in one process. `reference` is the
definition; `original` is the scan of mamba_ssm's `selective_scan_ref`, which the original VM-UNet uses on CPUs."""

import functools
import os
import tempfile
import time
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from models.cross_scan import backends, cross_selective_scan
from models.cross_scan.inputs import ScanInputs
from models.cross_scan.reference import make_inputs, scan, scan_order

STAGES = {  # side of the map, inner channels, rank of the steps; number of scans in the network
    "stage 0": ((64, 192, 6), 3),
    "stage 1": ((32, 384, 12), 4),
    "stage 2": ((16, 768, 24), 4),
    "stage 3": ((8, 1536, 48), 4),
}
ROUNDS = 5
CASES = {  # b, H, W, I, N, R
    "1 step": (1, 1, 1, 48, 16, 3),
    "31 steps": (1, 1, 31, 48, 16, 3),
    "32 steps": (1, 4, 8, 48, 16, 3),
    "33 steps": (1, 11, 3, 48, 16, 3),
    "1000 steps": (1, 40, 25, 48, 16, 3),
    "batch of 3": (3, 9, 14, 48, 16, 3),
    "raw steps": (3, 9, 14, 48, 16, None),
    "large steps, varied A": (1, 12, 9, 48, 16, None),
}


def original(inputs: ScanInputs) -> Tensor:
    """`cross_selective_scan` with the directions as further channels: first the decay and the input of every state at
    every step, (b, 4 I, L, N) each, then a loop over the steps."""
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


def forward_backward(backend: str, inputs: Iterable[Tensor | None], grad_y: Tensor) -> tuple[Tensor, ...]:
    """y, and the gradients of all inputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = scan(*leaves) if backend == "reference" else cross_selective_scan(*leaves, backend=backend)
    return y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad_y)


def available() -> list[str]:
    """The backends that "auto" chooses from and that run here."""
    return [name for name in backends.PREFERENCE if backends.why_not(name, "cpu", torch.float32) is None]


def time_stages(names: list[str]) -> tuple[list[dict], list[dict]]:
    """Two tables of rows: forward, and forward with backward, of each stage and of all scans of the network."""
    forwards, both = [], []
    for stage, ((side, I, R), blocks) in STAGES.items():
        inputs = make_inputs(1, side, side, I, R=R)
        grad_y = torch.randn_like(inputs.x)
        runs = {name: functools.partial(forward, name, inputs) for name in (*names, "reference", "original")}
        forwards.append({"ms": stage, "scans": blocks, **common.medians(runs, ROUNDS)})
        runs = {name: functools.partial(forward_backward, name, inputs, grad_y) for name in names}
        both.append({"ms": stage, "scans": blocks, **common.medians(runs, ROUNDS)})
    add_totals(forwards, ("reference", "original"))
    add_totals(both, ("torch",))
    return forwards, both


def add_totals(rows: list[dict], slow: Sequence[str]) -> None:
    """Adds rows: all scans of the network together, and how many times faster each backend is than the slow ones."""
    names = list(rows[0])[2:]
    total = {name: sum(row["scans"] * row[name] for row in rows) for name in names}
    rows.append({"ms": "all", "scans": sum(row["scans"] for row in rows), **total})
    for other in slow:
        rows.append({"ms": f"{other} / this", "scans": "", **{name: total[other] / total[name] for name in names}})


def inputs_of(case: str, dtype: torch.dtype) -> ScanInputs:
    inputs = make_inputs(*CASES[case], dtype=dtype)
    if case == "large steps, varied A":  # raw steps to beyond 40; softplus is the identity from 20 on
        inputs = inputs._replace(dt=13 * inputs.dt, A=inputs.A * torch.logspace(-3, 3, 16))
    return inputs


def errors(backend: str, inputs: Sequence[Tensor | None], exact: str) -> tuple[float, float]:
    """Relative errors of y and of the worst gradient against the backend `exact` in double precision."""
    x = inputs[0]
    grad_y = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    found = forward_backward(backend, inputs, grad_y)
    expected = forward_backward(exact, [None if t is None else t.double() for t in inputs], grad_y.double())
    y, *gradients = (((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))
    return y, max(gradients)


def measure_accuracy(names: list[str]) -> list[dict]:
    """A row for each case, dtype and backend. New memory is full of NaN meanwhile: nothing unwritten passes."""
    torch.use_deterministic_algorithms(True)
    shapes = {case: (inputs_of(case, torch.float32), "reference") for case in CASES}
    shapes |= {
        stage: (make_inputs(1, side, side, I, R=R), "torch")  # as the definition in double precision, and faster
        for stage, ((side, I, R), _) in STAGES.items()
    }
    rows = []
    for case, (inputs, exact) in shapes.items():
        for dtype in (torch.float32, torch.bfloat16):
            rounded = [None if t is None else t.to(dtype) if i < 4 else t for i, t in enumerate(inputs)]
            row = {"relative error": case, "dtype": str(dtype).removeprefix("torch.")}
            for name in names:
                y, gradient = errors(name, rounded, exact)
                row |= {f"{name}, y": y, f"{name}, worst gradient": gradient}
            rows.append(row)
    torch.use_deterministic_algorithms(False)
    return rows


def first_call() -> float:
    """Seconds that a process needs until the CPU backend has computed its first y and gradients."""
    inputs = make_inputs(1, 8, 8, 32, R=2)
    began = time.perf_counter()
    forward_backward("cpu", inputs, torch.ones_like(inputs.x))
    return time.perf_counter() - began


def first_calls() -> list[dict]:
    """In a process that compiles, and in one that finds the compiled code of another."""
    before = os.environ.get("NUMBA_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        seconds = [common.in_new_process(first_call) for _ in range(2)]
    del os.environ["NUMBA_CACHE_DIR"]
    if before is not None:
        os.environ["NUMBA_CACHE_DIR"] = before
    return [{"first y and gradients": what, "s": s} for what, s in zip(("compiling", "compiled"), seconds, strict=True)]


def main() -> None:
    report = common.start(__doc__, "scan")
    names = available()
    for title, rows in zip(("forward", "forward and backward"), time_stages(names), strict=True):
        report.table(title, rows)
    report.table("accuracy", measure_accuracy(names))
    if "cpu" in names:
        report.table("first call", first_calls())
    print(f"\nwritten to {report.path}")


if __name__ == "__main__":
    main()
