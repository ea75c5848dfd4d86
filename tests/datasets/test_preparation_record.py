import json

import pytest

from datasets.preparation_record import RECORD, claim_folder


def test_a_folder_belongs_to_its_record(tmp_path):
    out = claim_folder(tmp_path / "new" / "out", {"dataset": "isic17", "seed": 42})
    assert out == tmp_path / "new" / "out" and json.loads((out / RECORD).read_text())["seed"] == 42
    (out / "file").write_text("prepared")
    assert claim_folder(str(out), {"dataset": "isic17", "seed": 42}) == out
    with pytest.raises(ValueError, match=r"out.*seed: found 42, expected 7.*--out"):
        claim_folder(out, {"dataset": "isic17", "seed": 7})
    assert json.loads((out / RECORD).read_text())["seed"] == 42


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*--out"):
        claim_folder(tmp_path, {"seed": 42})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(ValueError, match=RECORD):
        claim_folder(tmp_path, {"seed": 42})
