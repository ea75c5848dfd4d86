"""Backend "cuda": the scan with the norm and the gate after it, forward and backward, in CUDA C++.

The recurrence is in `cuda_kernels.cu`, what surrounds it in `cuda_around.cu`. Triton, whose kernels define the
layouts, decides itself how a tile lies in registers, needs twice the time (`benchmarks/GPU_NOTES.md`), and takes most
of a minute to compile; NVRTC takes seconds. Where these kernels do not fit (other than 16 states, channels that are no
multiple of 32) Triton's run."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from . import nvrtc, sum_parts, triton_scan
from .backends import SELF_TEST
from .inputs import GatedInputs, ScanInputs
from .nvrtc import ELEMENTS, aligned

NAME = "cuda"
IMPORT_ERROR = nvrtc.IMPORT_ERROR
SOURCE = Path(__file__).with_name("cuda_kernels.cu")
AROUND = Path(__file__).with_name("cuda_around.cu")
SCANS = ("scan_kernel", "scan_saving_kernel", "scan_backward_kernel", "ends_kernel", "ends_backwards_kernel")
OTHERS = ("pack_kernel", "hand_on_kernel", "hand_on_backwards_kernel", "sum_planes_kernel", "sum_blocks_kernel")
OTHERS += ("sum_parameters_kernel", "gate_kernel", "gate_saving_kernel", "gate_backward_kernel")

# the kernels' own numbers
T = 16  # steps in a tile, and between two kept states
STATES = 16
CHANNELS = 32  # of a block of threads
SCRATCH = 4 * 144  # numbers of four sums on their way
PACK_THREADS, PACK_TILES = 256, 4
SUM_THREADS, SUM_WIDTH = 256, 8
MOST_CHANNELS = 3072  # whose sums fit into 48 KiB
MOST_SHARED_BYTES = 96 << 10
MOST_STEPS = 1 << 22

# Warps of a block, by the rank of the steps: the fastest of 1, 2 and 4 at batch 32 on an H200 (GPU_NOTES.md).
FORWARD_WARPS = {6: 2}
BACKWARD_WARPS = {12: 4, 48: 4}
OTHER_FORWARD_WARPS, OTHER_BACKWARD_WARPS = 1, 2
# With fewer warps of 32 channels in all, the steps are cut into chunks, none shorter than SHORTEST_CHUNK.
ENOUGH_WARPS, SHORTEST_CHUNK = 512, 32
GATE_BLOCKS = 528  # that share all tokens in the gate's backward: four for each multiprocessor of the largest GPUs

saved_shape = triton_scan.saved_shape


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels can run, otherwise why not."""
    return nvrtc.why_not(device) or triton_scan.why_not(device, dtype)


