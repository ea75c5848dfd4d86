"""Settings of a process that computes on a CPU: the library for matmuls, and whether freed memory is kept.

PyTorch's default library runs float32 matmuls at half speed on some processors with AVX-512. Asked for "bf16"
precision, oneDNN takes over: on most of them it still computes in float32, only faster; on processors with matrix units
for bfloat16 (AMX) it really rounds to bfloat16. So the switch is tested, and kept only if the results stay exact.
"""

import ctypes
import functools
import logging
import sys

import torch
import torch.nn.functional as F

from .cross_scan.backends import in_fresh_thread

log = logging.getLogger("vmunet")

# rows, inputs, outputs of the network's matmuls at 256 x 256: in_proj, x_proj, out_proj of the first and last stage
SHAPES = [(4096, 96, 192), (4096, 192, 152), (4096, 192, 96), (64, 768, 1536), (64, 1536, 320), (64, 1536, 768)]
FLOAT32_ERROR = 1e-6  # relative; bfloat16 matmuls are off by 2e-3
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT = 2**30  # bytes of one tensor


@functools.cache
def tune_cpu() -> bool:
    """Make networks on a CPU faster, with the same results; return whether oneDNN computes float32 matmuls.

    This holds for the whole process: oneDNN computes matmuls if it is accurate on this processor, and freed memory is
    kept for the next tensor instead of being returned to the system. The peak of memory is the same."""
    keep_freed_memory()
    return use_fast_matmuls()


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensor; return whether it does. Only glibc has the setting.

    By default it returns each large tensor's memory to the system, which fills it with zeros before the next use: a
    quarter of a training step with a batch of 8."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def use_fast_matmuls() -> bool:
    """Switch oneDNN's float32 matmuls on if they are accurate on this processor; return whether they are on."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:  # PyTorch 2.6 has no such switch
        return False
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    error: float = in_fresh_thread(largest_error)  # autocast around the call would round
    if error > FLOAT32_ERROR:
        matmul.fp32_precision = before
    outcome = "on" if error <= FLOAT32_ERROR else "off, they round to bfloat16"
    log.debug("oneDNN's float32 matmuls: %s (relative error %.0e)", outcome, error)
    return error <= FLOAT32_ERROR


def largest_error() -> float:
    """Return the largest relative error of a float32 matmul among the network's shapes."""
    random, errors = torch.Generator().manual_seed(0), []
    for rows, inputs, outputs in SHAPES:
        x = torch.randn(rows, inputs, generator=random)
        weight = torch.randn(outputs, inputs, generator=random)
        exact = x.double() @ weight.double().t()
        errors.append(((F.linear(x, weight) - exact).norm() / exact.norm()).item())
    return max(errors)
