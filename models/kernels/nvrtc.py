"""CUDA C++ kernels without a CUDA toolkit: NVRTC, which PyTorch's CUDA builds bring along, compiles them on first use.

Compiled kernels are kept on disk, in `$VMUNET_CACHE` or the user's cache folder, under a hash of everything they depend
on: source, options, compiler. If that folder can't be read or written, they are compiled again in each process."""

import ctypes
import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cross_scan.backends import SELF_TEST_TOLERANCE, describe_failure, in_fresh_thread
from .kept_code import read_sealed, seal

try:
    from cuda.bindings import driver, nvrtc

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error

log = logging.getLogger("vmunet")
ELEMENTS = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES = {int: ctypes.c_int, float: ctypes.c_float}
HEADERS = tuple(Path(__file__).with_name(name) for name in ("elements.cuh", "instructions.cuh"))
MOST_CHANNELS = 3072  # of a kernel that sums over tokens: the sums of its warps fit into 48 KiB of shared memory
MOST_BLOCKS = 528  # that share all tokens in a backward: four for each multiprocessor of the largest GPUs
Arguments = Sequence[Tensor | int | float]
Grid = tuple[int, int, int]
Defines = tuple[tuple[str, Any], ...]  # macros and their values
Program = tuple[Path, Defines]


class Kernels:
    """The kernels `names` of the CUDA C++ file `source`; each may use `most_shared_bytes` of dynamic shared memory."""

    def __init__(self, source: Path, names: tuple[str, ...], most_shared_bytes: int = 0):
        self.source, self.names, self.most_shared_bytes = source, names, most_shared_bytes

    def launch(
        self, name: str, like: Tensor, defines: Defines, grid: Grid, threads: int, arguments: Arguments, shared: int = 0
    ) -> None:
        """Launch a kernel, compiled with `defines`, on the GPU of `like`, with `shared` bytes of shared memory."""
        with torch.cuda.device_of(like):
            kernels = functions(self.source, self.names, defines, like.device.index, self.most_shared_bytes)
            launch(kernels[name], grid, threads, arguments, shared)


class LayerKernels(Kernels):
    """The kernels of a layer for which PyTorch has slower ones.

    layer: its name in the log; error: its largest error on a tiny float32 input, given the device"""

    def __init__(self, source: Path, names: tuple[str, ...], layer: str, error: Callable[[torch.device], float]):
        super().__init__(source, names)
        self.layer, self.error = layer, error
        self.self_test = functools.cache(self._self_test)

    def work(self, device: str) -> bool:
        """Return whether the kernels run on the device of this name and agree with PyTorch's there."""
        return self.self_test(device)

    work._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see models/cross_scan/backends.py

    def _self_test(self, name):
        device = torch.device(name)
        reason, tolerance = why_not(device), SELF_TEST_TOLERANCE[torch.float32]
        try:
            if reason is None and not (error := in_fresh_thread(self.error, device)) < tolerance:
                reason = f"is off by {error:.1e}"
        except Exception as failure:  # whatever a compiler or a driver raises
            reason = f"ended with {describe_failure(failure)}"
        if reason is not None:
            log.warning("%s: using PyTorch's, which is slower; the CUDA kernel: %s", self.layer, reason)
        return reason is None


def warps_of_block(channels: int) -> int:
    """Return the warps of a block that normalises tokens of so many channels, as `elements.cuh` has it."""
    return 8 if channels <= 384 else 4 if channels <= 768 else 2


def why_not(device: torch.device) -> str | None:
    """Return None if kernels can be compiled for the device, otherwise the reason."""
    if IMPORT_ERROR is not None:
        return f"{IMPORT_ERROR} (`pip install cuda-bindings`; PyTorch's CUDA builds bring it)"
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs, not AMD's"
    if capability(device) < 80:
        return "it needs an NVIDIA GPU of compute capability 8.0 or later"
    return None


def compile_source(source: Path, defines: Defines, capability: int) -> bytes:
    """Return the machine code of a CUDA C++ file for a compute capability such as 90; compile it once in a process.

    Raises RuntimeError with the compiler's log."""
    return compile_ahead(source, defines, capability).result()


@functools.cache
def compile_ahead(source: Path, defines: Defines, capability: int) -> Future:
    """Start `compile_source` in the background; return a Future of the machine code."""
    return _compilers().submit(_compile, source, defines, capability)


@functools.cache
def _compilers():
    return ThreadPoolExecutor(os.cpu_count(), "nvrtc")


def _compile(source, defines, capability):
    text, headers = source.read_bytes(), [header.read_bytes() for header in HEADERS]
    options = [f"--gpu-architecture=sm_{capability}", "-std=c++17", *(f"-D{name}={value}" for name, value in defines)]
    cached = _cache_file(text, headers, options)
    if (code := read_sealed(cached)) is not None:
        return code
    names = [header.name.encode() for header in HEADERS]
    program = checked(nvrtc.nvrtcCreateProgram(text, source.name.encode(), len(headers), headers, names))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        lines = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        checked(nvrtc.nvrtcGetProgramLog(program, lines))
        raise RuntimeError(f"{source.name} could not be compiled for sm_{capability}: {lines.decode(errors='replace')}")
    code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, code))
    _write_cache(cached, code)
    return code


def _cache_file(text, headers, options):
    folder = os.environ.get("VMUNET_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    version = checked(nvrtc.nvrtcVersion())
    key = hashlib.sha256(repr((text, headers, options, version)).encode()).hexdigest()
    return Path(folder, "vmunet", f"{key[:32]}.sealed")


def _write_cache(path, code):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, path.name)
            written.write_bytes(seal(code))
            os.replace(written, path)  # atomic: other processes may be reading it
    except OSError as error:
        log.debug("compiled kernels can't be cached: %s", error)


def aligned(t: Tensor) -> Tensor:
    """Return the tensor, or a copy, contiguous and at an address that is a multiple of 16 bytes."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def checked(result: tuple) -> Any:
    """Return the values of a CUDA function's result. Raises RuntimeError if its status is an error."""
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA: {error}")
    return (values[0] if len(values) == 1 else tuple(values)) if values else None


def capability(device: torch.device | int) -> int:
    """Return the compute capability of a GPU as one number, such as 90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def functions(source: Path, names: tuple[str, ...], defines: Defines, device_index: int, shared_bytes: int = 0) -> dict:
    """Return the kernels of a file by name, loaded on one GPU and allowed so much dynamic shared memory."""
    module = checked(driver.cuModuleLoadData(compile_source(source, defines, capability(device_index))))
    found = {}
    for name in names:
        found[name] = checked(driver.cuModuleGetFunction(module, name.encode()))
        if shared_bytes:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            checked(driver.cuFuncSetAttribute(found[name], attribute, shared_bytes))
    return found


def launch(kernel: Any, grid: Grid, threads: int, arguments: Arguments, shared_bytes: int = 0) -> None:
    """Launch a kernel on PyTorch's current stream of the current GPU; tensors are passed as pointers."""
    values = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    types = tuple(ctypes.c_void_p if isinstance(a, Tensor) else TYPES[type(a)] for a in arguments)
    stream = torch.cuda.current_stream().cuda_stream
    checked(driver.cuLaunchKernel(kernel, *grid, threads, 1, 1, shared_bytes, stream, (values, types), 0))
