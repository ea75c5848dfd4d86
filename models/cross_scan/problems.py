"""The tensors of a call as one object, by name: the inputs of a backend, and the gradients that it returns."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """The inputs of a scan, or their gradients. Letters as in `reference.py`."""

    x: Tensor  # (b, H, W, I)
    dt: Tensor  # (b, H, W, 4, R), or the raw steps (b, H, W, 4, I) without dt_weight
    B: Tensor  # (b, H, W, 4, N)
    C: Tensor  # (b, H, W, 4, N)
    A: Tensor  # (4, I, N)
    D: Tensor  # (4, I)
    dt_bias: Tensor  # (4, I)
    dt_weight: Tensor | None = None  # (4, I, R)

    def gated(self, z: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None) -> "GatedInputs":
        """Return the same inputs with those of the norm and the gate after the scan."""
        parameters = (self.A, self.D, self.dt_bias, self.dt_weight)
        return GatedInputs(self.x, z, self.projected(), *parameters, norm_weight, norm_bias)

    def projected(self) -> Tensor:
        """Return dt, B and C side by side: (b, H, W, 4, R + 2 N)."""
        return torch.cat((self.dt, self.B, self.C), -1)


class GatedInputs(NamedTuple):
    """The inputs of a scan with LayerNorm and gate, or their gradients, in the operator's order. Without norm and gate
    z, norm_weight and norm_bias are None."""

    x: Tensor
    z: Tensor | None  # (b, H, W, I), the gate
    projected: Tensor  # (b, H, W, 4, R + 2 N): dt, B and C side by side
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    dt_weight: Tensor | None
    norm_weight: Tensor | None  # (I,)
    norm_bias: Tensor | None  # (I,)

    @property
    def norm_and_gate(self) -> tuple[Tensor, Tensor, Tensor]:
        """norm_weight, norm_bias and z, where there are norm and gate."""
        assert self.norm_weight is not None and self.norm_bias is not None and self.z is not None
        return self.norm_weight, self.norm_bias, self.z

    def scan(self) -> ScanInputs:
        """The inputs of the scan alone."""
        N = self.A.shape[-1]
        dt, B, C = self.projected.split([self.projected.shape[-1] - 2 * N, N, N], -1)
        return ScanInputs(self.x, dt, B, C, self.A, self.D, self.dt_bias, self.dt_weight)


Inputs = TypeVar("Inputs", ScanInputs, GatedInputs)


def present(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Return the tensors that are not None: an operator can return no others in a list."""
    return [tensor for tensor in tensors if tensor is not None]


def by_name(found: list[Tensor], inputs: Inputs) -> Inputs:
    """Return the `present` gradients of `inputs` under their names, with None where an input is None."""
    remaining = iter(found)
    return type(inputs)._make(None if tensor is None else next(remaining) for tensor in inputs)
