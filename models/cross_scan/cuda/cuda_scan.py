"""Backend "cuda": the scan with the norm and the gate after it, forward and backward, in CUDA C++.

The recurrence is in `cuda_kernels.cu`, what surrounds it in `cuda_around.cu`. Triton, whose kernels define the
layouts, decides itself how a tile lies in registers, needs twice the time (`benchmarks/notes`), and takes most
of a minute to compile; NVRTC takes seconds. Where these kernels do not fit, Triton's run: with other than 16 states, or
channels that are no multiple of 32."""

from pathlib import Path

import torch
from torch import Tensor

from ...kernels import nvrtc, sum_parts
from ...kernels.nvrtc import ELEMENTS, MOST_BLOCKS, MOST_CHANNELS, aligned, warps_of_block
from ..backends import SELF_TEST
from ..gpu_problem import WARP, GPUProblem, T, even
from ..gpu_problem import saved_shape as saved_shape
from ..problems import GatedInputs, ScanInputs
from ..triton import triton_scan

NAME = "cuda"
MOST_SHARED_BYTES = 96 << 10
SCAN = nvrtc.Kernels(
    Path(__file__).with_name("cuda_kernels.cu"),
    ("scan_kernel", "scan_saving_kernel", "scan_backward_kernel", "ends_kernel", "ends_backwards_kernel"),
    MOST_SHARED_BYTES,
)
OTHERS = ("pack_kernel", "hand_on_kernel", "hand_on_backwards_kernel", "sum_planes_kernel", "sum_blocks_kernel")
OTHERS += ("sum_parameters_kernel", "gate_kernel", "gate_saving_kernel", "gate_backward_kernel")
AROUND = nvrtc.Kernels(Path(__file__).with_name("cuda_around.cu"), OTHERS)

# the kernels' own numbers
STATES = 16
SCRATCH = 4 * 144  # numbers of four sums in progress
PACK_THREADS, PACK_TILES = 256, 4
SUM_THREADS, SUM_WIDTH = 256, 8
MOST_STEPS = 1 << 22

