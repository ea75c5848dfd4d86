import html
import json
import re

import pytest

from datasets.demo import make_demo_isic
from datasets.loaders import data_fingerprint
from tests.training_process import FLAGS, run, the_run
from utils.files import read_rows


def test_a_list_of_files_has_another_hash_if_one_is_gone_or_another_size(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for path in files:
        path.write_bytes(b"123")
    before = data_fingerprint(files)
    assert data_fingerprint(files) == before and len(before) == 64
    assert data_fingerprint(files[:1]) != before
    files[1].write_bytes(b"1234")
    assert data_fingerprint(files) != before


@pytest.mark.slow
def test_images_that_were_removed_while_a_run_was_stopped_are_noticed(tmp_path):
    make_demo_isic(tmp_path / "data", size=40, train=9, val=3)
    flags = [*FLAGS, "--data-path", tmp_path / "data", "--work-dir", tmp_path / "runs", "--num-workers", 0]
    status, said = run("train.py", *flags, "--epochs", 1)
    assert status == 0, said
    folder = the_run(tmp_path / "runs")
    for part in ("images", "masks"):
        sorted((tmp_path / "data" / "train" / part).iterdir())[0].unlink()
    status, said = run("train.py", "--resume", folder, "--epochs", 2)
    assert status == 2 and re.search(r"--resume .* epoch 1\b.*--accept-changed-data", said)
    assert len(read_rows(folder / "metrics.csv")) == 1
    status, said = run("train.py", "--resume", folder, "--epochs", 2, "--accept-changed-data")
    assert status == 0, said
    fact = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["changed_data"]
    assert "epoch 1" in fact and fact in said
    assert fact in html.unescape((folder / "report.html").read_text(encoding="utf-8"))
