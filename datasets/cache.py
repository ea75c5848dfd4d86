"""Decoded samples kept in memory, and how much memory there is."""

from concurrent.futures import ThreadPoolExecutor

from torch.utils.data import Dataset

from utils.machine.device import available_cpus


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
