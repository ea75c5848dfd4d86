"""An exponential moving average of a network's weights, which is more accurate than the weights of any one step."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """The moving average of the weights of a network in training: average = d * average + (1 - d) * weights.

    d is `decay`, in the first updates (1 + n) / (10 + n) if that is lower. Averages of BatchNorm are averaged too,
    integers are copied, as in timm.

    network  in training; its tensors may change in place only
    module   a network with the averages, of which it is a copy at first

    The state holds what `module` lacks: the number of updates and the weights being trained."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.pairs = list(zip(self.module.state_dict().values(), network.state_dict().values(), strict=True))
        self.averages, self.weights = zip(*(pair for pair in self.pairs if pair[1].is_floating_point()), strict=True)
        self.counts = [pair for pair in self.pairs if not pair[1].is_floating_point()]

    @torch.no_grad()
    def update(self, *_: Any) -> None:
        """Update the average with the current weights. The signature is that of an optimizer's hook."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        for count, now in self.counts:
            count.copy_(now)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averages within the block, in the same memory, as CUDA graphs require."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self):
        for average, weight in self.pairs:
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.network.load_state_dict(state["weights"])
