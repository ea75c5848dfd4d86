"""Decoded samples kept in memory for all epochs."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import Dataset

from utils.machine.device import available_cpus

Key = int | tuple[int, int]  # index, or (epoch, index)


def split_key(key: Key) -> tuple[int, int]:
    """Return (epoch, index) of a data set's key; a plain index belongs to epoch 0."""
    return key if isinstance(key, tuple) else (0, key)


class CachedDataset(Dataset):
    """A data set whose `decode(index)` returns a tuple of tensors that can be kept in memory for all epochs.

    Forked workers share the tensors' memory with the main process, because nothing writes to it."""

    cache: list[tuple[torch.Tensor, ...]] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def decode(self, index: int) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def sample(self, index: int) -> tuple[torch.Tensor, ...]:
        """Return decode(index), from the cache if it is filled."""
        return self.decode(index) if self.cache is None else self.cache[index]

    def decoded_bytes(self) -> int:
        """Return the memory that all decoded samples need, estimated from about eight of them."""
        few = range(0, len(self), max(1, len(self) // 8))
        sizes = [sum(tensor.nbytes for tensor in self.decode(index)) for index in few]
        return sum(sizes) * len(self) // len(sizes)

    def preload(self) -> None:
        """Fill the cache. Raises what decoding any of the samples raises."""
        with ThreadPoolExecutor(min(16, available_cpus())) as pool:
            self.cache = list(pool.map(self.decode, range(len(self))))
