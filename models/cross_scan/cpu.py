"""The cross-scan on CPUs: numba kernels (`cpu_kernels.py`) on PyTorch's memory, in threads of their own.

The threads are Python's, since the kernels run without the GIL: numba's own layers don't survive a fork, which data
loaders do, and compete with PyTorch's.
"""

import functools
import itertools
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from .reference import scan_order

try:
    from . import cpu_kernels as kernels
except ImportError as error:
    kernels, IMPORT_ERROR = None, str(error)

NAME = "cpu"
LANES, TILE = 16, 32  # of the kernels
GROUPS = 2  # of channels, whose shares of the gradients of dt, B and C are summed last
ENOUGH_FOR_THREADS = 2_000_000  # state updates, about 0.3 ms; less is done before another thread has woken up
log = logging.getLogger("vmunet")


def why_not(device, dtype):
    if kernels is None:
        return f"numba can't be imported ({IMPORT_ERROR}); pip install -r requirements.txt"
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    if dtype == torch.float64:
        return "it computes in float32; in float64 the torch backend does"
    return None


def saved_shape(b, H, W, I, N):
    """Shape of the states kept by the forward, one for each tile of steps."""
    return (b, 4, _rounded_up(H * W, TILE) // TILE, _rounded_up(I, LANES) // LANES, _rounded_up(N, LANES), LANES)


def _rounded_up(size, multiple):
    return -(-size // multiple) * multiple


def _flat(tensor):
    """The memory of a tensor from its first element on, as a one-dimensional array."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent if tensor.numel() else 0,), (1,)).numpy()


@functools.lru_cache(maxsize=16)
def _order(H, W):
    """The pixel of each step of the four directions; after the end the last one, for what is fetched ahead."""
    order = scan_order(H, W)
    return torch.cat([order, order[:, -1:].expand(4, 2 * TILE)], 1).flatten().numpy()


def _filled_up(tensor, size, dim=-1):
    """With zeros up to `size`; the tensor itself if it has that size."""
    lacking = size - tensor.shape[dim]
    return F.pad(tensor, (0, 0) * (-1 - dim) + (0, lacking)) if lacking else tensor


def _tokens(tensor, columns):
    """(b, H, W, 4, c) in float32 as (b, L, 4, `columns`), without a copy where the strides allow, and its strides."""
    tensor = _filled_up(tensor.float(), columns).flatten(1, 2)
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor, tensor.stride()[:3]


def _blocked(parameter, I):
    """(4, i, n) -> (4, blocks, n, 16), with channels of zeros up to I."""
    return _filled_up(parameter, I, dim=-2).unflatten(1, (-1, LANES)).transpose(2, 3).contiguous()


def _unblocked(blocked, i):
    """The way back, for the first i channels."""
    return blocked.transpose(2, 3).flatten(1, 2)[:, :i]


def _cut(tensor, like):
    """Without what filled up the last dimension, contiguous, in the shape of `like`."""
    return tensor[..., : like.shape[-1]].contiguous().view(like.shape)


class _Call:
    """The inputs as the kernels want them: float32, channels and states filled up to whole vectors."""

    def __init__(self, x, dt, B, C, A, D, dt_bias, dt_weight):
        self.b, self.H, self.W, i = x.shape
        self.I, self.N = _rounded_up(i, LANES), _rounded_up(A.shape[-1], LANES)
        self.L, self.blocks = self.H * self.W, self.I // LANES
        self.R = 0 if dt_weight is None else dt.shape[-1]
        self.width = _rounded_up(self.R, 16)
        rates = _blocked(_filled_up(A * kernels.LOG2E, self.N), self.I)
        weight = rates.new_empty(0) if dt_weight is None else _blocked(dt_weight, self.I)
        dt, dt_strides = _tokens(dt, dt.shape[-1] if self.R else self.I)
        (B, B_strides), (C, C_strides) = _tokens(B, B.shape[-1]), _tokens(C, C.shape[-1])
        tensors = self.channels(x), dt, B, C, rates, self.channels(D), self.channels(dt_bias), weight
        self.inputs = kernels.Inputs(*map(_flat, tensors), _order(self.H, self.W))
        self.layout = kernels.Layout(self.L, self.blocks, self.N, A.shape[-1], self.R, dt_strides, B_strides, C_strides)

    def channels(self, tensor):
        """(..., i) -> (..., I), contiguous."""
        return _filled_up(tensor.float(), self.I).contiguous()

    def threads(self):
        return torch.get_num_threads() if self.b * self.L * 4 * self.I * self.N > ENOUGH_FOR_THREADS else 1


@functools.cache
def _pool(process, threads):
    """Threads don't survive a fork, so every process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="cross-scan")


def _run(kernel, tasks, threads, *args):
    """kernel(*task, *args) for each task, in this thread and others."""
    if tasks and not kernel.signatures:
        _compile(kernel, tasks.pop(), args)
    queue = iter(tasks)  # next() is atomic under the GIL

    def work():
        for task in queue:
            kernel(*task, *args)

    others = min(threads, len(tasks)) - 1
    futures = [_pool(os.getpid(), threads).submit(work) for _ in range(others)]
    work()
    for future in futures:
        future.result()


def _compile(kernel, task, args):
    """The first call in a process: compiles, or finds the code that an earlier process left."""
    log.info("compiling the CPU scan (%s); a few seconds, unless an earlier run has kept it", kernel.__name__)
    start = time.perf_counter()
    try:
        kernel(*task, *args)
    except OSError as error:
        log.warning("the compiled CPU scan can't be kept for the next run: %s", error)
        kernel(*task, *args)
    origin = f"found in {kernel.stats.cache_path}" if kernel.stats.cache_hits else "compiled"
    log.info("the CPU scan (%s): %s in %.1f s", kernel.__name__, origin, time.perf_counter() - start)


def _spans(count, pieces):
    """[0, count) in at most `pieces` parts: [(first, last), ...]"""
    pieces = min(count, pieces)
    edges = [i * count // pieces for i in range(pieces + 1)]
    return list(itertools.pairwise(edges))


def forward(x, dt, B, C, A, D, dt_bias, dt_weight, save=True):
    """y (b, H, W, I) and the kept states (empty without `save`)."""
    call = _Call(x, dt, B, C, A, D, dt_bias, dt_weight)
    y = x.new_empty(call.b, call.L, call.I, dtype=torch.float32)
    saved = y.new_empty(saved_shape(*x.shape, A.shape[-1]) if save else 0)
    threads = call.threads()
    # each part gathers B and C anew, so no more of them than keep all threads busy to the end
    spans = _spans(call.blocks, 1 if threads == 1 else -(-2 * threads // call.b))
    tasks = [(image, *span) for image in range(call.b) for span in spans]
    _run(kernels.forward_task, tasks, threads, call.inputs, call.layout, _flat(y), _flat(saved))
    return _cut(y, x).to(x.dtype), saved


def backward(grad_y, saved, x, dt, B, C, A, D, dt_bias, dt_weight):
    """The gradients of the eight inputs."""
    call = _Call(x, dt, B, C, A, D, dt_bias, dt_weight)
    b, L, I, N, width = call.b, call.L, call.I, call.N, call.width
    groups, threads = min(GROUPS, call.blocks), call.threads()
    spans = _spans(groups, 1 if threads == 1 else groups)  # one group or all of them: both sum in the same order
    grads = [
        saved.new_empty(shape)
        for shape in (
            (b, L, I),
            (b, len(spans), L, 4, width) if call.R else (b, 1, L, 4, I),
            (b, len(spans), L, 4, N),
            (b, len(spans), L, 4, N),
            (b, 4, call.blocks, N, LANES),
            (b, 4, I),
            (b, 4, I),
            (b, 4, call.blocks, width, LANES),
        )
    ]
    weight_rows = saved.new_empty(0)
    if call.R:
        weight_rows = _filled_up(_filled_up(dt_weight, width), I, dim=-2).contiguous()
    tasks = [(image, *span, share) for share, (image, span) in enumerate(itertools.product(range(b), spans))]
    _run(
        kernels.backward_task, tasks, threads, groups, call.inputs, call.layout, _flat(weight_rows),
        _flat(call.channels(grad_y)), _flat(saved), tuple(map(_flat, grads)),
    )  # fmt: skip
    grad_x, grad_dt, grad_B, grad_C, grad_A, grad_D, grad_bias, grad_weight = grads
    d_x = _cut(grad_x, x).to(x.dtype)
    d_dt, d_B, d_C = (
        _cut(functools.reduce(torch.add, grad.unbind(1)), t).to(x.dtype)
        for grad, t in ((grad_dt, dt), (grad_B, B), (grad_C, C))
    )
    d_A = _unblocked(grad_A.sum(0), x.shape[-1])[..., : A.shape[-1]].contiguous()
    d_D, d_bias = (grad.sum(0)[:, : x.shape[-1]].contiguous() for grad in (grad_D, grad_bias))
    d_weight = None if dt_weight is None else _unblocked(grad_weight.sum(0), x.shape[-1])[..., : call.R].contiguous()
    return d_x, d_dt, d_B, d_C, d_A, d_D, d_bias, d_weight
