"""A selective scan along a sequence in one direction, as in Mamba: the cross-scan of a map of one row, of which one
direction counts."""

import torch.nn.functional as F
from torch import Tensor

from . import cross_selective_scan


def sequence_scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor,
    backend: str = "auto",
) -> Tensor:
    """y[t] = <C[t], h[t]> + D x[t] with h as in `cross_selective_scan`.

    x (b, L, I), dt (b, L, R), B and C (b, L, N), A (I, N), D and dt_bias (I), dt_weight (I, R); y (b, L, I) as x.

    The other three directions of the operator run with output weights of zero. For the small networks that use this,
    what they cost is little."""

    def first_of_four(tensor: Tensor, dim: int) -> Tensor:
        padding = [0, 0] * (-1 - dim) + [0, 3]
        return F.pad(tensor.unsqueeze(dim), padding)

    dt, B, C = (first_of_four(t.unsqueeze(1), -2) for t in (dt, B, C))  # (b, 1, L, 4, R or N)
    A = A.expand(4, -1, -1).contiguous()  # negative in all directions, so that no state grows
    D, dt_bias, dt_weight = (first_of_four(t, -t.ndim - 1) for t in (D, dt_bias, dt_weight))
    return cross_selective_scan(x.unsqueeze(1), dt, B, C, A, D, dt_bias, dt_weight, backend).squeeze(1)
