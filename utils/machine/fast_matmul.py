"""Matmuls on CPUs: faster ones in float32, where they are as accurate; a warning of slow ones in bfloat16.

PyTorch's default library runs float32 matmuls at half speed on some processors with AVX-512. Asked for "bf16"
precision, oneDNN takes over: on most of them it still computes in float32, only faster; on processors with matrix units
for bfloat16 (AMX) it really rounds to bfloat16. So the switch is tried, and kept only if the results stay exact.
"""

import logging

import torch
import torch.nn.functional as F

log = logging.getLogger("vmunet")

# rows, inputs, outputs of the network's matmuls at 256 x 256: in_proj, x_proj, out_proj of the first and last stage
SHAPES = [(4096, 96, 192), (4096, 192, 152), (4096, 192, 96), (64, 768, 1536), (64, 1536, 320), (64, 1536, 768)]
FLOAT32_ERROR = 1e-6  # relative; bfloat16 matmuls are off by 2e-3


def use_fast_matmuls() -> bool:
    """Switches oneDNN's float32 matmuls on if they are accurate here. Returns whether they are on."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    error = largest_error()
    if error > FLOAT32_ERROR:
        matmul.fp32_precision = before
    outcome = "on" if error <= FLOAT32_ERROR else "off, they round to bfloat16 here"
    log.debug("oneDNN's float32 matmuls: %s (relative error %.0e)", outcome, error)
    return error <= FLOAT32_ERROR


def has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16 matmuls; without, they take six times as long as float32."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def warn_of_slow_bf16() -> None:
    if not has_bf16():
        log.warning("--precision bf16: this processor has no instructions for it, --precision fp32 is faster here")


def largest_error() -> float:
    """The largest relative error of a float32 matmul among the network's shapes."""
    random, errors = torch.Generator().manual_seed(0), []
    for rows, inputs, outputs in SHAPES:
        x = torch.randn(rows, inputs, generator=random)
        weight = torch.randn(outputs, inputs, generator=random)
        exact = x.double() @ weight.double().t()
        errors.append(((F.linear(x, weight) - exact).norm() / exact.norm()).item())
    return max(errors)
