"""Backend "triton": launches the kernels of `triton_kernels.py` on NVIDIA GPUs (float32, bfloat16 or float16 inputs).

`forward`, `backward` and `saved_shape` are what `operator.py` asks of a backend; `gated_forward` and `gated_backward`
do the same with the LayerNorm and the gate after the scan. Nothing waits for the GPU: CUDA graphs can record it."""

import os

import torch
from torch import Tensor

from ..gpu_problem import WARP, GPUProblem, T, even
from ..gpu_problem import saved_shape as saved_shape
from ..problems import GatedInputs, ScanInputs

try:
    import triton

    from . import triton_kernels as kernels

    IMPORT_ERROR = None
except ImportError as error:
    IMPORT_ERROR = error

NAME = "triton"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # by which Triton decides, too
MOST_STATES = 64
# Warps of 32 channels in a program, the fastest measured (`benchmarks/notes/gpu_scan.md`).
WARPS = {"forward_warps": 1, "backward_warps": 1}
# Where one warp is four times slower than two in the backward (measured; the reverse holds at rank 48).
BACKWARD_WARPS_BY_RANK = {24: 2}


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if the kernels can run, otherwise the reason."""
    if IMPORT_ERROR is not None:
        return f"{IMPORT_ERROR} (Triton comes with PyTorch's CUDA builds, or `pip install triton`)"
    if device.type != "cuda" and not INTERPRETED:
        return "it needs an NVIDIA GPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 and float16, not {dtype}"
    return None


class TritonProblem(GPUProblem):
    """The packed inputs and launches of one call."""

    def __init__(self, inputs: ScanInputs, backwards: bool = False):
        super().__init__(inputs, backwards)
        if self.N & (self.N - 1) or self.N > MOST_STATES:
            raise ValueError(f"scan backend 'triton': {self.N} states, expected a power of two up to {MOST_STATES}")
        self.x = inputs.x.contiguous()
        self.dt = inputs.dt if self.R else inputs.dt.contiguous()
        self.RP = max(16, triton.next_power_of_2(self.R))
        warps = WARPS["forward_warps"]
        if backwards:
            warps = BACKWARD_WARPS_BY_RANK.get(self.R, WARPS["backward_warps"])
        unroll = max(i for i in range(1, 9) if self.R % i == 0) if self.R else 0
        self.constants = dict(N=self.N, R=self.R, UNROLL=unroll, T=T, BD=WARP * warps)
        self.constants |= dict(num_warps=warps, num_stages=1, enable_fp_fusion=True)
        self.blocks = triton.cdiv(self.I, WARP * warps)
        self.packed = self.x.new_empty(self.b, 4, self.tiles, 2 * self.N + self.R, T, dtype=torch.float32)
        self._pack(inputs)

    def _pack(self, inputs: ScanInputs) -> None:
        # pixels evenly spaced and the last axis contiguous: so are the slices of one projection; others are copied
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

    def hand_on(self, v: Tensor, ends: Tensor, slots: int, stride: int) -> None:
        totals = self.weights.new_empty(self.b, 4, self.chunks, self.I)
        tensors = (v, self.dt, self.packed, self.weights, self.dt_bias, ends, totals)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        kernels.ends_kernel[(self.blocks, self.chunks - 1, self.b * 4)](
            *tensors, *sizes, BACKWARDS=self.backwards, **self.constants
        )
        constants = dict(NR=self.N + self.R, N=self.N, T=T, BD=WARP)
        constants |= dict(num_warps=1, num_stages=1, enable_fp_fusion=True)
        kernels.hand_on_kernel[(triton.cdiv(self.I, WARP), self.N, self.b * 4)](
            self.weights, totals, ends, self.I, self.chunks, slots, stride, BACKWARDS=self.backwards, **constants
        )

    def scan(self, starts: Tensor, planes: Tensor, slots: int, stride: int, save: bool) -> None:
        tensors = (self.x, self.dt, self.packed, self.weights, self.D, self.dt_bias, starts, planes)
        sizes = (self.H, self.W, self.I, self.chunk, self.tiles, slots, stride)
        kernels.scan_kernel[(self.blocks, self.chunks, self.b * 4)](*tensors, *sizes, SAVE=save, **self.constants)


def _sum_planes(planes, out):
    block = 1024
    kernels.sum_planes_kernel[(triton.cdiv(out.numel(), block),)](
        planes, out, out.numel(), BLOCK=block, num_warps=4, enable_fp_fusion=True
    )
    return out


def forward(inputs: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor]:
    """Return y (b, H, W, I) and the saved states, empty without `save`."""
    x = inputs.x
    with torch.cuda.device_of(x):
        planes, saved = TritonProblem(inputs).forward(save)
        return _sum_planes(planes, x.new_empty(x.shape)), saved


def backward(grad_y: Tensor, saved: Tensor, inputs: ScanInputs) -> ScanInputs:
    """Return the gradients of the inputs."""
    x = inputs.x
    with torch.cuda.device_of(x):
        p = TritonProblem(inputs, backwards=True)
        grad_y = grad_y.contiguous()
        new = p.weights.new_empty
        carry = p.carry(grad_y)
        planes = x.new_empty(4, *x.shape)
        d_dt, dB, dC = (t.new_empty(t.shape) for t in (inputs.dt, inputs.B, inputs.C))
        partials = new(p.blocks, p.b, 4, p.tiles * T, 2 * p.N + p.R)
        parameters = p.weights.new_zeros(p.b, 4, p.chunks, p.N + p.R + 2, p.I)
        tensors = (grad_y, p.x, p.dt, p.packed, p.weights, p.D, p.dt_bias, saved)
        filled = (carry, planes, d_dt, partials, parameters)
        sizes = (p.H, p.W, p.I, p.chunk, p.tiles, saved.shape[2])
        options = dict(RP=p.RP, NP=max(16, p.N), PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32")
        # the interpreter can't multiply bfloat16
        options["ROUND"] = x.dtype == torch.bfloat16 and not INTERPRETED
        grid = (p.blocks, p.chunks, p.b * 4)
        kernels.scan_backward_kernel[grid](*tensors, *filled, *sizes, **options, **p.constants)
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


def gated_forward(inputs: GatedInputs, eps: float, save: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm(scan) * SiLU(z), the scan itself, and the saved states; the last two empty without `save`."""
    x = inputs.x
    with torch.cuda.device_of(x):
        planes, saved = TritonProblem(inputs.scan()).forward(save)
        I = x.shape[-1]
        out, y = x.new_empty(x.shape), x.new_empty(x.shape if save else (0,))
        *norm, gate = inputs.norm_and_gate
        z = even(gate)
        width = triton.next_power_of_2(I)
        tokens, length = out.numel() // I, max(1, 2048 // width)
        tensors = (planes, z, *norm, y, out)
        sizes = (out.numel(), tokens, I, z.stride(0), eps)
        kernels.gate_kernel[(triton.cdiv(tokens, length),)](
            *tensors, *sizes, SAVE=save, BT=length, BI=width, num_warps=4, enable_fp_fusion=True
        )
        return out, y, saved


def gated_backward(grad: Tensor, y: Tensor, saved: Tensor, inputs: GatedInputs, eps: float) -> GatedInputs:
    """Return the gradients of the inputs."""
    with torch.cuda.device_of(inputs.x):
        I = inputs.x.shape[-1]
        *norm, gate = inputs.norm_and_gate
        grad, z = grad.contiguous(), even(gate)
        width = triton.next_power_of_2(I)
        tokens, length = y.numel() // I, max(1, 2048 // width)
        programs = min(264, triton.cdiv(tokens, length))  # two for each multiprocessor of the largest GPUs
        dy, dz = y.new_empty(y.shape), gate.new_empty(gate.shape)
        parameters = y.new_empty(programs, 2, I, dtype=torch.float32)
        tensors = (grad, y, z, *norm, dy, dz, parameters)
        sizes = (tokens, I, z.stride(0), eps)
        kernels.gate_backward_kernel[(programs,)](
            *tensors, *sizes, BT=length, BI=width, num_warps=4, enable_fp_fusion=True
        )
        d_weight, d_bias = parameters[:, 0].sum(0), parameters[:, 1].sum(0)
    return backward(dy, saved, inputs.scan()).gated(dz, d_weight, d_bias)
