"""A kernel that does nothing but exp2: the ceiling that the scans are measured against."""

import triton
import triton.language as tl


@triton.jit
def exp2_kernel(out, rounds, BLOCK: tl.constexpr, PER: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = -(at % 7).to(tl.float32) * 0.1
    for _ in range(rounds):
        for _ in tl.static_range(PER):
            v = tl.exp2(v) - 1.0
    tl.store(out + at, v)
