"""The position within an epoch: the batches that remain, the losses of those that are done, the time they take."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils import distributed

USAGE = ("seconds", "images_per_second", "waiting_share", "memory_gb")  # of metrics.csv; never the same in two runs


class Batches:
    """The batches of a loader, epoch by epoch. The only place that knows how far the present epoch is.

    A checkpoint in the middle of an epoch keeps `losses`; a resumed run skips as many batches.

    loader  yields (images, targets, names); `len(loader)` batches are an epoch. A DataLoader of datasets.loaders
            continues with the next epoch by itself, so that its workers prepare the first batches meanwhile
    epoch   the epoch to begin or to continue, counted from 1
    losses  of the batches of this epoch that are done already
    """

    def __init__(self, loader: Any, epoch: int = 1, losses: Iterable[float] = ()):
        self.loader, self.epoch, self.losses = loader, epoch, list(losses)
        if isinstance(loader, DataLoader):
            self.loader.batch_sampler.set_epoch(epoch, done=self.done)
        self.source: Iterator | None = None  # one for all epochs; making it starts the workers

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.loader)

    @property
    def done(self) -> int:
        """Batches of the present epoch that are done."""
        return len(self.losses)

    @property
    def finish(self) -> Callable[..., tuple]:
        """Return the part of the augmentation that works on a whole batch: a function from images, targets and the
        parameters of their samples to images and targets."""
        transform = getattr(getattr(self.loader, "dataset", None), "transform", None)
        return getattr(transform, "finish", lambda *tensors: tensors)

    @property
    def position(self) -> str:
        """The batch that was recorded last, for messages."""
        return f"epoch {self.epoch}, batch {self.done} of {len(self)}"

    @property
    def shares(self) -> list[int]:
        """The number of images of each process in the present batch of the EpochBatchSampler."""
        if not distributed.connected():
            return []
        sampler, processes = self.loader.batch_sampler, distributed.world_size()
        images = min(sampler.batch_size, sampler.length - self.done * sampler.batch_size)
        return [len(range(rank, images, processes)) for rank in range(processes)]

    def __iter__(self) -> Iterator:
        """Yield the batches of the present epoch that remain; the loss of each is to be recorded."""
        self.waited, self.skipped, self.start = 0.0, self.done, time.perf_counter()
        if self.source is None:
            self.source = iter(self.loader)
        for _ in range(len(self) - self.done):
            asked = time.perf_counter()
            batch = next(self.source)
            self.waited += time.perf_counter() - asked
            yield batch
        self.end = time.perf_counter()  # for an epoch whose batches were all done when it was stopped

    def record(self, loss: float) -> None:
        """Store the loss of the batch that was yielded last, which is then done."""
        self.losses.append(loss)
        self.end = time.perf_counter()

    @property
    def mean_loss(self) -> float:
        """Over the batches of the present epoch that are done."""
        return sum(self.losses) / len(self.losses)

    def next_epoch(self) -> None:
        self.epoch, self.losses = self.epoch + 1, []

    def usage(self, device: torch.device) -> dict[str, float]:
        """Return the values of USAGE, but for `seconds`, of the pass that has just ended.

        images_per_second counts all processes, the rest is of this one. memory_gb is the peak since the program began:
        of PyTorch's tensors on a GPU, of the whole process on a CPU, where the system tells."""
        seconds = self.end - self.start
        share = (self.done - self.skipped) / len(self)  # less than 1 where an interrupted epoch was continued
        speed, waiting = share * len(self.loader.dataset) / seconds, self.waited / seconds
        usage = {"images_per_second": round(speed, 2), "waiting_share": round(waiting, 4)}
        memory = peak_memory(device)
        return usage if memory is None else usage | {"memory_gb": round(memory / 1e9, 3)}


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory so far in bytes: PyTorch's on a GPU, the process's on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others kibibytes
