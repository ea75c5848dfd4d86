"""What an epoch of training takes: images per second, the share of time spent waiting for data, memory."""

import sys

import torch

COLUMNS = ("seconds", "images_per_second", "waiting_share", "memory_gb")  # of metrics.csv; never the same in two runs


def peak_memory(device: torch.device) -> int | None:
    """The peak of memory in use so far, in bytes: PyTorch's on a GPU, the process's on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others kibibytes
