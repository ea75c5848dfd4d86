"""What the card can do: bandwidth of a copy, rate of a bf16 matmul and of exp2, as measured here."""

import torch
import triton
import triton.language as tl

from benchmarks.common import Report
from benchmarks.on_gpu.inputs import median_ms

PROGRAMS, BLOCK, ROUNDS, PER_ROUND = 132 * 16, 1024, 200, 8


@triton.jit
def exp2_kernel(out, rounds, BLOCK: tl.constexpr, PER: tl.constexpr):
    """Nothing but exp2."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = -(at % 7).to(tl.float32) * 0.1
    for _ in range(rounds):
        for _ in tl.static_range(PER):
            v = tl.exp2(v) - 1.0
    tl.store(out + at, v)


def measure_ceilings(report: Report) -> float:
    """Prints the three rates and returns that of exp2, in 10^12 a second."""
    source, target = torch.randn(1 << 29, device="cuda"), torch.empty(1 << 29, device="cuda")
    copy = 2 * source.numel() * 4 / median_ms(lambda: target.copy_(source)) / 1e6
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    matmul = 2 * 8192**3 / median_ms(lambda: m @ m) / 1e9
    out = torch.empty(PROGRAMS * BLOCK, device="cuda")
    ms = median_ms(lambda: exp2_kernel[(PROGRAMS,)](out, ROUNDS, BLOCK=BLOCK, PER=PER_ROUND, num_warps=8))
    exp2 = out.numel() * ROUNDS * PER_ROUND / ms / 1e9
    report.table("ceilings", [{"copy_GBps": copy, "matmul_bf16_TFLOPs": matmul, "exp2_Tps": exp2}])
    return exp2
