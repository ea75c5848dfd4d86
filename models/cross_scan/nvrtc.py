"""CUDA C++ kernels without a CUDA toolkit: compiled on first use by NVRTC, which PyTorch's CUDA builds bring along.

What was compiled is kept on disk, in `$VMUNET_CACHE` or the user's cache folder, under a hash of everything it depends
on: source, options, compiler. A cache that can't be read or written costs the seconds of compiling, nothing else."""

import contextlib
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

from .backends import SELF_TEST_TOLERANCE, describe_failure

try:
    from cuda.bindings import driver, nvrtc

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error

log = logging.getLogger("vmunet")
ELEMENTS = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES = {int: ctypes.c_int, float: ctypes.c_float}
HEADERS = tuple(Path(__file__).with_name(name) for name in ("elements.cuh", "instructions.cuh"))
Grid = tuple[int, int, int]
Defines = tuple[tuple[str, Any], ...]


def why_not(device: torch.device) -> str | None:
    """None if kernels can be compiled for the device, otherwise why not."""
    if IMPORT_ERROR is not None:
        return f"{IMPORT_ERROR} (`pip install cuda-bindings`; PyTorch's CUDA builds bring it)"
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs, not AMD's"
    if capability(device) < 80:
        return "it needs an NVIDIA GPU of compute capability 8.0 or later"
    return None


def agree(layer: str, name: str, error: Callable[[torch.device], float]) -> bool:
    """Whether the kernels of a layer run on the device of this name, and their `error` on a tiny input there is one of
    float32. The log says why not."""
    device = torch.device(name)
    reason = why_not(device)
    try:
        if reason is None and not (found := error(device)) < SELF_TEST_TOLERANCE[torch.float32]:
            reason = f"is off by {found:.1e}"
    except Exception as failure:  # whatever a compiler or a driver raises
        reason = f"ended with {describe_failure(failure)}"
    if reason is not None:
        log.warning("%s: PyTorch's, which is slower; the CUDA kernel: %s", layer, reason)
    return reason is None


def compile_source(source: Path, defines: Defines, capability: int) -> bytes:
    """The machine code of a CUDA C++ file for a compute capability such as 90; once in a process.

    Raises RuntimeError with the compiler's log."""
    return compile_ahead(source, defines, capability).result()


@functools.cache
def compile_ahead(source: Path, defines: Defines, capability: int) -> Future:
    """The same, on its way: whoever knows what will be needed has it compiled side by side with other things."""
    return _compilers().submit(_compile, source, defines, capability)


@functools.cache
def _compilers():
    return ThreadPoolExecutor(os.cpu_count(), "nvrtc")


def _compile(source, defines, capability):
    text, headers = source.read_bytes(), [header.read_bytes() for header in HEADERS]
    options = [f"--gpu-architecture=sm_{capability}", "-std=c++17", *(f"-D{name}={value}" for name, value in defines)]
    kept = _cache_file(text, headers, options)
    with contextlib.suppress(OSError):  # not there, or not to be read
        return kept.read_bytes()
    names = [header.name.encode() for header in HEADERS]
    program = checked(nvrtc.nvrtcCreateProgram(text, source.name.encode(), len(headers), headers, names))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        said = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        checked(nvrtc.nvrtcGetProgramLog(program, said))
        raise RuntimeError(f"{source.name} could not be compiled for sm_{capability}: {said.decode(errors='replace')}")
    code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, code))
    _keep(kept, code)
    return code


def _cache_file(text, headers, options):
    folder = os.environ.get("VMUNET_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    version = checked(nvrtc.nvrtcVersion())
    key = hashlib.sha256(repr((text, headers, options, version)).encode()).hexdigest()
    return Path(folder, "vmunet", f"{key[:32]}.cubin")


def _keep(path, code):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, path.name)
            written.write_bytes(code)
            os.replace(written, path)  # whole or not at all: other processes may look for it
    except OSError as error:
        log.debug("compiled kernels are not kept: %s", error)


def aligned(t: Tensor) -> Tensor:
    """The tensor, or a copy, dense and at an address that vectors of 16 bytes can be read from."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def checked(result: tuple) -> Any:
    """What a CUDA function returned, without its status. Raises RuntimeError if that is an error."""
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA: {error}")
    return (values[0] if len(values) == 1 else tuple(values)) if values else None


def capability(device: torch.device | int) -> int:
    """The compute capability of a GPU as one number, such as 90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def functions(source: Path, names: tuple[str, ...], defines: Defines, device_index: int, shared_bytes: int = 0) -> dict:
    """The kernels of a file by their names, on one GPU; they may use so much dynamic shared memory."""
    module = checked(driver.cuModuleLoadData(compile_source(source, defines, capability(device_index))))
    found = {}
    for name in names:
        found[name] = checked(driver.cuModuleGetFunction(module, name.encode()))
        if shared_bytes:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            checked(driver.cuFuncSetAttribute(found[name], attribute, shared_bytes))
    return found


def launch(
    kernel: Any,
    grid: Grid,
    threads: int,
    arguments: Sequence[Tensor | int | float],
    shared_bytes: int = 0,
) -> None:
    """Launches a kernel on PyTorch's current stream of the current GPU; tensors are handed over as pointers."""
    values = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    types = tuple(ctypes.c_void_p if isinstance(a, Tensor) else TYPES[type(a)] for a in arguments)
    stream = torch.cuda.current_stream().cuda_stream
    checked(driver.cuLaunchKernel(kernel, *grid, threads, 1, 1, shared_bytes, stream, (values, types), 0))
