"""The cross-scan on CPUs: numba kernels (`cpu_kernels.py`) on PyTorch's memory, in PyTorch's own threads.

Those are OpenMP's, which spin for some milliseconds after each operation: threads of our own, or numba's, would have to
share the cores with them. Where PyTorch is built without OpenMP, and in a forked process, which has lost OpenMP's
threads, they are Python's: the kernels run without the GIL.
"""

import ctypes
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import ScanInputs
from .reference import scan_order

try:
    from . import cpu_kernels as kernels

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error

NAME = "cpu"
LANES, TILE = 16, 32  # of the kernels
HALVES = 2  # of the four directions, for the kernels too; each has its own y and gradient of x, which are added up last
ENOUGH_FOR_THREADS = 2_000_000  # state updates, about 0.3 ms; less is done before another thread has woken up
log = logging.getLogger("vmunet")


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels can run, otherwise why not."""
    if IMPORT_ERROR is not None:
        return f"numba can't be imported ({IMPORT_ERROR}); pip install -r requirements.txt"
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    if dtype == torch.float64:
        return "it computes in float32; in float64 the torch backend does"
    return None


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """Shape of the states kept by the forward, one for each tile of steps."""
    (b, H, W, I), N = inputs.x.shape, inputs.A.shape[-1]
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

    def __init__(self, inputs: ScanInputs):
        self.b, self.H, self.W, i = inputs.x.shape
        states = inputs.A.shape[-1]
        self.I, self.N = _rounded_up(i, LANES), _rounded_up(states, LANES)
        self.L, self.blocks = self.H * self.W, self.I // LANES
        self.R = 0 if inputs.dt_weight is None else inputs.dt.shape[-1]
        self.width = _rounded_up(self.R, 16)
        rates = _blocked(_filled_up(inputs.A * kernels.LOG2E, self.N), self.I)
        weight = rates.new_empty(0) if inputs.dt_weight is None else _blocked(inputs.dt_weight, self.I)
        dt, dt_strides = _tokens(inputs.dt, self.R or self.I)
        B, B_strides = _tokens(inputs.B, states)
        C, C_strides = _tokens(inputs.C, states)
        self.inputs = kernels.Inputs(
            x=_flat(self.channels(inputs.x)),
            dt=_flat(dt),
            B=_flat(B),
            C=_flat(C),
            rates=_flat(rates),
            D=_flat(self.channels(inputs.D)),
            bias=_flat(self.channels(inputs.dt_bias)),
            weight=_flat(weight),
            order=_order(self.H, self.W),
        )
        self.layout = kernels.Layout(self.L, self.blocks, self.N, states, self.R, dt_strides, B_strides, C_strides)

    def channels(self, tensor: Tensor) -> Tensor:
        """(..., i) -> (..., I), contiguous."""
        return _filled_up(tensor.float(), self.I).contiguous()

    def threads(self) -> int:
        return torch.get_num_threads() if self.b * self.L * 4 * self.I * self.N > ENOUGH_FOR_THREADS else 1


Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
IMPORTED_BY = os.getpid()


@functools.cache
def openmp_parallel() -> Callable | None:
    """GOMP_parallel of the OpenMP library that PyTorch is linked to, or None."""
    try:  # a symbol is looked for in the library and in those that it depends on
        function = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [Callback, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return function


@functools.cache
def _pool(process, threads):
    """Threads don't survive a fork, so every process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="cross-scan")


