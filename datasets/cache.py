"""Decoded samples kept in memory, and how much memory there is."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.data import Dataset


def available_cpus():
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory():
    """Bytes of main memory that can still be used, within the limit of the container; 0 where it can't be told."""
    try:
        kibibytes = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:  # not Linux
        names = getattr(os, "sysconf_names", ())
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if "SC_PHYS_PAGES" in names else 0
    free = int(kibibytes["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text(encoding="utf-8").strip().isdigit():
        free = min(free, int(limit.read_text(encoding="utf-8")) - int(used.read_text()))
    return free


def split_key(key):
    """(epoch, index) of a data set's key; a plain index belongs to epoch 0."""
    return key if isinstance(key, tuple) else (0, key)


class CachedDataset(Dataset):
    """A data set whose `decode(index)` returns a tuple of tensors that can be kept in memory for all epochs.

    Forked workers share the tensors' memory with the main process, because nothing writes to it.
    """

    cache = None

    def sample(self, index):
        return self.decode(index) if self.cache is None else self.cache[index]

    def decoded_bytes(self):
        """Memory that all decoded samples need, judged by eight of them."""
        few = range(0, len(self), max(1, len(self) // 8))
        sizes = [sum(tensor.nbytes for tensor in self.decode(index)) for index in few]
        return sum(sizes) * len(self) // len(sizes)

    def preload(self):
        """Decode everything. A file that can't be read, or is not as expected, is reported now."""
        with ThreadPoolExecutor(min(8, available_cpus())) as pool:
            self.cache = list(pool.map(self.decode, range(len(self))))
