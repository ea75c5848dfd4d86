"""Memory that is used again and again in training on CPUs."""

import ctypes
import os
import sys
from pathlib import Path

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
