"""Decoded samples kept in memory for all epochs."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import Dataset

from utils.machine.device import available_cpus

SMALL = 1_000_000  # bytes of a sample below which more than a few threads wait for each other: half is work of Python's
PART = 16  # samples that a thread decodes in one go

Key = int | tuple[int, int]  # index, or (epoch, index)


def split_key(key: Key) -> tuple[int, int]:
    """(epoch, index) of a data set's key; a plain index belongs to epoch 0."""
    return key if isinstance(key, tuple) else (0, key)


class CachedDataset(Dataset):
    """A data set whose `decode(index)` returns a tuple of tensors that can be kept in memory for all epochs.

    Forked workers share the tensors' memory with the main process, because nothing writes to it.
    """

    cache: list[tuple[torch.Tensor, ...]] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def decode(self, index: int) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def sample(self, index: int) -> tuple[torch.Tensor, ...]:
        """decode(index), from memory if it is there."""
        return self.decode(index) if self.cache is None else self.cache[index]

    def decoded_bytes(self) -> int:
        """Memory that all decoded samples need, estimated from about eight of them."""
        few = range(0, len(self), max(1, len(self) // 8))
        sizes = [sum(tensor.nbytes for tensor in self.decode(index)) for index in few]
        return sum(sizes) * len(self) // len(sizes)

    def preload(self) -> None:
        """Decodes everything. Raises now what any file would raise later."""
        small = self.decoded_bytes() < SMALL * len(self)
        parts = [range(start, min(start + PART, len(self))) for start in range(0, len(self), PART)]
        with ThreadPoolExecutor(min(4 if small else 16, available_cpus())) as pool:
            decoded = pool.map(lambda part: [self.decode(index) for index in part], parts)
            self.cache = [sample for part in decoded for sample in part]
