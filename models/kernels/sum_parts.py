"""The second half of a sum over the tokens of a batch, in CUDA C++: the first half leaves one part for each block.

PyTorch's sum takes three times as long for so few numbers, and a training step has 68 of them."""

from pathlib import Path

from torch import Tensor

from .nvrtc import Kernels

KERNELS = Kernels(Path(__file__).with_suffix(".cu"), ("sum_parts_kernel",))
COLUMNS, THREADS = 32, 512  # as in the kernel


def sum_parts(parts: Tensor, first: Tensor, second: Tensor) -> None:
    """Sum parts (rows, taps + 1, C) over the rows: the first `taps` sums fill first (C, taps), the last second (C,).

    All tensors are contiguous and float32."""
    rows, width, C = parts.shape
    grid = (-(-width * C // COLUMNS), 1, 1)
    KERNELS.launch("sum_parts_kernel", parts, (), grid, THREADS, (parts, first, second, rows, width - 1, C))
