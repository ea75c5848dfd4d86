"""Sums over the tokens of a batch, second half: blocks of threads have left parts, in CUDA C++.

PyTorch's sum takes three times as long for so few numbers, and a training step has 68 of them."""

from pathlib import Path

import torch
from torch import Tensor

from . import nvrtc

SOURCE = Path(__file__).with_suffix(".cu")
KERNELS = ("sum_parts_kernel",)
COLUMNS, THREADS = 32, 512  # as the kernel has them


def sum_parts(parts: Tensor, first: Tensor, second: Tensor) -> None:
    """Sums of parts (rows, taps + 1, C) over the rows: the first `taps` fill first (C, taps), the last second (C,).
    All dense and float32."""
    rows, width, C = parts.shape
    with torch.cuda.device_of(parts):
        kernels = nvrtc.functions(SOURCE, KERNELS, (), parts.device.index)
        grid = (-(-width * C // COLUMNS), 1, 1)
        nvrtc.launch(kernels["sum_parts_kernel"], grid, THREADS, (parts, first, second, rows, width - 1, C))
