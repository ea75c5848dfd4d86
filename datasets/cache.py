"""Decoded samples kept in memory for all epochs."""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from utils.machine.device import available_cpus
from utils.runs.stopping import leave_signals_to_main, signals_held

PART = 16  # samples that are decoded in one go
# Of small samples, which take Python as long as they take its libraries, threads would wait for each other: so many
# parts are decoded by processes.
SMALL, MANY = 1_000_000, 32  # bytes of a sample; parts

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
        parts = [range(start, min(start + PART, len(self))) for start in range(0, len(self), PART)]
        small = self.decoded_bytes() < SMALL * len(self)
        if small and len(parts) >= MANY and available_cpus() >= 4 and sys.platform == "linux":
            decoded = self._decoded_by_processes(parts)
        else:
            with ThreadPoolExecutor(min(16, available_cpus())) as pool:
                decoded = list(pool.map(self._decoded, parts))
        self.cache = [sample for part in decoded for sample in part]

    def _decoded(self, part: range) -> list[tuple[torch.Tensor, ...]]:
        return [self.decode(index) for index in part]

    def _decoded_by_processes(self, parts: list[range]) -> list[list[tuple[torch.Tensor, ...]]]:
        with signals_held():
            arriving: Any = iter(
                DataLoader(
                    _Parts(self, parts),
                    batch_size=None,
                    num_workers=min(8, available_cpus()),
                    collate_fn=_as_it_is,
                    worker_init_fn=leave_signals_to_main,
                    multiprocessing_context="fork",
                    generator=torch.Generator(),  # or it would draw from the one that the network uses
                )
            )
        try:
            return [[tuple(map(torch.from_numpy, arrays)) for arrays in part] for part in arriving]
        finally:
            arriving._shutdown_workers()  # see datasets.loaders.Loader: after an error they would be garbage


class _Parts(Dataset):
    """Decoded parts of a data set as arrays, which go through pipes: shared memory may be small."""

    def __init__(self, dataset, parts):
        self.dataset, self.parts = dataset, parts

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, number):
        return [tuple(tensor.numpy() for tensor in sample) for sample in self.dataset._decoded(self.parts[number])]


def _as_it_is(part):
    return part
