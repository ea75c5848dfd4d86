"""Memory that is used again and again in training on CPUs."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT = 2**30  # bytes of one tensor


def keep_freed_memory():
    """Lets the C library keep freed memory for the next tensor. Returns whether it does; only glibc can be told.

    By default it returns each large tensor's memory to the system, which fills it with zeros before it gives it out
    again: in a training step with a batch of 8 a quarter of the time, and no less memory at the peak."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