def in_threads(work: Callable[[], None], threads: int) -> None:
    """Calls `work` once in each thread, this one included. Raises what one of the calls has raised."""
    if threads == 1:
        work()
    elif (parallel := openmp_parallel() if os.getpid() == IMPORTED_BY else None) is None:
        futures = [_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
        work()
        for future in futures:
            future.result()
    else:
        errors = []

        def guarded(_):
            try:
                work()
            except BaseException as error:  # no exception can leave a C function
                errors.append(error)

        parallel(Callback(guarded), None, threads, 0)
        if errors:
            raise errors[0]


def _run(kernel, tasks, threads, *args):
    """kernel(*task, *args) for each task, in this thread and others."""
    if tasks and not kernel.signatures:
        _compile(kernel, tasks.pop(), args)
    queue = iter(tasks)  # next() is atomic under the GIL

    def work():
        for task in queue:
            kernel(*task, *args)

    in_threads(work, max(1, min(threads, len(tasks))))


def _compile(kernel, task, args):
    """The first call in a process: compiles, or finds the code that an earlier process left."""
    log.debug("compiling the CPU scan (%s); a few seconds, unless an earlier run has kept it", kernel.__name__)
    start = time.perf_counter()
    try:
        kernel(*task, *args)
    except OSError as error:
        log.warning("the compiled CPU scan can't be kept for the next run: %s", error)
        kernel(*task, *args)
    origin = f"found in {kernel.stats.cache_path}" if kernel.stats.cache_hits else "compiled"
    log.debug("the CPU scan (%s): %s in %.1f s", kernel.__name__, origin, time.perf_counter() - start)


def _spans(count, pieces):
    """[0, count) in at most `pieces` parts: [(first, last), ...]"""
    pieces = min(count, pieces)
    edges = [i * count // pieces for i in range(pieces + 1)]
    return list(itertools.pairwise(edges))


def forward(inputs: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor]:
    """y (b, H, W, I) and the kept states (empty without `save`)."""
    call, x = _Call(inputs), inputs.x
    y = x.new_empty(call.b, HALVES, call.L, call.I, dtype=torch.float32)
    saved = y.new_empty(saved_shape(inputs) if save else (0,))
    threads = call.threads()
    # Threads at neighbouring blocks of one y would take its cache lines from each other, and each part gathers B and C
    # anew: only the directions are parted if that occupies all threads to the end.
    spans = _spans(call.blocks, 1 if HALVES * call.b % threads == 0 else -(-threads // call.b))
    tasks = [(image, half, *span) for image in range(call.b) for span in spans for half in range(HALVES)]
    _run(kernels.forward_task, tasks, threads, call.inputs, call.layout, _flat(y), _flat(saved))
    return _cut(y[:, 0] + y[:, 1], x).to(x.dtype), saved


def backward(grad_y: Tensor, saved: Tensor, inputs: ScanInputs) -> ScanInputs:
    """The gradients of the inputs."""
    call, new = _Call(inputs), saved.new_empty
    b, L, I, N, width = call.b, call.L, call.I, call.N, call.width
    grads = ScanInputs(  # as the kernel lays them out
        x=new(b, HALVES, L, I),
        dt=new(b, L, 4, width if call.R else I),
        B=new(b, L, 4, N),
        C=new(b, L, 4, N),
        A=new(b, 4, call.blocks, N, LANES),
        D=new(b, 4, I),
        dt_bias=new(b, 4, I),
        dt_weight=new(b, 4, call.blocks, width, LANES),
    )
    weight_rows = new((0,))
    if inputs.dt_weight is not None:
        weight_rows = _filled_up(_filled_up(inputs.dt_weight, width), I, dim=-2).contiguous()
    tasks = list(itertools.product(range(b), range(HALVES)))
    arrays = (_flat(weight_rows), _flat(call.channels(grad_y)), _flat(saved), tuple(map(_flat, grads)))
    _run(kernels.backward_task, tasks, call.threads(), call.inputs, call.layout, *arrays)
    return _as_given(grads, inputs)


def _as_given(grads: ScanInputs, inputs: ScanInputs) -> ScanInputs:
    """The kernel's gradients summed over images and halves, in the inputs' shapes and dtypes."""
    i, N = inputs.x.shape[-1], inputs.A.shape[-1]

    def of_tokens(grad, like):
        return _cut(grad, like).to(like.dtype)

    def of_channels(grad):
        return grad.sum(0)[:, :i].contiguous()

    def of_blocks(grad, columns):
        return _unblocked(grad.sum(0), i)[..., :columns].contiguous()

    weight = inputs.dt_weight
    return ScanInputs(
        x=of_tokens(grads.x[:, 0] + grads.x[:, 1], inputs.x),
        dt=of_tokens(grads.dt, inputs.dt),
        B=of_tokens(grads.B, inputs.B),
        C=of_tokens(grads.C, inputs.C),
        A=of_blocks(grads.A, N),
        D=of_channels(grads.D),
        dt_bias=of_channels(grads.dt_bias),
        dt_weight=None if weight is None else of_blocks(grads.dt_weight, weight.shape[-1]),
    )
