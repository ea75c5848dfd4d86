"""The tensors of a call as one object, by name: what the operators hand to a backend, and get back as gradients."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """The inputs of a scan, or their gradients, in the operator's order. Letters as in `reference.py`."""

    x: Tensor  # (b, H, W, I)
    dt: Tensor  # (b, H, W, 4, R), or the raw steps (b, H, W, 4, I) without dt_weight
    B: Tensor  # (b, H, W, 4, N)
    C: Tensor  # (b, H, W, 4, N)
    A: Tensor  # (4, I, N)
    D: Tensor  # (4, I)
    dt_bias: Tensor  # (4, I)
    dt_weight: Tensor | None = None  # (4, I, R)

    def gated(self, z: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> "GatedInputs":
        """The same with what the norm and the gate after the scan need."""
        parameters = (self.A, self.D, self.dt_bias, self.dt_weight)
        return GatedInputs(self.x, z, self.projected(), *parameters, norm_weight, norm_bias)

    def projected(self) -> Tensor:
        """dt, B and C side by side: (b, H, W, 4, R + 2 N)."""
        return torch.cat((self.dt, self.B, self.C), -1)


class GatedInputs(NamedTuple):
    """The inputs of a scan with LayerNorm and gate, or their gradients, in the operator's order."""

    x: Tensor
    z: Tensor  # (b, H, W, I), the gate
    projected: Tensor  # (b, H, W, 4, R + 2 N), dt, B and C side by side: their gradients are one tensor, too
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    dt_weight: Tensor | None
    norm_weight: Tensor  # (I,)
    norm_bias: Tensor  # (I,)

    @property
    def scan(self) -> ScanInputs:
        N = self.A.shape[-1]
        dt, B, C = self.projected.split([self.projected.shape[-1] - 2 * N, N, N], -1)
        return ScanInputs(self.x, dt, B, C, self.A, self.D, self.dt_bias, self.dt_weight)


Inputs = TypeVar("Inputs", ScanInputs, GatedInputs)


def present(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Those that are not None, which is all that an operator can return in a list."""
    return [tensor for tensor in tensors if tensor is not None]


def by_name(found: list[Tensor], inputs: Inputs) -> Inputs:
    """The way back: the `present` gradients of `inputs` under their names, None where an input is None."""
    remaining = iter(found)
    return type(inputs)._make(None if tensor is None else next(remaining) for tensor in inputs)
