"""Times of the scan at the network's four stages."""

from types import ModuleType

import torch

from benchmarks.common import STAGES, Report
from benchmarks.on_gpu.scan_inputs import (
    DTYPES,
    EPS,
    N,
    forward_backward,
    graph_ms,
    longest_kernels,
    make_gated_inputs,
    median_ms,
    row_or_failure,
    shape_of,
)

SETTINGS = ((32, torch.bfloat16), (32, torch.float32), (1, torch.bfloat16))
EXP2_RATE = 3.7  # 10^12 per second, of an H100 or H200


def time_stages(scan: ModuleType, report: Report) -> None:
    """Report forward and backward of the gated scan for every stage, and the sums over the network's 15 scans."""
    rows: list[dict] = []
    kernels: list[dict] = []
    for stage in STAGES:
        for b, dtype in SETTINGS:
            row = {"stage": stage, "b": b, "dtype": DTYPES[dtype]}
            rows.append(row | row_or_failure(time_stage, scan, stage, b, dtype, kernels))
    report.table("gated scan by stage", rows)
    report.table("kernels of one forward and backward", kernels)
    sums = []
    for b, dtype in SETTINGS:
        group = [row for row in rows if (row["b"], row["dtype"]) == (b, DTYPES[dtype]) and "blocks" in row]
        infer, forward, backward = (
            sum(row[f"{part}_ms"] * row["blocks"] for row in group) * 1e3 / b
            for part in ("infer", "forward", "backward")
        )
        sums.append({"b": b, "dtype": DTYPES[dtype], "infer_us": infer, "train_us": forward + backward})
    report.table("all 15 scans, us an image", sums)


def time_stage(scan: ModuleType, stage: int, b: int, dtype: torch.dtype, kernels: list[dict]) -> dict[str, float]:
    """Return the cells of a row, of one block. Adds the longest kernels in bf16 to `kernels`."""
    inputs = make_gated_inputs(shape_of(stage, b), dtype)
    side, I, _, blocks = STAGES[stage]
    _, y, saved = scan.gated_forward(inputs, EPS)
    grad, clock = torch.randn_like(y), graph_ms if b == 1 else median_ms
    row = {"blocks": blocks, "infer_ms": clock(lambda: scan.gated_forward(inputs, EPS, save=False))}
    row["forward_ms"] = clock(lambda: scan.gated_forward(inputs, EPS))
    row["backward_ms"] = clock(lambda: scan.gated_backward(grad, y, saved, inputs, EPS))
    row["exp_floor_ms"] = b * side**2 * 4 * I * N / EXP2_RATE / 1e9
    if dtype == torch.bfloat16:
        longest = longest_kernels(lambda: forward_backward(scan, inputs), 12)
        kernels += [{"stage": stage, "b": b, **kernel} for kernel in longest]
    return row | {"forward_share": row["exp_floor_ms"] / row["infer_ms"]}
