"""Compiled code on disk, followed by a checksum, which detects files that a power failure or a full disk cut short."""

import functools
import hashlib
import logging
from pathlib import Path

log = logging.getLogger("vmunet")


def seal(code: bytes) -> bytes:
    """Return the code followed by its SHA-256."""
    return code + hashlib.sha256(code).digest()


def read_sealed(path: Path) -> bytes | None:
    """Return the code in a file, or None if the file is missing, unreadable or damaged. Log damaged files."""
    try:
        contents = path.read_bytes()
    except OSError:
        return None
    code = contents[: -hashlib.sha256().digest_size]
    if contents == seal(code):
        return code
    _warn(path.parent)
    return None


@functools.cache
def _warn(folder):
    log.warning("%s: found damaged files of compiled kernels; they are compiled anew, which takes a minute", folder)
