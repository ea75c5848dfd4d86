"""The whole network at 256 x 256: forward and training step, images a second, peak memory."""

import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import Report
from benchmarks.on_gpu.inputs import graph_ms, longest_kernels, median_ms
from models.cross_scan import backends
from models.vmunet import VMUNet

SETTINGS = [  # backend, batch, precision
    ("cuda", 32, "bf16"),
    ("cuda", 1, "bf16"),
    ("cuda", 32, "fp32"),
    ("cuda", 1, "fp32"),
    ("triton", 32, "bf16"),
    ("mamba_ssm", 32, "bf16"),
    ("mamba_ssm", 32, "fp32"),
    ("torch", 1, "bf16"),
]


def time_model(names: list[str], compiled: bool, report: Report) -> None:
    """A row for each of SETTINGS with one of these backends; only "cuda" is tried with torch.compile."""
    rows: list[dict] = []
    for backend, b, precision in SETTINGS:
        if backend not in names or (compiled and backend != "cuda"):
            continue
        row = {"backend": backend, "b": b, "precision": precision, "mode": "compiled" if compiled else "eager"}
        rows.append(row)
        try:
            model, infer, step = infer_and_step(backend, b, precision, compiled)
            repeats, in_graph = 2 if backend == "torch" else 10, backend in backends.FUSED
            profiled = (backend, b, precision) == ("cuda", 32, "bf16") and not compiled
            model.eval()
            row |= measure("infer", infer, b, repeats, in_graph)
            if profiled:
                report.table("kernels of a forward, batch 32, bf16", longest_kernels(infer, 25, calls=2))
            model.train()
            row |= measure("train", step, b, repeats, in_graph)
            if profiled:
                report.table("kernels of a training step, batch 32, bf16", longest_kernels(step, 40, calls=2))
        except Exception as error:  # one setting must not stop the others
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}"[:80]
        model = infer = step = None  # frees the memory
        torch.cuda.empty_cache()
    report.table("VM-UNet at 256x256" + (", torch.compile" if compiled else ""), rows)


def infer_and_step(backend: str, b: int, precision: str, compiled: bool) -> tuple[nn.Module, Callable, Callable]:
    """A network, its forward without gradients, and its training step, on one batch."""
    torch.manual_seed(0)
    model = VMUNet(scan_backend=backend).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)
    images = torch.randn(b, 3, 256, 256, device="cuda")
    masks = torch.rand(b, 1, 256, 256, device="cuda").round()
    run = torch.compile(model) if compiled else model

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            return run(images)

    def infer() -> None:
        with torch.no_grad():
            forward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.binary_cross_entropy_with_logits(forward().float(), masks).backward()
        optimizer.step()

    return model, infer, step


def measure(name: str, function: Callable, b: int, repeats: int, in_graph: bool) -> dict[str, float]:
    """The cells `name`_ms, _GB, _graph_ms (if `in_graph`) and _img_s of a function that works on b images."""
    torch.cuda.reset_peak_memory_stats()
    row = {f"{name}_ms": median_ms(function, repeats)}
    row[f"{name}_GB"] = torch.cuda.max_memory_allocated() / 1e9
    if in_graph:
        row[f"{name}_graph_ms"] = graph_ms(function, 1)
    fastest = min(row[key] for key in (f"{name}_ms", f"{name}_graph_ms") if key in row)
    return row | {f"{name}_img_s": b * 1e3 / fastest}
