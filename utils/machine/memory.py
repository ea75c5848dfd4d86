"""Main memory. Imports no PyTorch, so that the reader process starts quickly."""

import os
from pathlib import Path


def free_memory() -> int:
    """Return the bytes of main memory that can still be used, within the container's limit; 0 if unknown."""
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
