"""What an epoch of training takes: images per second, the share of time spent waiting for data, memory."""

import sys
import time

import torch

COLUMNS = ("seconds", "images_per_second", "waiting_share", "memory_gb")  # of metrics.csv; they differ from run to run


class MeteredLoader:
    """The batches of an endless loader epoch by epoch, with the time that the loop waits for each.

    done: batches of the first epoch that the loader leaves out"""

    def __init__(self, loader, done=0):
        self.loader, self.done = loader, done
        self.source = None  # one for all epochs; made when the first begins, because it starts the workers

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.waited, self.batches, self.start = 0.0, 0, time.perf_counter()
        if self.source is None:
            self.source = iter(self.loader)
        for _ in range(len(self) - self.done):
            asked = time.perf_counter()
            batch = next(self.source)
            self.waited += time.perf_counter() - asked
            self.batches += 1
            yield batch
        self.done = 0

    def usage(self, device):
        """The values of COLUMNS, but for `seconds`, of the pass that has just ended.

        images_per_second counts all processes, the rest is of this one. memory_gb is the peak since the program began:
        of PyTorch's tensors on a GPU, of the whole process on a CPU, where the system tells."""
        seconds = time.perf_counter() - self.start
        share = self.batches / len(self.loader)  # of the epoch, less than 1 where an interrupted one was gone on with
        usage = {
            "images_per_second": round(share * len(self.loader.dataset) / seconds, 2),
            "waiting_share": round(self.waited / seconds, 4),
        }
        memory = peak_memory(device)
        return usage if memory is None else usage | {"memory_gb": round(memory / 1e9, 3)}


def peak_memory(device):
    """Bytes; None where it can't be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others kibibytes
