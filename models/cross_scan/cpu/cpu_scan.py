"""The cross-scan on CPUs: numba kernels (`cpu_kernels.py`) on PyTorch's memory, in PyTorch's own threads.

Those are OpenMP's, which spin for some milliseconds after each operation, so that other threads would have to share the
cores with them. Where PyTorch is built without OpenMP, and in a forked process, which has lost OpenMP's threads, the
kernels run in Python's threads, without the GIL.
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

from ..problems import ScanInputs
from ..reference import scan_order

try:
    from . import cpu_kernels as kernels

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error

LANES, TILE = 16, 32  # of the kernels
HALVES = 2  # of the four directions; each has its own y and gradient of x, which are added last
ENOUGH_FOR_THREADS = 2_000_000  # state updates, about 0.3 ms: less takes no longer than waking another thread
log = logging.getLogger("vmunet")


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if the kernels can run, otherwise the reason."""
    if IMPORT_ERROR is not None:
        return f"numba can't be imported ({IMPORT_ERROR}); pip install -r requirements.txt"
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    if dtype == torch.float64:
        return "it computes in float32; in float64 the torch backend does"
    return None


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """Return the shape of the states that the forward saves, one for each tile of steps."""
    (b, H, W, I), N = inputs.x.shape, inputs.A.shape[-1]
    return (b, 4, _round_up(H * W, TILE) // TILE, _round_up(I, LANES) // LANES, _round_up(N, LANES), LANES)


def _round_up(size, multiple):
    return -(-size // multiple) * multiple


def _flat(tensor):
    """Return the memory of a tensor from its first element on, as a one-dimensional array."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent if tensor.numel() else 0,), (1,)).numpy()


@functools.lru_cache(maxsize=16)
def _order(H, W):
    """Return the pixel of each step of the four directions; after the end the last one, for prefetching."""
    order = scan_order(H, W, torch.device("cpu"))
    return torch.cat([order, order[:, -1:].expand(4, 2 * TILE)], 1).flatten().numpy()


def _pad(tensor, size, dim=-1):
    """Pad a dimension with zeros to `size`; return the tensor itself if it has that size."""
    lacking = size - tensor.shape[dim]
    return F.pad(tensor, (0, 0) * (-1 - dim) + (0, lacking)) if lacking else tensor


def _tokens(tensor, columns):
    """Return (b, H, W, 4, c) in float32 as (b, L, 4, `columns`), a view where the strides allow, and its strides."""
    tensor = _pad(tensor.float(), columns).flatten(1, 2)
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor, tensor.stride()[:3]


def _to_blocks(parameter, I):
    """(4, i, n) -> (4, blocks, n, 16), padded with channels of zeros to I."""
    return _pad(parameter, I, dim=-2).unflatten(1, (-1, LANES)).transpose(2, 3).contiguous()


def _from_blocks(blocked, i):
    """(4, blocks, n, 16) -> (4, i, n), the first i channels."""
    return blocked.transpose(2, 3).flatten(1, 2)[:, :i]


def _crop(tensor, like):
    """Crop the last dimension to that of `like`; return a contiguous tensor of its shape."""
    return tensor[..., : like.shape[-1]].contiguous().view(like.shape)


class _KernelInputs:
    """The inputs as the kernels take them: float32, channels and states padded to whole vectors."""

    def __init__(self, inputs: ScanInputs):
        self.b, self.H, self.W, i = inputs.x.shape
        states = inputs.A.shape[-1]
        self.I, self.N = _round_up(i, LANES), _round_up(states, LANES)
        self.L, self.blocks = self.H * self.W, self.I // LANES
        self.R = 0 if inputs.dt_weight is None else inputs.dt.shape[-1]
        self.width = _round_up(self.R, 16)
        rates = _to_blocks(_pad(inputs.A * kernels.LOG2E, self.N), self.I)
        weight = rates.new_empty(0) if inputs.dt_weight is None else _to_blocks(inputs.dt_weight, self.I)
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
        return _pad(tensor.float(), self.I).contiguous()

    def threads(self) -> int:
        return torch.get_num_threads() if self.b * self.L * 4 * self.I * self.N > ENOUGH_FOR_THREADS else 1


Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
IMPORTED_BY = os.getpid()


@functools.cache
def openmp_parallel() -> Callable | None:
    """Return GOMP_parallel of the OpenMP library that PyTorch is linked to, or None."""
    try:  # symbols are looked up in the library and in those that it depends on
        function = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [Callback, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return function


@functools.cache
def _pool(process, threads):
    """Return this process's pool: threads don't survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="cross-scan")


def in_threads(work: Callable[[], None], threads: int) -> None:
    """Call `work` once in each thread, this one included. Raises the first exception of these calls."""
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
    """Call kernel(*task, *args) for each task, in this thread and others."""
    if tasks and not kernel.signatures:
        _compile(kernel, tasks.pop(), args)
    queue = iter(tasks)  # next() is atomic under the GIL

    def work():
        for task in queue:
            kernel(*task, *args)

    in_threads(work, max(1, min(threads, len(tasks))))


def _compile(kernel, task, args):
    """Call a kernel for the first time in a process, which compiles it or loads it from the cache."""
    log.debug("compiling the CPU scan (%s); a few seconds, unless it is cached", kernel.__name__)
    start = time.perf_counter()
    try:
        kernel(*task, *args)
    except OSError as error:
        log.warning("the compiled CPU scan can't be cached for the next run: %s", error)
        kernel(*task, *args)
    origin = f"found in {kernel.stats.cache_path}" if kernel.stats.cache_hits else "compiled"
    log.debug("the CPU scan (%s): %s in %.1f s", kernel.__name__, origin, time.perf_counter() - start)


def _spans(count, pieces):
    """Cut [0, count) into at most `pieces` parts: [(first, last), ...]"""
    pieces = min(count, pieces)
    edges = [i * count // pieces for i in range(pieces + 1)]
    return list(itertools.pairwise(edges))


def forward(inputs: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor]:
    """Return y (b, H, W, I) and the saved states (empty without `save`)."""
    call, x = _KernelInputs(inputs), inputs.x
    y = x.new_empty(call.b, HALVES, call.L, call.I, dtype=torch.float32)
    saved = y.new_empty(saved_shape(inputs) if save else (0,))
    threads = call.threads()
    # Threads at neighbouring blocks of one y would compete for its cache lines, and each part gathers B and C again:
    # only the directions are split if that occupies all threads to the end.
    spans = _spans(call.blocks, 1 if HALVES * call.b % threads == 0 else -(-threads // call.b))
    tasks = [(image, half, *span) for image in range(call.b) for span in spans for half in range(HALVES)]
    _run(kernels.forward_task, tasks, threads, call.inputs, call.layout, _flat(y), _flat(saved))
    return _crop(y[:, 0] + y[:, 1], x).to(x.dtype), saved


def backward(grad_y: Tensor, saved: Tensor, inputs: ScanInputs) -> ScanInputs:
    """Return the gradients of the inputs."""
    call, new = _KernelInputs(inputs), saved.new_empty
    b, L, I, N, width = call.b, call.L, call.I, call.N, call.width
    grads = ScanInputs(  # in the kernel's layout
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
        weight_rows = _pad(_pad(inputs.dt_weight, width), I, dim=-2).contiguous()
    tasks = list(itertools.product(range(b), range(HALVES)))
    arrays = (_flat(weight_rows), _flat(call.channels(grad_y)), _flat(saved), tuple(map(_flat, grads)))
    _run(kernels.backward_task, tasks, call.threads(), call.inputs, call.layout, *arrays)
    return _sum_gradients(grads, inputs)


def _sum_gradients(grads: ScanInputs, inputs: ScanInputs) -> ScanInputs:
    """Sum the kernel's gradients over images and halves; return them in the inputs' shapes and dtypes."""
    i, N = inputs.x.shape[-1], inputs.A.shape[-1]

    def of_tokens(grad, like):
        return _crop(grad, like).to(like.dtype)

    def of_channels(grad):
        return grad.sum(0)[:, :i].contiguous()

    def of_blocks(grad, columns):
        return _from_blocks(grad.sum(0), i)[..., :columns].contiguous()

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
