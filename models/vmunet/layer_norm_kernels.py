"""Triton kernels of `layer_norm.py`. A program holds BT rows of up to BI channels."""

import triton
import triton.language as tl

next_power_of_2 = triton.next_power_of_2


@triton.jit
def load_normal(x, rows, C, block, eps, BT: tl.constexpr, BI: tl.constexpr):
    """A block of rows with mean 0 and variance 1, what they were divided by, where they are and which there are."""
    row = block.to(tl.int64) * BT + tl.arange(0, BT)
    i = tl.arange(0, BI)
    mask = (row < rows)[:, None] & (i < C)[None, :]
    at = row[:, None] * C + i[None, :]
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, v - (tl.sum(v, 1) / C)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    return centred * scale[:, None], scale, at, mask


@triton.jit
def layer_norm_kernel(x, weight, bias, out, rows, C, eps, BT: tl.constexpr, BI: tl.constexpr):
    normal, _, at, mask = load_normal(x, rows, C, tl.program_id(0), eps, BT, BI)
    i = tl.arange(0, BI)
    w = tl.load(weight + i, mask=i < C, other=0.0).to(tl.float32)
    c = tl.load(bias + i, mask=i < C, other=0.0).to(tl.float32)
    tl.store(out + at, (normal * w[None, :] + c[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def layer_norm_backward_kernel(grad, x, weight, dx, parts, rows, C, eps, BT: tl.constexpr, BI: tl.constexpr):
    """parts (programs, 2, C): gradients of weight and bias over the program's blocks, every num_programs-th."""
    i = tl.arange(0, BI)
    w = tl.load(weight + i, mask=i < C, other=0.0).to(tl.float32)[None, :]
    d_w = tl.zeros((BT, BI), tl.float32)  # added up over the rows only once, at the end
    d_c = tl.zeros((BT, BI), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BT), tl.num_programs(0)):
        normal, scale, at, mask = load_normal(x, rows, C, tl.full((), block, tl.int32), eps, BT, BI)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        d_w += g * normal
        d_c += g
        g *= w
        along = tl.sum(g * normal, 1) / C
        g = scale[:, None] * (g - (tl.sum(g, 1) / C)[:, None] - normal * along[:, None])
        tl.store(dx + at, g.to(dx.dtype.element_ty), mask=mask)
    to = parts + tl.program_id(0) * 2 * C + i
    tl.store(to, tl.sum(d_w, 0), mask=i < C)
    tl.store(to + C, tl.sum(d_c, 0), mask=i < C)
