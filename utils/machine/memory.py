"""Main memory: kept for the next tensor in training on CPUs; how much is free."""

import ctypes
import os
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT = 2**30  # bytes of one tensor


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory for the next tensor. Returns whether it does; only glibc has the setting.

    By default it returns each large tensor's memory to the system, which has to fill it with zeros before the next use:
    a quarter of a training step with a batch of 8. The peak is the same."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def free_memory() -> int:
    """Bytes of main memory that can still be used, within the container's limit; 0 if the system does not say."""
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
