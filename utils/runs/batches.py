"""Where training is within an epoch: the batches that remain, the losses of those that are done, the time they take."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils.runs.usage import peak_memory


class Batches:
    """The batches of a loader, epoch by epoch. The only place that knows how far the present epoch is.

    A checkpoint in the middle of an epoch keeps `losses`; a resumed run leaves out as many batches.

    loader  yields (images, targets, names); `len(loader)` batches are an epoch. A DataLoader of datasets.loaders goes
            on with the next epoch by itself, so that its workers prepare the first batches meanwhile
    epoch   the epoch to begin or to go on with, counted from 1
    losses  of the batches of this epoch that are done already
    """

    def __init__(self, loader: Any, epoch: int = 1, losses: Iterable[float] = ()):
        self.loader, self.losses = loader, list(losses)
        if isinstance(loader, DataLoader):
            self.loader.batch_sampler.set_epoch(epoch, done=self.done)
        self.source: Iterator | None = None  # one for all epochs; making it starts the workers

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.loader)

    @property
    def done(self) -> int:
        """Batches of the present epoch that are done."""
        return len(self.losses)

    def begin(self) -> Iterator:
        """Lets the workers prepare the first batches now, if they have not begun."""
        if self.source is None:
            self.source = iter(self.loader)
        return self.source

    def __iter__(self) -> Iterator:
        """The batches of the present epoch that remain; the loss of each is to be recorded."""
        self.waited, self.begun_at, self.start = 0.0, self.done, time.perf_counter()
        source = self.begin()
        for _ in range(len(self) - self.done):
            asked = time.perf_counter()
            batch = next(source)
            self.waited += time.perf_counter() - asked
            yield batch

    def record(self, loss: float) -> None:
        """The loss of the batch that was yielded last, which is then done."""
        self.losses.append(loss)

    @property
    def mean_loss(self) -> float:
        """Over the batches of the present epoch that are done."""
        return sum(self.losses) / len(self.losses)

    def next_epoch(self) -> None:
        self.losses = []

    def usage(self, device: torch.device) -> dict[str, float]:
        """The values of utils.runs.usage.COLUMNS, but for `seconds`, of the pass that has just ended.

        images_per_second counts all processes, the rest is of this one. memory_gb is the peak since the program began:
        of PyTorch's tensors on a GPU, of the whole process on a CPU, where the system tells."""
        seconds = time.perf_counter() - self.start
        share = (self.done - self.begun_at) / len(self)  # less than 1 where an interrupted epoch was gone on with
        usage = {
            "images_per_second": round(share * len(self.loader.dataset) / seconds, 2),
            "waiting_share": round(self.waited / seconds, 4),
        }
        memory = peak_memory(device)
        return usage if memory is None else usage | {"memory_gb": round(memory / 1e9, 3)}
