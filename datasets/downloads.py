"""Official downloads, unpacked or still in their zip archives, as named files.

Archives are not unpacked to the paths that they name: a member is taken by its file name, and only if that matches the
caller's pattern, so that no archive can write outside of the target.
"""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from utils.files import reading, repeated, some

LIMIT = 256 * 2**20  # bytes of one file: the largest official image has 20 MB, the largest volume about 150 MB


class Download(NamedTuple):
    """A file in a folder, or a member of a zip archive."""

    path: Path  # the file, or the archive
    member: zipfile.ZipInfo | None = None
    archive: zipfile.ZipFile | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.member is None else PurePosixPath(self.member.filename).name

    @property
    def origin(self) -> str:
        """Its name in messages."""
        return str(self.path) if self.member is None else f"{self.path}/{self.member.filename}"

    def read(self) -> bytes:
        """The content; raises ValueError if it is damaged, encrypted or larger than LIMIT."""
        with reading(self.origin):
            if self.member is None or self.archive is None:
                with open(self.path, "rb") as file:
                    content = file.read(LIMIT + 1)
            else:
                if self.member.flag_bits & 1:
                    raise ValueError("it is encrypted")
                with self.archive.open(self.member) as file:  # checks the CRC
                    content = file.read(LIMIT + 1)
            if len(content) > LIMIT:
                raise ValueError(f"it is larger than {LIMIT >> 20} MB")
            return content


def find_downloads(source: str | Path, folder: str, pattern: str) -> dict[str, Download] | None:
    """{name: Download} of the files in `folder` whose names match `pattern`; None if there is neither folder nor zip.

    Looked for as source/folder (also source/folder/folder, as some programs unpack) and source/folder.zip, in which
    the files may lie at any depth.
    """
    source = Path(source)
    for path in (source / folder / folder, source / folder):
        if path.is_dir():
            files = (Download(file) for file in sorted(path.iterdir()) if file.is_file())
            return by_name(files, pattern, path)
    path = source / f"{folder}.zip"
    if not path.is_file():
        return None
    return by_name(zip_members(path), pattern, path)


def zip_members(path: str | Path) -> list[Download]:
    """The files of a zip archive as Downloads, without what macOS adds."""
    with reading(path):
        archive = zipfile.ZipFile(path)  # stays open for the reading of its members
        members = [member for member in archive.infolist() if not member.is_dir()]
    return [Download(Path(path), member, archive) for member in members if "__MACOSX/" not in member.filename]


def by_name(downloads: Iterable[Download], pattern: str, where: str | Path) -> dict[str, Download]:
    """{name: Download} of those whose names match; raises ValueError if a name occurs twice."""
    found = [download for download in downloads if re.fullmatch(pattern, download.name)]
    twice = repeated(download.name for download in found)
    if twice:
        raise ValueError(f"{where} holds {len(twice)} names twice: {some(twice)}; expected each once")
    return {download.name: download for download in found}
