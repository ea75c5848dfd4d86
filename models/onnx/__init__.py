"""Exported networks in ONNX Runtime with the fast scan, without PyTorch.

A file of `export.py --format onnx` holds the scan as a function of standard operators. ONNX Runtime takes an operator
of the same domain and name in its place: here the numba kernel of the "cpu" backend, called by onnxruntime-extensions.
`cross_scan.cc` is the same operator without Python.
"""

import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ..cross_scan.cpu import cpu_kernels as kernels
from ..cross_scan.export import DOMAIN, NAME, VERSION

if TYPE_CHECKING:
    import onnxruntime

LANES, TILE = kernels.LANES, kernels.TILE
HALVES = 2  # of the four directions; each has its own y
_threads = 1


def session(path: str | os.PathLike, threads: int | None = None) -> "onnxruntime.InferenceSession":
    """Return an ONNX Runtime session, on the CPU, of a file of `export.py --format onnx`.

    Args:
        path: the file
        threads: none: one for each CPU that the process may use. For the scan the number of the last call holds, in all
            sessions of the process

    Raises:
        ImportError: onnx, onnxruntime or onnxruntime-extensions is not installed
        ValueError: the file is no ONNX model, has no scan, or has another version of it
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    _check(path)
    global _threads
    _threads = threads or _available_cpus()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads
    # Its waiting threads would occupy the CPUs that the threads of the scan need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(_library())
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _check(path: str | os.PathLike) -> None:
    """Raise ValueError unless the file is an ONNX model with the scan in the version of this code."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path}: found something else, expected an ONNX model") from error
    if (DOMAIN, NAME) not in {(function.domain, function.name) for function in model.functions}:
        expected = "expected that of a network with a scan, from export.py --format onnx"
        raise ValueError(f"{path}: found no function {DOMAIN}::{NAME}, {expected}")
    (found,) = (entry.version for entry in model.opset_import if entry.domain == DOMAIN)
    if found != VERSION:
        raise ValueError(f"{path}: found version {found} of {DOMAIN}::{NAME}, expected {VERSION}; export it again")


def _missing(error: ModuleNotFoundError) -> ImportError:
    advice = "pip install onnx onnxruntime onnxruntime-extensions"
    return ImportError(f"vmunet.onnx.session: found no module {error.name!r}, expected it; {advice}")


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _AsList(np.ndarray):
    """An array that stays one where onnxruntime-extensions asks for a list, of which it would make an array again."""

    def tolist(self) -> "_AsList":  # type: ignore[override]
        return self


@functools.cache
def _library() -> str:
    """Define the operator, once in a process; return the library that registers it."""
    try:
        import onnxruntime_extensions as extensions
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    float32 = extensions.PyCustomOpDef.dt_float
    define = extensions.onnx_op(op_type=f"{DOMAIN}::{NAME}", inputs=[float32] * 8, outputs=[float32])
    define(lambda *inputs: cross_scan(*inputs).view(_AsList))
    return extensions.get_library_path()


def cross_scan(
    x: np.ndarray,
    dt: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    A: np.ndarray,
    D: np.ndarray,
    dt_bias: np.ndarray,
    dt_weight: np.ndarray,
) -> np.ndarray:
    """Return the cross-scan, (b, H, W, I), of contiguous float32 arrays; shapes are those of `cross_selective_scan`."""
    (b, H, W, i), N, R, L = x.shape, A.shape[-1], dt_weight.shape[-1], x.shape[1] * x.shape[2]
    columns = {"dt": R, "B": N, "C": N}  # of tokens
    expected: dict[str, tuple[int, ...]] = {name: (b, H, W, 4, count) for name, count in columns.items()}
    expected |= {"A": (4, i, N), "D": (4, i), "dt_bias": (4, i), "dt_weight": (4, i, R)}
    for array, (name, shape) in zip((dt, B, C, A, D, dt_bias, dt_weight), expected.items(), strict=True):
        if array.shape != shape:
            raise ValueError(f"{DOMAIN}::{NAME}, input {name}: found shape {array.shape}, expected {shape}")
    I, states = -(-i // LANES) * LANES, -(-N // LANES) * LANES
    inputs = kernels.Inputs(
        x=_pad(x, I).ravel(),
        dt=dt.ravel(),
        B=B.ravel(),
        C=C.ravel(),
        rates=_blocks(_pad(A * np.float32(kernels.LOG2E), states), I),
        D=_pad(D, I).ravel(),
        bias=_pad(dt_bias, I).ravel(),
        weight=_blocks(dt_weight, I),
        order=_order(H, W),
    )
    strides = [(4 * L * count, 4 * count, count) for count in columns.values()]
    layout = kernels.Layout(L, I // LANES, states, N, R, *strides)
    y = np.empty((b, HALVES, L, I), np.float32)
    edges = [part * layout.blocks // _threads for part in range(_threads + 1)]
    spans = [span for span in itertools.pairwise(edges) if span[0] < span[1]]
    tasks = [(image, half, *span) for image in range(b) for span in spans for half in range(HALVES)]
    saved = np.empty(0, np.float32)
    for _ in _pool(_threads).map(lambda task: kernels.forward_task(*task, inputs, layout, y.ravel(), saved), tasks):
        pass
    return (y[:, 0] + y[:, 1])[..., :i].reshape(x.shape)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="cross-scan")


@functools.lru_cache(maxsize=16)
def _order(H: int, W: int) -> np.ndarray:
    """Return the pixel of each step of the four directions; after the end the last one, for prefetching."""
    rows = np.arange(H * W)
    columns = rows.reshape(H, W).T.ravel()
    order = np.stack([rows, columns, rows[::-1], columns[::-1]])
    return np.pad(order, ((0, 0), (0, 2 * TILE)), mode="edge").ravel()


def _pad(array: np.ndarray, size: int, axis: int = -1) -> np.ndarray:
    """Pad an axis with zeros to `size`; return the array itself if it has that size."""
    lacking = size - array.shape[axis]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, lacking)
    return np.pad(array, widths) if lacking else array


def _blocks(parameter: np.ndarray, I: int) -> np.ndarray:
    """(4, i, n) -> (4, blocks, n, 16), flat, padded with channels of zeros to I."""
    blocked = _pad(parameter, I, axis=1).reshape(4, I // LANES, LANES, -1)
    return blocked.swapaxes(2, 3).ravel()
