"""Download a released file once, resume interrupted downloads and verify the SHA-256."""

import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from tqdm import tqdm

log = logging.getLogger("vmunet")

BLOCK = 2**20  # bytes of each read
PATIENCE = 60  # seconds without an answer


class Release(NamedTuple):
    url: str
    size: int  # bytes
    sha256: str


def fetch(release: Release, path: Path) -> Path:
    """Return `path` with the content of a release, downloaded unless it is there. A partial
    download stays in `path`.part, where the next call continues.

    Raises ConnectionError with the address and the path, ValueError for a file with another SHA-256."""
    part = path.with_name(path.name + ".part")
    with FileLock(path.with_name(path.name + ".lock")):  # all processes of a run need the file
        arrived = path if path.is_file() else part
        if arrived is part:
            log.info("downloading %s to %s, %.0f MB", release.url, path, release.size / 1e6)
            try:
                _receive(release, part)
            except (OSError, http.client.HTTPException) as error:
                by_hand = f"the same command resumes it; or download the file yourself and save it as {path}"
                raise ConnectionError(f"{release.url}: the download failed ({error}); {by_hand}") from error
        found = hashlib.sha256(arrived.read_bytes()).hexdigest()
        if found != release.sha256:
            part.unlink(missing_ok=True)  # the next download starts from the beginning
            raise ValueError(f"{arrived}: found SHA-256 {found}, expected {release.sha256}, that of {release.url}")
        arrived.replace(path)
    return path


def _receive(release: Release, part: Path) -> None:
    done = part.stat().st_size if part.is_file() else 0
    if done >= release.size:
        return
    request = urllib.request.Request(release.url, headers={"Range": f"bytes={done}-"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        resumed = answer.status == http.client.PARTIAL_CONTENT
        done = done if resumed else 0
        with open(part, "ab" if resumed else "wb") as file, tqdm(total=release.size, initial=done, unit="B") as bar:
            bar.unit_scale = True
            while done < release.size and (block := answer.read(min(BLOCK, release.size - done))):
                file.write(block)
                done += len(block)
                bar.update(len(block))
    if done < release.size:
        raise ConnectionError(f"it ended after {done} of {release.size} bytes")
