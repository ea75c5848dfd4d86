"""One command at a time works in a folder of results."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import remove_half_written, write_atomically

log = logging.getLogger("vmunet")

LOCK = ".lock"  # the operating system locks it for a process, and frees it when that ends, however it ends
HOLDER = ".lock.process"  # which process that is
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # some file systems of clusters


@contextlib.contextmanager
def claimed(folder: str | Path, what: str) -> Iterator[None]:
    """For the length of the block no other process can claim `folder`. What a killed process was writing is removed.

    Raises ValueError, beginning with `what`, such as "--resume results/x", if another has claimed it."""
    lock = FileLock(Path(folder, LOCK), fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{what}: found {holder_of(folder)} working in {folder}, expected to be alone") from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        log.warning("%s: its file system has no locks; nothing keeps a second command from working there", folder)
    try:
        if lock.is_locked:
            remove_half_written(folder)
        write_atomically(Path(folder, HOLDER), str(os.getpid()).encode())
        yield
    finally:
        lock.release()


def holder_of(folder: str | Path) -> str:
    """Which process has claimed it, as far as it has written that already."""
    try:
        return f"process {int(Path(folder, HOLDER).read_text(encoding='utf-8'))}"
    except (OSError, ValueError):
        return "another process"
