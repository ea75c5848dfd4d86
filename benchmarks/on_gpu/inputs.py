"""What the parts share: the network's shapes, inputs that are made on the GPU, and clocks."""

import statistics
from collections.abc import Callable
from types import ModuleType

import torch
from torch.profiler import ProfilerActivity, profile

from models.cross_scan import reference
from models.cross_scan.inputs import GatedInputs, ScanInputs

STAGES = {0: (64, 192, 6, 3), 1: (32, 384, 12, 4), 2: (16, 768, 24, 4), 3: (8, 1536, 48, 4)}  # side, I, R, blocks
N = 16
EPS = 1e-5  # of the norm after the scan

Shape = tuple[int, int, int, int, int | None, int]  # b, H, W, I, R, N
Clock = Callable[[Callable], float]  # milliseconds of a call


def shape_of(stage: int, b: int) -> Shape:
    side, I, R, _ = STAGES[stage]
    return b, side, side, I, R, N


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def make_inputs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> ScanInputs:
    """Inputs drawn on the GPU, rounded to bfloat16 so that all dtypes see the same numbers; dt, B, C are views."""
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
    """The same with a gate, and a norm that changes nothing else."""
    inputs = make_inputs(shape, dtype)
    I = inputs.x.shape[-1]
    return inputs.gated(torch.randn_like(inputs.x), torch.ones(I, device="cuda"), torch.zeros(I, device="cuda"))


def median_ms(function: Callable, repeats: int = 20, warmup: int = 3) -> float:
    """Median device time of a call, in ms."""
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
    """Median device time of a call inside a CUDA graph of several, in ms."""
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


def forward_backward(scan: ModuleType, inputs: GatedInputs) -> None:
    """The gated scan and its gradients, as in training."""
    out, y, saved = scan.gated_forward(inputs, EPS)
    scan.gated_backward(out, y, saved, inputs, EPS)


def gated_ms(scan: ModuleType, inputs: GatedInputs, clock: Clock) -> tuple[float, float, float]:
    """Time of a backend's gated scan in ms: inference, forward of training, backward."""
    _, y, saved = scan.gated_forward(inputs, EPS)
    grad = torch.randn_like(y)
    infer = clock(lambda: scan.gated_forward(inputs, EPS, save=False))
    forward = clock(lambda: scan.gated_forward(inputs, EPS))
    return infer, forward, clock(lambda: scan.gated_backward(grad, y, saved, inputs, EPS))


def longest_kernels(function: Callable, shown: int, calls: int = 5) -> list[dict]:
    """Rows (kernel, ms) of the kernels that take longest in one call of the function."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profiled.key_averages():
        ms = getattr(event, "self_device_time_total", 0) / 1e3 / calls
        if ms > 0:
            name = event.key.split("<")[0].split("(")[0][-36:]
            times[name] = times.get(name, 0) + ms
    longest = sorted(times, key=lambda name: times[name], reverse=True)[:shown]
    return [{"kernel": name, "ms": times[name]} for name in longest]
