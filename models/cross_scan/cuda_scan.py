"""Backend "cuda": `triton_scan` with its two slow kernels, the recurrence and its backward, in CUDA C++.

Triton decides itself how a tile lies in registers and passes every sum over channels through shared memory;
`cuda_kernels.cu` does neither, and needs less than half the time (`benchmarks/GPU_NOTES.md`). It is compiled on first
use, in about a second for each rank, by NVRTC, which PyTorch's CUDA builds bring along: no CUDA toolkit is needed.
Where the kernels do not fit (other than 16 states, channels that are no multiple of 32) Triton's run."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from . import triton_scan

try:
    from cuda.bindings import driver, nvrtc

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error

NAME = "cuda"
SOURCE = Path(__file__).with_name("cuda_kernels.cu")
ELEMENTS = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}
CHANNELS = 32  # of a block of threads
# Warps of a block, by the rank of the steps: the fastest of 1, 2 and 4 at batch 32 on an H200 (GPU_NOTES.md).
FORWARD_WARPS = {6: 2}
BACKWARD_WARPS = {12: 4, 48: 4}
OTHER_FORWARD_WARPS, OTHER_BACKWARD_WARPS = 1, 2
STATES = 16
SCRATCH = 4 * 144  # numbers of four sums on their way, as in the kernels
MOST_SHARED_BYTES = 96 << 10
MOST_STEPS = 1 << 22

saved_shape = triton_scan.saved_shape


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels can run, otherwise why not."""
    if IMPORT_ERROR is not None:
        return f"{IMPORT_ERROR} (`pip install cuda-bindings`; PyTorch's CUDA builds bring it)"
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs, not AMD's"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or later"
    return triton_scan.why_not(device, dtype)


def compile_source(dtype: torch.dtype, rank: int, warps: int, capability: int) -> bytes:
    """The machine code of the kernels for a dtype, a rank of the steps and a compute capability such as 90."""
    program = _checked(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
    defines = dict(ELEMENT=ELEMENTS[dtype], R=rank, WARPS=warps)
    options = [f"--gpu-architecture=sm_{capability}", "-std=c++17", *(f"-D{name}={v}" for name, v in defines.items())]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{SOURCE.name} could not be compiled for sm_{capability}: {log.decode(errors='replace')}")
    code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    return code


def _checked(result):
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA driver: {error}")
    return values[0] if values else None


@functools.cache
def _kernels(device_index, dtype, rank, warps):
    """The kernels by their names, on one GPU."""
    major, minor = torch.cuda.get_device_capability(device_index)
    module = _checked(driver.cuModuleLoadData(compile_source(dtype, rank, warps, 10 * major + minor)))
    found = {}
    for name in ("scan_kernel", "scan_saving_kernel", "scan_backward_kernel"):
        found[name] = _checked(driver.cuModuleGetFunction(module, name.encode()))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(found[name], attribute, MOST_SHARED_BYTES))
    return found


class Problem(triton_scan.Problem):
    """Launches the CUDA kernels where they fit: 16 states, a multiple of 32 channels, low-rank steps."""

    def warps(self, backwards: bool) -> int:
        return CHANNELS // 32 if self._fits() else super().warps(backwards)

    def _fits(self):
        most = 4 * self.b * self.tiles * triton_scan.T * max(self.I, self.I // CHANNELS * (2 * self.N + self.R))
        shape_fits = self.N == STATES and self.I % CHANNELS == 0 and self.R > 0
        return shape_fits and self.L < MOST_STEPS and most < 1 << 32 and self._shared(True) <= MOST_SHARED_BYTES

    def _warps_of_block(self, backwards):
        if backwards:
            return BACKWARD_WARPS.get(self.R, OTHER_BACKWARD_WARPS)
        return FORWARD_WARPS.get(self.R, OTHER_FORWARD_WARPS)

    def _shared(self, backwards):
        """Bytes of shared memory; the kernels' first lines say what for."""
        rows, tile, warps = 2 * self.N + self.R, CHANNELS * triton_scan.T, self._warps_of_block(backwards)
        floats = self.R * CHANNELS + tile + 2 * rows * triton_scan.T
        if backwards:
            floats += self.R * CHANNELS + 6 * tile + warps * 2 * SCRATCH + rows * triton_scan.T
            return 4 * floats + 4 * tile * self.x.element_size()
        return 4 * (floats + warps * tile) + 2 * tile * self.x.element_size()

    def _launch(self, name, backwards, tensors, integers):
        warps = self._warps_of_block(backwards)
        kernel = _kernels(self.x.device.index, self.x.dtype, self.R, warps)[name]
        values = (*(t.data_ptr() for t in tensors), *integers)
        types = (ctypes.c_void_p,) * len(tensors) + (ctypes.c_int,) * len(integers)
        stream = torch.cuda.current_stream(self.x.device).cuda_stream
        grid, block = (self.blocks, self.chunks, 4 * self.b), (32 * warps, 1, 1)
        shared = self._shared(backwards)
        _checked(driver.cuLaunchKernel(kernel, *grid, *block, shared, stream, (values, types), 0))

    def scan(self, starts: Tensor, planes: Tensor, slots: int, stride: int, save: bool) -> None:
        if not self._fits():
            return super().scan(starts, planes, slots, stride, save)
        tensors = (self.x, self.packed, self.weights, self.D, self.dt_bias, starts, planes)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        self._launch("scan_saving_kernel" if save else "scan_kernel", False, tensors, sizes)

    def scan_backward(
        self,
        grad_y: Tensor,
        saved: Tensor,
        carry: Tensor,
        planes: Tensor,
        d_dt: Tensor,
        partials: Tensor,
        parameters: Tensor,
    ) -> None:
        if not self._fits():
            return super().scan_backward(grad_y, saved, carry, planes, d_dt, partials, parameters)
        inputs = (grad_y, self.x, self.packed, self.weights, self.D, self.dt_bias, saved)
        filled = (carry, planes, partials, parameters)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, saved.shape[2])
        self._launch("scan_backward_kernel", True, inputs + filled, sizes)


forward = functools.partial(triton_scan.forward, problem=Problem)
backward = functools.partial(triton_scan.backward, problem=Problem)
gated_forward = functools.partial(triton_scan.gated_forward, problem=Problem)
gated_backward = functools.partial(triton_scan.gated_backward, problem=Problem)
