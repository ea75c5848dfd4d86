"""Compiling the kernels of many settings at once, and Triton's settings one by one."""

import multiprocessing
import os
import time
from types import ModuleType
from typing import Any

import torch

from benchmarks.common import Report
from benchmarks.on_gpu.inputs import (
    EPS,
    STAGES,
    Shape,
    forward_backward,
    gated_ms,
    graph_ms,
    make_gated_inputs,
    median_ms,
    shape_of,
)
from models.cross_scan import backends, triton_scan

Settings = dict[str, Any]
Job = tuple[Shape, torch.dtype, str, Settings]  # shape, dtype, backend, settings of triton_scan.TUNING and `segment`

LARGE = [  # for a batch of 32; what is not named stays as it is
    {"forward_warps": 1, "backward_warps": 1, "segment": 16},
    {"forward_warps": 2, "backward_warps": 2, "segment": 16},
    {"forward_warps": 4, "backward_warps": 4, "segment": 16},
    {"forward_warps": 1, "backward_warps": 1, "segment": 32},
    {"forward_warps": 2, "backward_warps": 2, "segment": 32},
    {"forward_warps": 1, "backward_warps": 1, "segment": 64},
    {"enough_warps": 1024, "shortest_chunk": 64},
    {"enough_warps": 1024, "shortest_chunk": 2048},
    {"enough_warps": 2048, "shortest_chunk": 64},
]
SMALL = [  # for a single image
    {"enough_warps": 0, "shortest_chunk": 64},
    {"enough_warps": 256, "shortest_chunk": 64},
    {"enough_warps": 512, "shortest_chunk": 32},
    {"enough_warps": 512, "shortest_chunk": 64},
    {"enough_warps": 512, "shortest_chunk": 128},
    {"enough_warps": 1024, "shortest_chunk": 32},
    {"enough_warps": 1024, "shortest_chunk": 64},
]


def configure(settings: Settings) -> None:
    """Sets the Triton backend's settings in this process."""
    triton_scan.TUNING.update({name: value for name, value in settings.items() if name in triton_scan.TUNING})
    triton_scan.SEGMENT = settings.get("segment", triton_scan.SEGMENT)


def compile_one(job: Job) -> None:
    """In a process of its own: compiles what one setting needs, into the cache on disk."""
    shape, dtype, backend, settings = job
    configure(settings)
    scan, inputs = backends.load(backend), make_gated_inputs(shape, dtype)
    scan.gated_forward(inputs, EPS, save=False)
    forward_backward(scan, inputs)
    torch.cuda.synchronize()


def compile_all(jobs: list[Job]) -> None:
    """Compiles in several processes at once; compiling one after the other would cost more than the measurements."""
    start = time.time()
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(12, len(jobs), max(1, (os.cpu_count() or 2) - 2))) as pool:
        for job, result in [(job, pool.apply_async(compile_one, (job,))) for job in jobs]:
            try:
                result.get(timeout=240)
            except Exception as error:
                print(f"compiling {job}: {type(error).__name__}: {error}", flush=True)
    print(f"compiled {len(jobs)} settings in {time.time() - start:.0f} s", flush=True)


def tune(report: Report) -> None:
    """A row for each setting: inference, forward and backward of the gated scan in ms at each stage, and of all 15."""
    default = dict(triton_scan.TUNING, segment=triton_scan.SEGMENT)
    # more warps than there are, or longer chunks, need no other code
    compiled = [(32, settings) for settings in LARGE[:7]] + [(1, settings) for settings in SMALL[:2]]
    compile_all(
        [
            (shape_of(stage, b), torch.bfloat16, "triton", default | settings)
            for b, settings in compiled
            for stage in STAGES
        ]
    )
    rows = []
    for b, settings in [(32, settings) for settings in LARGE] + [(1, settings) for settings in SMALL]:
        configure(default | settings)
        rows.append({"b": b, **default, **settings, **time_setting(triton_scan, b)})
    configure(default)
    report.table("tuning (inference, forward, backward ms)", rows)


def time_setting(scan: ModuleType, b: int) -> dict[str, str]:
    """The cells of one setting: a stage each, and their sum over the network's blocks; NaN if a stage failed."""
    row, sums = {}, [0.0, 0.0, 0.0]
    for stage, (*_, blocks) in STAGES.items():
        try:
            inputs = make_gated_inputs(shape_of(stage, b), torch.bfloat16)
            times = gated_ms(scan, inputs, graph_ms if b == 1 else lambda call: median_ms(call, 10))
            sums = [total + blocks * ms for total, ms in zip(sums, times, strict=True)]
            row[f"stage {stage}"] = " ".join(f"{ms:.3f}" for ms in times)
        except Exception as error:  # such as too many registers
            row[f"stage {stage}"] = f"{type(error).__name__}: {error}"[:40]
            sums = [float("nan")] * 3
        torch.cuda.empty_cache()
    return row | {"all 15": " ".join(f"{ms:.2f}" for ms in sums)}
