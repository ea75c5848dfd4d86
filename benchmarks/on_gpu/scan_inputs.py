"""Shared by the parts: inputs of the scan that are made on the GPU, clocks, and rows that may fail."""

import statistics
import traceback
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import STAGES
from models.cross_scan import reference
from models.cross_scan.problems import GatedInputs, ScanInputs

N = 16
EPS = 1e-5  # of the norm after the scan
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Shape = tuple[int, int, int, int, int | None, int]  # b, H, W, I, R, N


def shape_of(stage: int, b: int) -> Shape:
    side, I, R, _ = STAGES[stage]
    return b, side, side, I, R, N


def make_inputs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> ScanInputs:
    """Draw inputs on the GPU, rounded to bfloat16 so that all dtypes get the same numbers. dt, B, C are views."""
    b, H, W, I, R, states = shape
    torch.manual_seed(seed)
    small = reference.make_inputs(1, 1, 1, I, states, R, seed=seed)
    rank = R or I
    x = torch.randn(b, H, W, I, device="cuda").bfloat16().to(dtype)
    projected = torch.randn(b, H, W, 4, rank + 2 * states, device="cuda").bfloat16().to(dtype)
    dt, B, C = projected.split([rank, states, states], -1)
    weight = None if small.dt_weight is None else small.dt_weight.cuda()
    return ScanInputs(x, dt, B, C, small.A.cuda(), small.D.cuda(), small.dt_bias.cuda(), weight)


def make_gated_inputs(shape: Shape, dtype: torch.dtype) -> GatedInputs:
    """Draw the same with a gate, and a norm with weight 1 and bias 0."""
    inputs = make_inputs(shape, dtype)
    I = inputs.x.shape[-1]
    return inputs.gated(torch.randn_like(inputs.x), torch.ones(I, device="cuda"), torch.zeros(I, device="cuda"))


def median_ms(function: Callable, repeats: int = 20, warmup: int = 3) -> float:
    """Return the median device time of a call, in ms."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def graph_ms(function: Callable, calls: int = 10, repeats: int = 20) -> float:
    """Return the median device time of a call inside a CUDA graph of several, in ms."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    return median_ms(graph.replay, repeats) / calls


def row_or_failure(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the cells that `function` measures, or its error: one row must not stop the others."""
    try:
        return function(*arguments)
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:80]}
    finally:
        torch.cuda.empty_cache()


def forward_backward(scan: ModuleType, inputs: GatedInputs) -> None:
    """Compute the gated scan and its gradients, as in training."""
    out, y, saved = scan.gated_forward(inputs, EPS)
    scan.gated_backward(out, y, saved, inputs, EPS)


def longest_kernels(function: Callable, count: int, calls: int = 5) -> list[dict]:
    """Return rows (kernel, ms) of the `count` kernels that take longest in a call."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    times = Counter[str]()
    for event in profiled.key_averages():
        times[event.key.split("<")[0].split("(")[0][-36:]] += event.self_device_time_total / 1e3 / calls
    return [{"kernel": name, "ms": ms} for name, ms in times.most_common(count) if ms > 0]
