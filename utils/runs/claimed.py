"""One command at a time works in a folder of results."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # the operating system locks it for a process, and frees it when that ends, however it ends
HOLDER = ".lock.process"  # which process that is


@contextlib.contextmanager
def claimed(folder: str | Path, what: str) -> Iterator[None]:
    """For the length of the block no other process can claim `folder`.

    Raises ValueError, beginning with `what`, such as "--resume results/x", if one has."""
    lock = FileLock(Path(folder, LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{what}: found {holder_of(folder)} working in {folder}, expected to be alone") from error
    try:
        Path(folder, HOLDER).write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def holder_of(folder: str | Path) -> str:
    """Which process has claimed it, as far as it has written that already."""
    try:
        return f"process {int(Path(folder, HOLDER).read_text(encoding='utf-8'))}"
    except (OSError, ValueError):
        return "another process"
