import zipfile

import pytest

from datasets.downloads import find_downloads


def contents(source, folder="Set", pattern=r"\w+\.txt"):
    return {name: file.read_bytes() for name, file in find_downloads(source, folder, pattern).items()}


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)


def test_folders_and_archives_hold_the_same(tmp_path):
    for place in ("a/Set", "b/Set/Set"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "one.txt").write_text("1")
        (tmp_path / place / "readme").write_text("no")
    (tmp_path / "c").mkdir()
    write_zip(tmp_path / "c" / "Set.zip", [("Set/one.txt", "1"), ("Set/readme", "no"), ("__MACOSX/Set/two.txt", "no")])
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c") == {"one.txt": b"1"}
    assert find_downloads(tmp_path, "Set", ".*") is None


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    write_zip(tmp_path / "Set.zip", [("Set/one.txt", "1"), ("Set/other/one.txt", "2")])
    with pytest.raises(ValueError, match="Set.zip.* 1 .*one.txt"):
        find_downloads(tmp_path, "Set", r"\w+\.txt")


def test_what_an_archive_says_of_its_sizes_is_not_trusted(tmp_path, monkeypatch):
    """Ten megabytes of zeros that pack to ten kilobytes are not read beyond the limit."""
    with zipfile.ZipFile(tmp_path / "Set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Set/one.txt", bytes(10_000_000))
    monkeypatch.setattr("datasets.downloads.LIMIT", 2**20)
    with pytest.raises(ValueError, match="Set.zip/Set/one.txt.* 1 MB"):
        contents(tmp_path)


def test_encrypted_members_are_named(tmp_path):
    write_zip(tmp_path / "Set.zip", [("Set/one.txt", "1")])
    content = bytearray((tmp_path / "Set.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    content[6] |= 1
    (tmp_path / "Set.zip").write_bytes(content)
    with pytest.raises(ValueError, match="one.txt.*encrypted"):
        contents(tmp_path)
