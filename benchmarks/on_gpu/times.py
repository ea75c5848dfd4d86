"""Times of the scan at the network's four stages, and of the other backends."""

import traceback
from types import ModuleType

import torch

from benchmarks.common import Report
from benchmarks.on_gpu.inputs import (
    STAGES,
    N,
    forward_backward,
    gated_ms,
    graph_ms,
    longest_kernels,
    make_gated_inputs,
    make_inputs,
    median_ms,
    shape_of,
    short,
)
from models.cross_scan import mamba, torch_loop
from models.cross_scan.inputs import GatedInputs

SETTINGS = ((32, torch.bfloat16), (32, torch.float32), (1, torch.bfloat16))


def time_stages(scan: ModuleType, exp2_rate: float, report: Report) -> None:
    """Forward and backward of the gated scan for every stage; `us_image` at batch 32 is of one block.

    exp2_rate  what the card can do, in 10^12 a second"""
    rows, kernels = [], []
    for stage in STAGES:
        for b, dtype in SETTINGS:
            try:
                inputs = make_gated_inputs(shape_of(stage, b), dtype)
                row = {"stage": stage, "b": b, "dtype": short(dtype)}
                rows.append(row | time_stage(scan, stage, inputs, exp2_rate))
                if dtype == torch.bfloat16:
                    longest = longest_kernels(lambda inputs=inputs: forward_backward(scan, inputs), 12)
                    kernels += [{"stage": stage, "b": b, **row} for row in longest]
            except Exception:  # one stage must not stop the others
                traceback.print_exc()
            torch.cuda.empty_cache()
    report.table("gated scan by stage", rows)
    report.table("kernels of one forward and backward", kernels)
    sums = []
    for b, dtype in SETTINGS:
        these = [row for row in rows if (row["b"], row["dtype"]) == (b, short(dtype))]
        infer, train = (sum(row[key] * row["blocks"] for row in these) for key in ("us_image_fwd", "us_image_train"))
        sums.append({"b": b, "dtype": short(dtype), "infer_us": infer, "train_us": train})
    report.table("all 15 scans, us an image", sums)


def time_stage(scan: ModuleType, stage: int, inputs: GatedInputs, exp2_rate: float) -> dict:
    b, H, W, I = inputs.x.shape
    infer, forward, backward = gated_ms(scan, inputs, graph_ms if b == 1 else median_ms)
    exp_floor = b * H * W * 4 * I * N / exp2_rate / 1e9
    return {
        "infer_ms": infer,
        "forward_ms": forward,
        "backward_ms": backward,
        "exp_floor_ms": exp_floor,
        "forward_share": exp_floor / infer,
        "us_image_fwd": infer * 1e3 / b,
        "us_image_train": (forward + backward) * 1e3 / b,
        "blocks": STAGES[stage][3],
    }


def time_others(report: Report) -> None:
    """Forward and backward of the scan alone, by the backends that are not made for this card."""
    measures, rows = {"torch": torch_ms}, []
    reason = mamba.why_not(torch.device("cuda"), torch.bfloat16)
    if reason is None:
        measures["mamba_ssm"] = mamba_ms
    else:
        print(f"mamba_ssm: {reason}")
    for stage in STAGES:
        for name, measure in measures.items():
            try:
                forward, backward = measure(stage)
                rows.append({"stage": stage, "b": 32, "backend": name, "forward_ms": forward, "backward_ms": backward})
            except Exception:  # one backend must not stop the others
                traceback.print_exc()
            torch.cuda.empty_cache()
    report.table("other backends, scan alone, bf16", rows)


def torch_ms(stage: int) -> tuple[float, float]:
    inputs = make_inputs(shape_of(stage, 32), torch.bfloat16)
    y, saved = torch_loop.forward(inputs)
    grad = torch.randn_like(y)
    forward = median_ms(lambda: torch_loop.forward(inputs, save=False), 2, 1)
    return forward, median_ms(lambda: torch_loop.backward(grad, saved, inputs), 2, 1)


def mamba_ms(stage: int) -> tuple[float, float]:
    inputs = [t.detach().requires_grad_() for t in make_inputs(shape_of(stage, 32), torch.bfloat16)]
    with torch.no_grad():
        forward = median_ms(lambda: mamba.scan(*inputs), 10)
    y = mamba.scan(*inputs)
    grad = torch.randn_like(y)
    return forward, median_ms(lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True), 10)
