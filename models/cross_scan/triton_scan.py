"""Backend "triton": launches the kernels of `triton_kernels.py` on NVIDIA GPUs (float32, bfloat16 or float16 inputs).

`forward`, `backward` and `saved_shape` are what `operator.py` asks of a backend; `gated_forward` and `gated_backward`
do the same with the LayerNorm and the gate after the scan. Nothing waits for the GPU: CUDA graphs can record it."""

import torch
from torch import Tensor

from .inputs import GatedInputs, ScanInputs

try:
    import triton

    from . import triton_kernels as kernels

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error

NAME = "triton"
T = 16  # steps in a tile
SEGMENT = 16  # steps between two kept states, a multiple of T
MOST_STATES = 64
# Warps of 32 channels in a program; with fewer warps than `enough_warps` in all, the steps are cut into chunks, none
# shorter than `shortest_chunk`. `benchmarks/gpu.py --tune` varies these.
TUNING = {"forward_warps": 1, "backward_warps": 1, "enough_warps": 512, "shortest_chunk": 32}
# Where one warp is four times slower than two in the backward (measured; the reverse holds at rank 48).
BACKWARD_WARPS_BY_RANK = {24: 2}


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels can run, otherwise why not."""
    if IMPORT_ERROR is not None:
        return f"{IMPORT_ERROR} (Triton comes with PyTorch's CUDA builds, or `pip install triton`)"
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        return "it needs an NVIDIA GPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 and float16, not {dtype}"
    return None


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The state before every segment of each direction."""
    (b, H, W, I), N = inputs.x.shape, inputs.A.shape[-1]
    return (b, 4, -(-H * W // SEGMENT), N, I)


class Problem:
    """Sizes, packed inputs and launch parameters of one call."""

    def __init__(self, inputs: ScanInputs, backwards: bool = False):
        x, dt_weight = inputs.x, inputs.dt_weight
        self.b, self.H, self.W, self.I = x.shape
        self.N = inputs.A.shape[-1]
        if self.N & (self.N - 1) or self.N > MOST_STATES:
            raise ValueError(f"scan backend 'triton': {self.N} states, expected a power of two up to {MOST_STATES}")
        self.R = 0 if dt_weight is None else dt_weight.shape[-1]
        self.L = self.H * self.W
        self.tiles = triton.cdiv(self.L, T)
        self.x = x.contiguous()
        self.dt = inputs.dt.contiguous() if dt_weight is None else inputs.dt
        self.D, self.dt_bias = inputs.D.contiguous(), inputs.dt_bias.contiguous()
        self.RP = max(16, triton.next_power_of_2(self.R))
        warps = self.warps(backwards)
        self.chunk = self._chunk()
        self.chunks = triton.cdiv(self.L, self.chunk)
        unroll = max(i for i in range(1, 9) if self.R % i == 0) if self.R else 0
        self.constants = dict(N=self.N, R=self.R, UNROLL=unroll, T=T, BD=32 * warps)
        self.constants |= dict(num_warps=warps, num_stages=1, enable_fp_fusion=True)
        self.blocks = triton.cdiv(self.I, 32 * warps)
        self.packed = x.new_empty(self.b, 4, self.tiles, 2 * self.N + self.R, T, dtype=torch.float32)
        self.weights = x.new_empty(4, self.N + self.R, self.I, dtype=torch.float32)
        self._pack(inputs)

    def warps(self, backwards: bool) -> int:
        """Warps of 32 channels in a program of the scan kernels."""
        if backwards:
            return BACKWARD_WARPS_BY_RANK.get(self.R, TUNING["backward_warps"])
        return TUNING["forward_warps"]

    def _chunk(self):
        """Steps in a chunk: all of them if that occupies the GPU."""
        warps = self.b * 4 * triton.cdiv(self.I, 32)
        wanted = triton.cdiv(2 * TUNING["enough_warps"], warps)
        if warps >= TUNING["enough_warps"] or self.L < 2 * TUNING["shortest_chunk"]:
            return self.tiles * T
        return max(TUNING["shortest_chunk"], triton.cdiv(triton.cdiv(self.L, wanted), SEGMENT) * SEGMENT)

    def _pack(self, inputs: ScanInputs) -> None:
        # pixels evenly spaced and the last axis dense: so are the slices of one projection; anything else is copied
        maps = (t.flatten(0, 2) for t in (inputs.dt, inputs.B, inputs.C))
        dt, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in maps)
        A = inputs.A.contiguous()
        dt_weight = A if inputs.dt_weight is None else inputs.dt_weight.contiguous()  # not read if it is A
        strides = (stride for t in (dt, B, C) for stride in t.stride()[:2])
        length = 64
        blocks = triton.cdiv(self.tiles * T, length)
        sizes = (self.H, self.W, self.I, self.tiles, blocks)
        constants = dict(N=self.N, R=self.R, RP=self.RP, T=T, BL=length, num_warps=4, enable_fp_fusion=True)
        kernels.pack_kernel[(blocks + triton.cdiv(self.I, length), self.b * 4)](
            dt, B, C, A, dt_weight, self.packed, self.weights, *strides, *sizes, **constants
        )

    def hand_on(self, v: Tensor, ends: Tensor, slots: int, stride: int, backwards: bool) -> None:
        """Fills `ends` with what each chunk is handed: states of `forward`, gradients of states of `backward`."""
        totals = self.weights.new_empty(self.b, 4, self.chunks, self.I)
        tensors = (v, self.dt, self.packed, self.weights, self.dt_bias, ends, totals)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        kernels.ends_kernel[(self.blocks, self.chunks - 1, self.b * 4)](
            *tensors, *sizes, BACKWARDS=backwards, **self.constants
        )
        constants = dict(NR=self.N + self.R, N=self.N, T=T, BD=32, num_warps=1, num_stages=1, enable_fp_fusion=True)
        kernels.hand_on_kernel[(triton.cdiv(self.I, 32), self.N, self.b * 4)](
            self.weights, totals, ends, self.I, self.chunks, slots, stride, BACKWARDS=backwards, **constants
        )

    def scan(self, starts: Tensor, planes: Tensor, slots: int, stride: int, save: bool) -> None:
        """Launches the recurrence: `planes` and, with `save`, the kept states."""
        tensors = (self.x, self.dt, self.packed, self.weights, self.D, self.dt_bias, starts, planes)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        kernels.scan_kernel[(self.blocks, self.chunks, self.b * 4)](
            *tensors, *sizes, SAVE=save, SEGMENT=SEGMENT, **self.constants
        )

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
        """Launches the recurrence's backward; see `triton_kernels.scan_backward_kernel` for what it fills."""
        inner = carry.new_empty(self.b, 4, self.chunks, SEGMENT // T - 1, self.N, self.I)
        inputs = (grad_y, self.x, self.dt, self.packed, self.weights, self.D, self.dt_bias, saved)
        filled = (carry, inner, planes, d_dt, partials, parameters)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, saved.shape[2])
        kernels.scan_backward_kernel[(self.blocks, self.chunks, self.b * 4)](
            *inputs,
            *filled,
            *sizes,
            SEGMENT=SEGMENT,
            RP=self.RP,
            NP=max(16, self.N),
            PRECISION="tf32x3" if self.x.dtype == torch.float32 else "tf32",
            # the interpreter can't multiply bfloat16
            ROUND=self.x.dtype == torch.bfloat16 and not triton.knobs.runtime.interpret,
            **self.constants,
        )


def _sum_planes(planes, out):
    block = 1024
    kernels.sum_planes_kernel[(triton.cdiv(out.numel(), block),)](
        planes, out, out.numel(), BLOCK=block, num_warps=4, enable_fp_fusion=True
    )
    return out


def _scan(problem: type[Problem], inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor]:
    """The planes (4, b, H, W, I) of y, and what is kept."""
    p, x = problem(inputs), inputs.x
    planes = x.new_empty(4, *x.shape)
    saved = p.weights.new_empty(saved_shape(inputs) if save else (0,))
    starts, stride = saved, p.chunk // SEGMENT
    if not save:
        starts, stride = p.weights.new_empty(p.b, 4, p.chunks, p.N, p.I), 1
    slots = starts.shape[2]
    if p.chunks > 1:
        p.hand_on(p.x, starts, slots, stride, backwards=False)
    p.scan(starts, planes, slots, stride, save)
    return planes, saved


def forward(inputs: ScanInputs, save: bool = True, problem: type[Problem] = Problem) -> tuple[Tensor, Tensor]:
    """y (b, H, W, I) and the kept states, empty without `save`."""
    x = inputs.x
    with torch.cuda.device_of(x):
        planes, saved = _scan(problem, inputs, save)
        return _sum_planes(planes, x.new_empty(x.shape)), saved


def backward(grad_y: Tensor, saved: Tensor, inputs: ScanInputs, problem: type[Problem] = Problem) -> ScanInputs:
    """The gradients of the inputs."""
    x = inputs.x
    with torch.cuda.device_of(x):
        p = problem(inputs, backwards=True)
        grad_y = grad_y.contiguous()
        new = p.weights.new_empty
        carry = p.weights.new_zeros(p.b, 4, p.chunks, p.N, p.I)
        if p.chunks > 1:
            p.hand_on(grad_y, carry, p.chunks, 1, backwards=True)
        planes = x.new_empty(4, *x.shape)
        d_dt, dB, dC = (t.new_empty(t.shape) for t in (inputs.dt, inputs.B, inputs.C))
        partials = new(p.blocks, p.b, 4, p.tiles * T, 2 * p.N + p.R)
        parameters = p.weights.new_zeros(p.b, 4, p.chunks, p.N + p.R + 2, p.I)
        p.scan_backward(grad_y, saved, carry, planes, d_dt, partials, parameters)
        dx = _sum_planes(planes, x.new_empty(x.shape))
        block, size = 1024, partials[0].numel()
        constants = dict(N=p.N, R=p.R, num_warps=4, enable_fp_fusion=True)
        kernels.sum_blocks_kernel[(triton.cdiv(size, block),)](
            partials, dB, dC, d_dt, size, p.blocks, p.H, p.W, p.tiles * T, BLOCK=block, **constants
        )
        dA, dD, d_bias = new(4, p.I, p.N), new(4, p.I), new(4, p.I)
        d_weight = None if inputs.dt_weight is None else new(4, p.I, p.R)
        outputs = (dA, dA if d_weight is None else d_weight, dD, d_bias)
        kernels.sum_parameters_kernel[(triton.cdiv(p.I, 128), p.N + p.R + 2, 4)](
            parameters, *outputs, p.I, p.b, p.chunks, BD=128, **constants
        )
        return ScanInputs(x=dx, dt=d_dt, B=dB, C=dC, A=dA, D=dD, dt_bias=d_bias, dt_weight=d_weight)


def gated_forward(
    inputs: GatedInputs, eps: float, save: bool = True, problem: type[Problem] = Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(scan) * SiLU(z): (out, y, saved). y, the scan itself, and the kept states are empty without `save`."""
    x = inputs.x
    with torch.cuda.device_of(x):
        planes, saved = _scan(problem, inputs.scan, save)
        I = x.shape[-1]
        out, y = x.new_empty(x.shape), x.new_empty(x.shape if save else (0,))
        z = _even(inputs.z)
        width = triton.next_power_of_2(I)
        tokens, length = out.numel() // I, max(1, 2048 // width)
        tensors = (planes, z, inputs.norm_weight, inputs.norm_bias, y, out)
        sizes = (out.numel(), tokens, I, z.stride(0), eps)
        kernels.gate_kernel[(triton.cdiv(tokens, length),)](
            *tensors, *sizes, SAVE=save, BT=length, BI=width, num_warps=4, enable_fp_fusion=True
        )
        return out, y, saved


def gated_backward(
    grad: Tensor, y: Tensor, saved: Tensor, inputs: GatedInputs, eps: float, problem: type[Problem] = Problem
) -> GatedInputs:
    """The gradients of the inputs."""
    with torch.cuda.device_of(inputs.x):
        I = inputs.x.shape[-1]
        grad, z = grad.contiguous(), _even(inputs.z)
        width = triton.next_power_of_2(I)
        tokens, length = y.numel() // I, max(1, 2048 // width)
        programs = min(264, triton.cdiv(tokens, length))  # two for each multiprocessor of the largest GPUs
        dy, dz = y.new_empty(y.shape), inputs.z.new_empty(inputs.z.shape)
        parameters = y.new_empty(programs, 2, I, dtype=torch.float32)
        tensors = (grad, y, z, inputs.norm_weight, inputs.norm_bias, dy, dz, parameters)
        sizes = (tokens, I, z.stride(0), eps)
        kernels.gate_backward_kernel[(programs,)](
            *tensors, *sizes, BT=length, BI=width, num_warps=4, enable_fp_fusion=True
        )
        d_weight, d_bias = parameters[:, 0].sum(0), parameters[:, 1].sum(0)
    return backward(dy, saved, inputs.scan, problem).gated(dz, d_weight, d_bias)


def _even(t):
    """(b, H, W, I) as (b H W, I) with dense channels: a view where possible."""
    t = t.flatten(0, 2)
    return t if t.stride(-1) == 1 else t.contiguous()
