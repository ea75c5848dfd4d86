"""The archives of torch.save: the size that they declare, and the checksum at the end of ours."""

import hashlib
import io
import zipfile

# torch.save writes a zip archive, which ends with a comment and, before it, the comment's length in two bytes. Here the
# comment is the checksum of everything before it; other programs can still read the file.
MARK = b"vmunet sha256 "
DIGEST_BYTES = 64
MOST_MEMBERS = 100_000  # of an archive: one for each tensor, and a few more


class ArchiveError(ValueError):
    """An archive that torch.save has not written, or that has changed since."""


def check_archive(content: bytes) -> None:
    """Raise ArchiveError if a checksum at the end does not match the bytes before it, and for an archive that would
    take more memory than the file: torch.save compresses nothing, and compressed records may expand a thousand
    times. Files from before PyTorch 1.6 are not archives and pass."""
    if has_checksum(content):
        expected = content[-DIGEST_BYTES:].decode("ascii", "replace")
        found = hashlib.sha256(memoryview(content)[:-DIGEST_BYTES]).hexdigest()
        if found != expected:
            raise ArchiveError(f"found SHA-256 {found[:9]}..., expected {expected[:9]}...: the file was altered")
    if not content.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    compressed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise ArchiveError(f"found the compressed record {compressed[0]!r}, expected records as torch.save writes them")
    if len(members) > MOST_MEMBERS or sum(member.file_size for member in members) > len(content):
        raise ArchiveError(f"found {len(members)} records that declare more than the file's {len(content)} bytes")


def has_checksum(content: bytes) -> bool:
    """Return whether these bytes are a checkpoint of this project; those of other programs have no checksum."""
    return content[-len(MARK) - DIGEST_BYTES : -DIGEST_BYTES] == MARK
