"""What the GPU backends share: the sizes of a call, its cut into chunks of steps, and the order of its launches."""

import torch
from torch import Tensor

from .problems import ScanInputs

T = 16  # steps in a tile, and between two saved states
WARP = 32  # channels
# With fewer warps than `enough_warps` in all, the steps are cut into chunks, none shorter than `shortest_chunk`.
CHUNKS = {"enough_warps": 512, "shortest_chunk": 32}


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """Return the shape of the saved states: that before every tile of each direction."""
    (b, H, W, I), N = inputs.x.shape, inputs.A.shape[-1]
    return (b, 4, -(-H * W // T), N, I)


def even(t: Tensor) -> Tensor:
    """Return (b, H, W, I) as (b H W, I) with contiguous channels in vectors of 16 bytes, a view where possible."""
    t = t.flatten(0, 2)
    aligned = t.stride(-1) == 1 and t.stride(0) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0
    return t if aligned else t.contiguous()


class GPUProblem:
    """The sizes of one call. A backend adds the packed inputs, and `hand_on` and `scan`, which launch its kernels."""

    def __init__(self, inputs: ScanInputs, backwards: bool = False):
        self.x, self.backwards = inputs.x, backwards
        self.b, self.H, self.W, self.I = inputs.x.shape
        self.N = inputs.A.shape[-1]
        self.R = 0 if inputs.dt_weight is None else inputs.dt_weight.shape[-1]
        self.L = self.H * self.W
        self.tiles = -(-self.L // T)
        self.chunk = self._chunk()
        self.chunks = -(-self.L // self.chunk)
        self.D, self.dt_bias = inputs.D.contiguous(), inputs.dt_bias.contiguous()
        self.weights = inputs.x.new_empty(4, self.N + self.R, self.I, dtype=torch.float32)

    def _chunk(self):
        """Return the steps in a chunk: all of them if that occupies the GPU."""
        enough, shortest = CHUNKS["enough_warps"], CHUNKS["shortest_chunk"]
        warps = self.b * 4 * -(-self.I // WARP)
        if warps >= enough or self.L < 2 * shortest:
            return self.tiles * T
        steps = -(-self.L // -(-2 * enough // warps))
        return max(shortest, -(-steps // T) * T)

    def hand_on(self, v: Tensor, ends: Tensor, slots: int, stride: int) -> None:
        """Fill `ends` with what each chunk is handed: states, or in the backward gradients of states."""
        raise NotImplementedError

    def scan(self, starts: Tensor, planes: Tensor, slots: int, stride: int, save: bool) -> None:
        """Launch the recurrence: it fills `planes` and, with `save`, the saved states."""
        raise NotImplementedError

    def forward(self, save: bool) -> tuple[Tensor, Tensor]:
        """Return y of each direction, (4, b, H, W, I), and the saved states, empty without `save`."""
        planes, new = self.x.new_empty(4, *self.x.shape), self.weights.new_empty
        saved = new(self.b, 4, self.tiles, self.N, self.I) if save else new(0)
        starts, stride = (saved, self.chunk // T) if save else (new(self.b, 4, self.chunks, self.N, self.I), 1)
        slots = starts.shape[2]
        if self.chunks > 1:
            self.hand_on(self.x, starts, slots, stride)
        self.scan(starts, planes, slots, stride, save)
        return planes, saved

    def carry(self, grad_y: Tensor) -> Tensor:
        """Return the gradient of the state after each chunk, from the steps beyond it: (b, 4, chunks, N, I)."""
        carry = self.weights.new_zeros(self.b, 4, self.chunks, self.N, self.I)
        if self.chunks > 1:
            self.hand_on(grad_y, carry, self.chunks, 1)
        return carry
