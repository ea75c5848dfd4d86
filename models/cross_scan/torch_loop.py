"""The cross-scan as a loop over time in plain PyTorch, with its own backward: for double precision, and for machines
without a faster backend.

All four directions advance together, so that there are L steps and no (b, L, I, N) tensor. The forward keeps the state
every `chunk` steps; the backward recomputes the states of one chunk at a time. Time is linear in L, memory for states
grows with its square root.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .problems import ScanInputs
from .reference import scan_order


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None: plain PyTorch runs everywhere."""
    return None


def _chunk(length):
    return math.isqrt(length - 1) + 1  # ceil(sqrt(L)): as many checkpoints as steps in a chunk


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """Return the shape of the states that the forward saves: one for each chunk."""
    (b, H, W, I), N = inputs.x.shape, inputs.A.shape[-1]
    return (-(-H * W // _chunk(H * W)), b, 4, N, I)


class _Sequences:
    """The inputs in scan order: u, z = raw step + bias, steps, drive (b, 4, L, I) and B, C (b, 4, L, N)."""

    def __init__(self, inputs: ScanInputs):
        x, dt = inputs.x, inputs.dt
        H, W = x.shape[1:3]
        precise = torch.promote_types(x.dtype, torch.float32)
        if inputs.dt_weight is not None:
            dt = torch.einsum("bhwkr,kir->bhwki", dt.to(precise), inputs.dt_weight)
        z = dt + inputs.dt_bias
        self.order = scan_order(H, W, x.device)
        self.inverse = self.order.argsort(1)
        self.k = torch.arange(4, device=x.device)[:, None]
        self.u = x.flatten(1, 2)[:, self.order].to(precise)
        self.z, self.B, self.C = (t.flatten(1, 2)[:, self.order, self.k].to(precise) for t in (z, inputs.B, inputs.C))
        self.steps = F.softplus(self.z)
        self.drive = self.steps * self.u
        self.A = inputs.A
        self.chunk = _chunk(H * W)

    def to_pixels(self, sequences: Tensor) -> Tensor:
        """(b, 4, L, ...) in scan order -> (b, L, 4, ...) in pixel order."""
        return sequences[:, self.k, self.inverse].transpose(1, 2)

    def summed(self, sequences: Tensor) -> Tensor:
        """(b, 4, L, I) in scan order -> (b, L, I), in the original's order of summation."""
        y = sequences[:, self.k, self.inverse]
        return (y[:, 0] + y[:, 2]) + y[:, 1] + y[:, 3]

    def states(self, part: slice, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return exp(dt A) and the state after each step of one chunk, which begins with h: (chunk, b, 4, N, I)."""
        steps = self.steps[:, :, part].permute(2, 0, 1, 3)
        decays = (steps.unsqueeze(3) * self.A.transpose(1, 2)).exp_()
        states = torch.empty_like(decays)
        for t, decay in enumerate(decays):
            torch.mul(decay, h, out=states[t])
            h = states[t].addcmul_(self.B[:, :, part.start + t, :, None], self.drive[:, :, part.start + t, None, :])
        return decays, states


def forward(inputs: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor]:
    """Return y (b, H, W, I) and the saved states (empty without `save`)."""
    seq = _Sequences(inputs)
    y = inputs.D[:, None, :] * seq.u
    h = y.new_zeros(saved_shape(inputs)[1:])
    saved = y.new_empty(saved_shape(inputs) if save else (0,))
    for number, start in enumerate(range(0, y.shape[2], seq.chunk)):
        if save:
            saved[number] = h
        part = slice(start, start + seq.chunk)
        _, states = seq.states(part, h)
        y[:, :, part] += torch.einsum("bktn,tbkni->bkti", seq.C[:, :, part], states)
        h = states[-1]
    return seq.summed(y).view_as(inputs.x).to(inputs.x.dtype), saved


def backward(grad_y: Tensor, saved: Tensor, inputs: ScanInputs) -> ScanInputs:
    """Return the gradients of the inputs, computed chunk by chunk from the end."""
    seq = _Sequences(inputs)
    x, A, D = inputs.x, inputs.A, inputs.D
    gy = grad_y.flatten(1, 2)[:, seq.order].to(seq.u.dtype)
    du, dsteps, dB, dC = (torch.empty_like(t) for t in (seq.u, seq.u, seq.B, seq.C))
    dA = torch.zeros_like(A)
    g_next = torch.zeros_like(saved[0])  # the gradient of the state after the chunk
    for number in reversed(range(len(saved))):
        part = slice(number * seq.chunk, (number + 1) * seq.chunk)
        decays, states = seq.states(part, saved[number])
        g = torch.einsum("bkti,bktn->tbkni", gy[:, :, part], seq.C[:, :, part]).contiguous()
        for t in reversed(range(len(g))):
            g[t] += g_next
            g_next = decays[t] * g[t]
        dC[:, :, part] = torch.einsum("bkti,tbkni->bktn", gy[:, :, part], states)
        dB[:, :, part] = torch.einsum("bkti,tbkni->bktn", seq.drive[:, :, part], g)
        d_drive = torch.einsum("bktn,tbkni->bkti", seq.B[:, :, part], g)
        before = torch.cat([saved[number][None], states[:-1]])
        d_exponent = decays.mul_(g).mul_(before)  # of dt A
        dA += torch.einsum("bkti,tbkni->kin", seq.steps[:, :, part], d_exponent)
        dsteps[:, :, part] = seq.u[:, :, part] * d_drive + torch.einsum("tbkni,kin->bkti", d_exponent, A)
        du[:, :, part] = seq.steps[:, :, part] * d_drive
    du += D[:, None, :] * gy
    dz = dsteps * seq.z.sigmoid()
    d_dt, d_dt_weight = seq.to_pixels(dz).unflatten(1, x.shape[1:3]), None
    if inputs.dt_weight is not None:
        d_dt_weight = torch.einsum("bhwki,bhwkr->kir", d_dt, inputs.dt.to(d_dt.dtype))
        d_dt = torch.einsum("bhwki,kir->bhwkr", d_dt, inputs.dt_weight)
    dB, dC = (seq.to_pixels(t).unflatten(1, x.shape[1:3]) for t in (dB, dC))
    dD, d_dt_bias = (gy * seq.u).sum((0, 2)), dz.sum((0, 2))
    d_x, d_dt, dB, dC = (t.to(x.dtype) for t in (seq.summed(du).view(x.shape), d_dt, dB, dC))
    return ScanInputs(x=d_x, dt=d_dt, B=dB, C=dC, A=dA, D=dD, dt_bias=d_dt_bias, dt_weight=d_dt_weight)