class Problem:
    """Sizes, packed inputs and launches of one call."""

    def __init__(self, inputs: ScanInputs, projected: Tensor, backwards: bool = False):
        x, dt_weight = inputs.x, inputs.dt_weight
        self.b, self.H, self.W, self.I = x.shape
        assert dt_weight is not None  # or `fits` says no
        self.R, self.L = dt_weight.shape[-1], self.H * self.W
        self.tiles = -(-self.L // T)
        self.x, self.D, self.dt_bias = aligned(x), inputs.D.contiguous(), inputs.dt_bias.contiguous()
        self.backwards = backwards
        self.chunk = self._chunk()
        self.chunks = -(-self.L // self.chunk)
        self.rows = 2 * STATES + self.R
        numbers = packed_floats(x.dtype, self.R)
        self.packed = x.new_empty(self.b, 4, self.tiles, numbers, dtype=torch.float32)
        self.weights = x.new_empty(4, STATES + self.R, self.I, dtype=torch.float32)
        self._pack(inputs, projected)

    def _chunk(self):
        """Steps in a chunk: all of them if that occupies the GPU."""
        warps = self.b * 4 * self.I // CHANNELS
        if warps >= ENOUGH_WARPS or self.L < 2 * SHORTEST_CHUNK:
            return self.tiles * T
        chunks = -(-2 * ENOUGH_WARPS // warps)
        steps = -(-self.L // chunks)
        return max(SHORTEST_CHUNK, -(-steps // T) * T)

    def _launch(self, name, shared_bytes, chunks, *arguments):
        """Launches a kernel of `cuda_kernels.cu`, which is told all sizes after the tensors."""
        warps = warps_of_block(self.R, self.backwards)
        defines = defines_of_scan(self.x.dtype, self.R, self.backwards)
        kernels = nvrtc.functions(SOURCE, SCANS, defines, self.x.device.index, MOST_SHARED_BYTES)
        nvrtc.launch(kernels[name], (self.I // CHANNELS, chunks, 4 * self.b), 32 * warps, arguments, shared_bytes)

    def _pack(self, inputs, projected):
        blocks = -(-self.tiles // PACK_TILES)
        of_weights = -(-(STATES + self.R) * self.I // PACK_THREADS)
        parameters = (inputs.A.contiguous(), inputs.dt_weight.contiguous())
        tensors = (aligned(projected), *parameters, self.packed, self.weights)
        sizes = (self.H, self.W, self.tiles, blocks)
        grid = (blocks + of_weights, self.b * 4, 1)
        around(self.x, self.R, "pack_kernel", grid, PACK_THREADS, *tensors, *sizes)

    def hand_on(self, v: Tensor, ends: Tensor, slots: int, stride: int) -> None:
        """Fills `ends` with what each chunk is handed: states, or in the backward gradients of states."""
        totals = self.weights.new_empty(self.b, 4, self.chunks, self.I)
        tensors = (v, self.packed, self.weights, self.dt_bias, ends, totals)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        name = "_backwards_kernel" if self.backwards else "_kernel"
        shared = shared_bytes(self.x.dtype, self.R, False)  # more than enough
        self._launch(f"ends{name}", shared, self.chunks - 1, *tensors, *sizes)
        grid = (self.I // CHANNELS, STATES, self.b * 4)
        around(self.x, self.R, f"hand_on{name}", grid, CHANNELS, self.weights, totals, ends, self.chunks, slots, stride)

    def scan(self, starts: Tensor, planes: Tensor, slots: int, stride: int, save: bool) -> None:
        """The recurrence: `planes` and, with `save`, the kept states."""
        tensors = (self.x, self.packed, self.weights, self.D, self.dt_bias, starts, planes)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        name = "scan_saving_kernel" if save else "scan_kernel"
        self._launch(name, shared_bytes(self.x.dtype, self.R, False), self.chunks, *tensors, *sizes)

    def scan_backward(
        self, grad_y: Tensor, saved: Tensor, carry: Tensor, planes: Tensor, partials: Tensor, parameters: Tensor
    ) -> None:
        """The recurrence's backward; see `triton_kernels.scan_backward_kernel` for what it fills."""
        inputs = (grad_y, self.x, self.packed, self.weights, self.D, self.dt_bias, saved, carry)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, saved.shape[2])
        filled = (planes, partials, parameters)
        shared = shared_bytes(self.x.dtype, self.R, True)
        self._launch("scan_backward_kernel", shared, self.chunks, *inputs, *filled, *sizes)

    def sum_planes(self, planes: Tensor) -> Tensor:
        """(4, b, H, W, I) -> (b, H, W, I)."""
        out = planes.new_empty(planes.shape[1:])
        vectors = out.numel() * out.element_size() // 16
        around(
            self.x, self.R, "sum_planes_kernel", (-(-vectors // SUM_THREADS), 1, 1), SUM_THREADS, planes, out, vectors
        )
        return out


def around(x: Tensor, R: int, name: str, grid: nvrtc.Grid, threads: int, *arguments: Tensor | int | float) -> None:
    """Launches a kernel of `cuda_around.cu` for maps like x."""
    kernels = nvrtc.functions(AROUND, OTHERS, defines_around(x.dtype, R, x.shape[-1]), x.device.index)
    nvrtc.launch(kernels[name], grid, threads, arguments)


def defines_of_scan(dtype: torch.dtype, R: int, backwards: bool) -> nvrtc.Defines:
    """What `cuda_kernels.cu` is compiled for."""
    return ("ELEMENT", ELEMENTS[dtype]), ("R", R), ("WARPS", warps_of_block(R, backwards))


def defines_around(dtype: torch.dtype, R: int, I: int) -> nvrtc.Defines:
    """What `cuda_around.cu` is compiled for."""
    return ("ELEMENT", ELEMENTS[dtype]), ("R", R), ("I", I)


def compile_ahead(sizes: Iterable[tuple[int, int]], dtype: torch.dtype, device: torch.device, trains: bool) -> None:
    """Begins to compile what scans of `sizes`, (channels I, rank R), will need, side by side and in the background;
    what gradients need too if it `trains`."""
    capability = nvrtc.capability(device)
    for I, R in sorted(set(sizes), reverse=True):  # those that take longest first
        for backwards in (True, False) if trains else (False,):
            nvrtc.compile_ahead(SOURCE, defines_of_scan(dtype, R, backwards), capability)
        nvrtc.compile_ahead(AROUND, defines_around(dtype, R, I), capability)
    if trains:
        nvrtc.compile_ahead(sum_parts.SOURCE, (), capability)


def compile_for_self_test(dtype: torch.dtype, device: torch.device) -> None:
    """Begins to compile what the tiny inputs of `backends.SELF_TEST` need."""
    capability, R = nvrtc.capability(device), SELF_TEST["R"]
    nvrtc.compile_ahead(SOURCE, defines_of_scan(dtype, R, False), capability)
    nvrtc.compile_ahead(AROUND, defines_around(dtype, R, SELF_TEST["I"]), capability)


def fits(inputs: ScanInputs) -> bool:
    """Whether the kernels are made for such inputs."""
    (b, H, W, I), N = inputs.x.shape, inputs.A.shape[-1]
    R, L = 0 if inputs.dt_weight is None else inputs.dt_weight.shape[-1], H * W
    if N != STATES or R == 0 or I % CHANNELS != 0 or I > MOST_CHANNELS or L >= MOST_STEPS:
        return False
    most = 4 * b * -(-L // T) * T * max(I, I // CHANNELS * (2 * N + padded(R)))  # offsets have 32 bits
    return most < 1 << 32 and shared_bytes(inputs.x.dtype, R, True) <= MOST_SHARED_BYTES


def warps_of_block(R: int, backwards: bool) -> int:
    """Warps that share the states of 32 channels."""
    return BACKWARD_WARPS.get(R, OTHER_BACKWARD_WARPS) if backwards else FORWARD_WARPS.get(R, OTHER_FORWARD_WARPS)


def packed_floats(dtype: torch.dtype, R: int) -> int:
    """Of a packed tile, as `elements.cuh` has it."""
    return T * (2 * STATES + (padded(R) // 2 if dtype == torch.bfloat16 else R))


def padded(R: int) -> int:
    """The rank as the matrix unit has it."""
    return -(-R // 16) * 16


def shared_bytes(dtype: torch.dtype, R: int, backwards: bool) -> int:
    """A block's shared memory; the kernels' first lines say what for."""
    matrix, tile, warps = dtype == torch.bfloat16, CHANNELS * T, warps_of_block(R, backwards)
    pitch = CHANNELS + (4 if matrix else 0)
    floats = CHANNELS * (padded(R) if matrix else R) + CHANNELS + T * pitch + 2 * packed_floats(dtype, R)
    if not backwards:
        return 4 * (floats + warps * tile) + dtype.itemsize * 2 * tile
    floats += R * pitch + T * pitch + 5 * STATES * CHANNELS + warps * 2 * SCRATCH
    return 4 * floats + dtype.itemsize * 4 * tile + min(dtype.itemsize, 4) * T * (2 * STATES + R)


def _scan(inputs, projected, save):
    """The problem, the planes (4, b, H, W, I) of y, and what is kept."""
    p, x = Problem(inputs, projected), inputs.x
    planes = x.new_empty(4, *x.shape)
    saved = p.weights.new_empty(saved_shape(inputs) if save else (0,))
    starts, stride = saved, p.chunk // T
    if not save:
        starts, stride = p.weights.new_empty(p.b, 4, p.chunks, STATES, p.I), 1
    slots = starts.shape[2]
    if p.chunks > 1:
        p.hand_on(p.x, starts, slots, stride)
    p.scan(starts, planes, slots, stride, save)
    return p, planes, saved


def forward(inputs: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor]:
    """y (b, H, W, I) and the kept states, empty without `save`."""
    if not fits(inputs):
        return triton_scan.forward(inputs, save)
    with torch.cuda.device_of(inputs.x):
        p, planes, saved = _scan(inputs, inputs.projected(), save)
        return p.sum_planes(planes), saved


def backward(grad_y: Tensor, saved: Tensor, inputs: ScanInputs) -> ScanInputs:
    """The gradients of the inputs."""
    if not fits(inputs):
        return triton_scan.backward(grad_y, saved, inputs)
    grads, _ = _backward(grad_y, saved, inputs, inputs.projected())
    return grads._replace(**{name: getattr(grads, name).contiguous() for name in ("dt", "B", "C")})


def _backward(grad_y, saved, inputs, projected):
    """The gradients, and that of `projected`, of which those of dt, B and C are parts."""
    x = inputs.x
    with torch.cuda.device_of(x):
        p = Problem(inputs, projected, backwards=True)
        grad_y, new = aligned(grad_y), p.weights.new_empty
        carry = p.weights.new_zeros(p.b, 4, p.chunks, STATES, p.I)
        if p.chunks > 1:
            p.hand_on(grad_y, carry, p.chunks, 1)
        planes = x.new_empty(4, *x.shape)
        blocks = p.I // CHANNELS
        # half the bytes where the results are 16 bits wide
        wide = torch.float32 if x.dtype == torch.float32 else torch.bfloat16
        partials = new(blocks, p.b, 4, p.tiles, T, p.rows, dtype=wide)
        parameters = new(p.b, 4, p.chunks, STATES + p.R + 2, p.I)
        p.scan_backward(grad_y, saved, carry, planes, partials, parameters)
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
    """LayerNorm(scan) * SiLU(z): (out, y, saved). y, the scan itself, and the kept states are empty without `save`."""
    scan = inputs.scan
    if not fits(scan):
        return triton_scan.gated_forward(inputs, eps, save)
    x = inputs.x
    with torch.cuda.device_of(x):
        p, planes, saved = _scan(scan, inputs.projected, save)
        out, y, z = x.new_empty(x.shape), x.new_empty(x.shape if save else (0,)), _even(inputs.z)
        tokens = out.numel() // p.I
        grid, name = (-(-tokens // gate_warps(p.I)), 1, 1), "gate_saving_kernel" if save else "gate_kernel"
        norm = (inputs.norm_weight, inputs.norm_bias)
        around(p.x, p.R, name, grid, 32 * gate_warps(p.I), planes, z, *norm, y, out, tokens, z.stride(0), float(eps))
        return out, y, saved


def gated_backward(grad: Tensor, y: Tensor, saved: Tensor, inputs: GatedInputs, eps: float) -> GatedInputs:
    """The gradients of the inputs."""
    scan = inputs.scan
    if not fits(scan):
        return triton_scan.gated_backward(grad, y, saved, inputs, eps)
    x, I, R = inputs.x, inputs.x.shape[-1], scan.dt.shape[-1]
    with torch.cuda.device_of(x):
        grad, z = aligned(grad), _even(inputs.z)
        tokens, warps = y.numel() // I, gate_warps(I)
        blocks = min(GATE_BLOCKS, -(-tokens // warps))
        dy, dz = y.new_empty(y.shape), inputs.z.new_empty(inputs.z.shape)
        parts = y.new_empty(blocks, 2, I, dtype=torch.float32)
        tensors = (grad, y, z, inputs.norm_weight, inputs.norm_bias, dy, dz, parts)
        around(x, R, "gate_backward_kernel", (blocks, 1, 1), 32 * warps, *tensors, tokens, z.stride(0), float(eps))
        d_weight, d_bias = parts.new_empty(I), parts.new_empty(I)
        sum_parts.sum_parts(parts, d_weight, d_bias)
    grads, d_projected = _backward(dy, saved, scan, inputs.projected)
    parameters = (grads.A, grads.D, grads.dt_bias, grads.dt_weight)
    return GatedInputs(grads.x, dz, d_projected, *parameters, d_weight, d_bias)


def gate_warps(I: int) -> int:
    """Warps of a block of the gate's kernels."""
    return 8 if I <= 384 else 4 if I <= 768 else 2


def _even(t):
    """(b, H, W, I) as (b H W, I) with dense channels in vectors of 16 bytes: a view where possible."""
    t = t.flatten(0, 2)
    aligned = t.stride(-1) == 1 and t.stride(0) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0
    return t if aligned else t.contiguous()
