"""Official downloads as named files, unpacked or still in their zip archives.

Archives are never unpacked to the paths that they name: a member is selected by its file name, and only if the name
matches the caller's pattern. So no archive can write outside of the target.
"""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from utils.files import first_few, list_duplicates, reading

LIMIT = 256 * 2**20  # bytes in a file: the largest official image has 20 MB, the largest volume about 150 MB


class Download(NamedTuple):
    """A file in a folder, or a member of a zip archive. Its string is its name in messages."""

    path: Path  # the file, or the archive
    member: zipfile.ZipInfo | None = None
    archive: zipfile.ZipFile | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.member is None else PurePosixPath(self.member.filename).name

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member.filename}"

    def __reduce__(self) -> tuple:  # an open archive can't be sent to another process
        return reopened, (self.path, self.member)

    def read_bytes(self) -> bytes:
        """Return the content; raise ValueError if it is damaged, encrypted or larger than LIMIT."""
        with reading(str(self)):
            if self.member is not None and self.member.flag_bits & 1:
                raise ValueError("it is encrypted")
            # reading a member checks its CRC
            with self.archive.open(self.member or "") if self.archive else open(self.path, "rb") as file:
                content = file.read(LIMIT + 1)
            if len(content) > LIMIT:
                raise ValueError(f"it is larger than {LIMIT >> 20} MB")
            return content


def reopened(path: Path, member: zipfile.ZipInfo | None) -> Download:
    """Return a Download whose archive is opened again."""
    return Download(path, member, None if member is None else zipfile.ZipFile(path))


def find_downloads(source: str | Path, folder: str, pattern: str) -> dict[str, Download] | None:
    """Return {name: Download} of the files in `folder` whose names match `pattern`; None without folder and archive.

    The places searched are source/folder (also source/folder/folder, as some programs unpack) and source/folder.zip, in
    which the files may lie at any depth."""
    path = Path(source, f"{folder}.zip")
    for unpacked in (Path(source, folder, folder), Path(source, folder)):
        if unpacked.is_dir():
            files = (Download(file) for file in sorted(unpacked.iterdir()) if file.is_file())
            return by_name(files, pattern, unpacked)
    return by_name(zip_members(path), pattern, path) if path.is_file() else None


def check_source(source: str | Path) -> None:
    """Raise FileNotFoundError if what --source names is not there."""
    if not Path(source).exists():
        raise FileNotFoundError(f"--source {source}: found nothing of this name, expected a folder of downloads")


def zip_members(path: str | Path) -> list[Download]:
    """Return the files of a zip archive as Downloads, without those that macOS adds."""
    with reading(path):
        archive = zipfile.ZipFile(path)  # stays open for the reading of its members
        members = [member for member in archive.infolist() if not member.is_dir()]
    return [Download(Path(path), member, archive) for member in members if "__MACOSX/" not in member.filename]


def by_name(downloads: Iterable[Download], pattern: str, where: str | Path) -> dict[str, Download]:
    """Return {name: Download} of those whose names match; raise ValueError if a name occurs twice."""
    found = [download for download in downloads if re.fullmatch(pattern, download.name)]
    twice = list_duplicates(download.name for download in found)
    if twice:
        raise ValueError(f"{where} holds {len(twice)} names twice: {first_few(twice)}; expected each once")
    return {download.name: download for download in found}
