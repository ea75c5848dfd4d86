"""A lock on a folder of results: one command at a time works in it."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import remove_temporary_files, write_atomically

log = logging.getLogger("vmunet")

LOCK = ".lock"  # the operating system releases it when the process ends, however it ends
HOLDER = ".lock.process"  # the number of that process
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # some file systems of clusters


@contextlib.contextmanager
def locked_folder(folder: str | Path, what: str) -> Iterator[None]:
    """Lock `folder` against other processes for the length of the block. Remove files that a killed process left half
    written.

    Raises ValueError, beginning with `what`, such as "--resume results/x", if another process has locked it."""
    lock = FileLock(Path(folder, LOCK), fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{what}: found {holder_of(folder)} working in {folder}, expected to be alone") from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        log.warning("%s: its file system has no locks; a second command could work there at the same time", folder)
    try:
        if lock.is_locked:
            remove_temporary_files(folder)
        write_atomically(Path(folder, HOLDER), str(os.getpid()).encode())
        yield
    finally:
        lock.release()


def holder_of(folder: str | Path) -> str:
    """Return which process has locked the folder, as far as it has written its number already."""
    try:
        return f"process {int(Path(folder, HOLDER).read_text(encoding='utf-8'))}"
    except (OSError, ValueError):
        return "another process"