# Warps of a block, by the rank of the steps: the fastest of 1, 2 and 4 at batch 32 on an H200 (GPU_NOTES.md).
FORWARD_WARPS = {6: 2}
BACKWARD_WARPS = {12: 4, 48: 4}
OTHER_FORWARD_WARPS, OTHER_BACKWARD_WARPS = 1, 2


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if the kernels can run, otherwise the reason."""
    return nvrtc.why_not(device) or triton_scan.why_not(device, dtype)


class CUDAProblem(GPUProblem):
    """The packed inputs and launches of one call."""

    def __init__(self, inputs: ScanInputs, projected: Tensor, backwards: bool = False):
        super().__init__(inputs, backwards)
        self.x = aligned(inputs.x)
        numbers = packed_floats(self.x.dtype, self.R)
        self.packed = self.x.new_empty(self.b, 4, self.tiles, numbers, dtype=torch.float32)
        self._pack(inputs, projected)

    def launch(self, name: str, shared_bytes: int, chunks: int, *arguments: Tensor | int) -> None:
        """Launch a kernel of `cuda_kernels.cu`."""
        defines = defines_of_scan(self.x.dtype, self.R, self.backwards)
        threads = 32 * warps_of_scan(self.R, self.backwards)
        SCAN.launch(name, self.x, defines, (self.I // WARP, chunks, 4 * self.b), threads, arguments, shared_bytes)

    def _pack(self, inputs, projected):
        blocks = -(-self.tiles // PACK_TILES)
        of_weights = -(-(STATES + self.R) * self.I // PACK_THREADS)
        parameters = (inputs.A.contiguous(), inputs.dt_weight.contiguous())
        tensors = (aligned(projected), *parameters, self.packed, self.weights)
        grid = (blocks + of_weights, self.b * 4, 1)
        around(self.x, self.R, "pack_kernel", grid, PACK_THREADS, *tensors, self.H, self.W, self.tiles, blocks)

    def hand_on(self, v: Tensor, ends: Tensor, slots: int, stride: int) -> None:
        totals = self.weights.new_empty(self.b, 4, self.chunks, self.I)
        tensors = (v, self.packed, self.weights, self.dt_bias, ends, totals)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        name = "_backwards_kernel" if self.backwards else "_kernel"
        shared = shared_bytes(self.x.dtype, self.R, False)  # more than enough
        self.launch(f"ends{name}", shared, self.chunks - 1, *tensors, *sizes)
        grid = (self.I // WARP, STATES, self.b * 4)
        around(self.x, self.R, f"hand_on{name}", grid, WARP, self.weights, totals, ends, self.chunks, slots, stride)

    def scan(self, starts: Tensor, planes: Tensor, slots: int, stride: int, save: bool) -> None:
        tensors = (self.x, self.packed, self.weights, self.D, self.dt_bias, starts, planes)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        name = "scan_saving_kernel" if save else "scan_kernel"
        self.launch(name, shared_bytes(self.x.dtype, self.R, False), self.chunks, *tensors, *sizes)

    def sum_planes(self, planes: Tensor) -> Tensor:
        """Return the sum of the directions: (4, b, H, W, I) -> (b, H, W, I)."""
        out = planes.new_empty(planes.shape[1:])
        vectors = out.numel() * out.element_size() // 16
        grid = (-(-vectors // SUM_THREADS), 1, 1)
        around(self.x, self.R, "sum_planes_kernel", grid, SUM_THREADS, planes, out, vectors)
        return out


def around(x: Tensor, R: int, name: str, grid: nvrtc.Grid, threads: int, *arguments: Tensor | int | float) -> None:
    """Launch a kernel of `cuda_around.cu` for maps like x."""
    AROUND.launch(name, x, defines_around(x.dtype, R, x.shape[-1]), grid, threads, arguments)


def defines_of_scan(dtype: torch.dtype, R: int, backwards: bool) -> nvrtc.Defines:
    """Return the macros that `cuda_kernels.cu` is compiled with."""
    return ("ELEMENT", ELEMENTS[dtype]), ("R", R), ("WARPS", warps_of_scan(R, backwards))


def defines_around(dtype: torch.dtype, R: int, I: int) -> nvrtc.Defines:
    """Return the macros that `cuda_around.cu` is compiled with."""
    return ("ELEMENT", ELEMENTS[dtype]), ("R", R), ("I", I)


def programs(I: int, R: int, dtype: torch.dtype, trains: bool) -> list[nvrtc.Program]:
    """Return what is compiled for scans of I channels and rank R; what gradients need too if it `trains`."""
    directions = (True, False) if trains else (False,)
    scans = [(SCAN.source, defines_of_scan(dtype, R, backwards)) for backwards in directions]
    sums = [(sum_parts.KERNELS.source, ())] if trains else []
    return [*scans, (AROUND.source, defines_around(dtype, R, I)), *sums]


def self_test_programs(dtype: torch.dtype) -> list[nvrtc.Program]:
    """Return what is compiled for the inputs of `backends.SELF_TEST`."""
    return programs(SELF_TEST["I"], SELF_TEST["R"], dtype, trains=False)


def fits(inputs: ScanInputs) -> bool:
    """Return whether the kernels are made for such inputs."""
    (b, H, W, I), N = inputs.x.shape, inputs.A.shape[-1]
    R, L = 0 if inputs.dt_weight is None else inputs.dt_weight.shape[-1], H * W
    if N != STATES or R == 0 or I % WARP != 0 or I > MOST_CHANNELS or L >= MOST_STEPS:
        return False
    most = 4 * b * -(-L // T) * T * max(I, I // WARP * (2 * N + padded(R)))  # offsets have 32 bits
    return most < 1 << 32 and shared_bytes(inputs.x.dtype, R, True) <= MOST_SHARED_BYTES


def warps_of_scan(R: int, backwards: bool) -> int:
    """Return the warps that share the states of 32 channels."""
    return BACKWARD_WARPS.get(R, OTHER_BACKWARD_WARPS) if backwards else FORWARD_WARPS.get(R, OTHER_FORWARD_WARPS)


def packed_floats(dtype: torch.dtype, R: int) -> int:
    """Return the number of floats in a packed tile (see `elements.cuh`)."""
    return T * (2 * STATES + (padded(R) // 2 if dtype == torch.bfloat16 else R))


def padded(R: int) -> int:
    """Return the rank that the matrix unit works with."""
    return -(-R // 16) * 16


def shared_bytes(dtype: torch.dtype, R: int, backwards: bool) -> int:
    """Return the size of a block's shared memory, whose parts the kernels' first lines list."""
    matrix, tile, warps = dtype == torch.bfloat16, WARP * T, warps_of_scan(R, backwards)
    pitch = WARP + (4 if matrix else 0)
    floats = WARP * (padded(R) if matrix else R) + WARP + T * pitch + 2 * packed_floats(dtype, R)
    if not backwards:
        return 4 * (floats + warps * tile) + dtype.itemsize * 2 * tile
    floats += R * pitch + T * pitch + 5 * STATES * WARP + warps * 2 * SCRATCH
    return 4 * floats + dtype.itemsize * 4 * tile + min(dtype.itemsize, 4) * T * (2 * STATES + R)


def forward(inputs: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor]:
    """Return y (b, H, W, I) and the saved states, empty without `save`."""
    if not fits(inputs):
        return triton_scan.forward(inputs, save)
    with torch.cuda.device_of(inputs.x):
        p = CUDAProblem(inputs, inputs.projected())
        planes, saved = p.forward(save)
        return p.sum_planes(planes), saved


def backward(grad_y: Tensor, saved: Tensor, inputs: ScanInputs) -> ScanInputs:
    """Return the gradients of the inputs."""
    if not fits(inputs):
        return triton_scan.backward(grad_y, saved, inputs)
    grads, _ = _backward(grad_y, saved, inputs, inputs.projected())
    return grads


def _backward(grad_y, saved, inputs, projected):
    """Return the gradients, and that of `projected`, of which those of dt, B and C are parts."""
    x = inputs.x
    with torch.cuda.device_of(x):
        p = CUDAProblem(inputs, projected, backwards=True)
        grad_y, new = aligned(grad_y), p.weights.new_empty
        carry = p.carry(grad_y)
        planes = x.new_empty(4, *x.shape)
        blocks = p.I // WARP
        # half the bytes where the results are 16 bits wide
        wide = torch.float32 if x.dtype == torch.float32 else torch.bfloat16
        partials = new(blocks, p.b, 4, p.tiles, T, 2 * STATES + p.R, dtype=wide)
        parameters = new(p.b, 4, p.chunks, STATES + p.R + 2, p.I)
        tensors = (grad_y, p.x, p.packed, p.weights, p.D, p.dt_bias, saved, carry, planes, partials, parameters)
        sizes = (p.H, p.W, p.I, p.chunk, p.tiles, saved.shape[2])
        shared = shared_bytes(x.dtype, p.R, True)
        p.launch("scan_backward_kernel", shared, p.chunks, *tensors, *sizes)
        dx = p.sum_planes(planes)
        d_projected = projected.new_empty(projected.shape)
        vectors = partials[0].numel() // SUM_WIDTH
        grid = (-(-vectors // SUM_THREADS), 1, 1)
        around(p.x, p.R, "sum_blocks_kernel", grid, SUM_THREADS, partials, d_projected, vectors, p.H, p.W, p.tiles)
        dA, d_weight, dD, d_bias = new(4, p.I, STATES), new(4, p.I, p.R), new(4, p.I), new(4, p.I)
        grid = (-(-p.I // 128), STATES + p.R + 2, 4)
        around(p.x, p.R, "sum_parameters_kernel", grid, 128, parameters, dA, d_weight, dD, d_bias, p.b, p.chunks)
        d_dt, dB, dC = d_projected.split([p.R, STATES, STATES], -1)
        return ScanInputs(dx, d_dt, dB, dC, dA, dD, d_bias, d_weight), d_projected


def gated_forward(inputs: GatedInputs, eps: float, save: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm(scan) * SiLU(z), the scan itself, and the saved states; the last two empty without `save`."""
    scan = inputs.scan()
    if not fits(scan):
        return triton_scan.gated_forward(inputs, eps, save)
    x = inputs.x
    with torch.cuda.device_of(x):
        p = CUDAProblem(scan, inputs.projected)
        planes, saved = p.forward(save)
        *norm, z = inputs.norm_and_gate
        out, y, z = x.new_empty(x.shape), x.new_empty(x.shape if save else (0,)), even(z)
        tokens, warps = out.numel() // p.I, warps_of_block(p.I)
        grid, name = (-(-tokens // warps), 1, 1), "gate_saving_kernel" if save else "gate_kernel"
        around(p.x, p.R, name, grid, 32 * warps, planes, z, *norm, y, out, tokens, z.stride(0), float(eps))
        return out, y, saved


def gated_backward(grad: Tensor, y: Tensor, saved: Tensor, inputs: GatedInputs, eps: float) -> GatedInputs:
    """Return the gradients of the inputs."""
    scan = inputs.scan()
    if not fits(scan):
        return triton_scan.gated_backward(grad, y, saved, inputs, eps)
    x, I, R = inputs.x, inputs.x.shape[-1], scan.dt.shape[-1]
    with torch.cuda.device_of(x):
        *norm, gate = inputs.norm_and_gate
        grad, z = aligned(grad), even(gate)
        tokens, warps = y.numel() // I, warps_of_block(I)
        blocks = min(MOST_BLOCKS, -(-tokens // warps))
        dy, dz = y.new_empty(y.shape), gate.new_empty(gate.shape)
        parts = y.new_empty(blocks, 2, I, dtype=torch.float32)
        tensors = (grad, y, z, *norm, dy, dz, parts)
        around(x, R, "gate_backward_kernel", (blocks, 1, 1), 32 * warps, *tensors, tokens, z.stride(0), float(eps))
        d_weight, d_bias = parts.new_empty(I), parts.new_empty(I)
        sum_parts.sum_parts(parts, d_weight, d_bias)
    grads, d_projected = _backward(dy, saved, scan, inputs.projected)
    parameters = (grads.A, grads.D, grads.dt_bias, grads.dt_weight)
    return GatedInputs(grads.x, dz, d_projected, *parameters, d_weight, d_bias)
