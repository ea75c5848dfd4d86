import html
import json

import numpy as np
import pytest
from PIL import Image

import train
from configs.config_setting import ISICConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic
from datasets.loaders import data_fingerprint
from tests.tiny import TRAINING
from tests.training_process import the_run
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


def test_contents_of_the_same_size_have_another_hash(tmp_path):
    slices = np.zeros((2, 224, 224), np.float32)  # most of a scan is air
    slices[:, 60:150, 80:190] = np.random.default_rng(0).random((2, 90, 110), dtype=np.float32)
    path, found = tmp_path / "slice.npy", set()
    for array in (slices, slices[:, :, ::-1], slices[:, ::-1], slices[::-1], slices):
        np.save(path, array)
        found.add(data_fingerprint([path]))
    sizes = data_fingerprint([path], contents=False)
    assert len(found) == 4 and sizes not in found
    image = np.zeros((64, 64), np.uint8)
    for value in (1, 2):
        image[30, 30] = value
        Image.fromarray(image).save(tmp_path / "mask.bmp")
        Image.fromarray(image).save(tmp_path / "mask.png")
        found |= {data_fingerprint([tmp_path / name]) for name in ("mask.bmp", "mask.png")}
    assert len(found) == 8


def test_a_fingerprint_of_an_empty_file_and_of_a_short_one(tmp_path):
    for content in (b"", b"1", b"1" * 1023, b"1" * 1025):
        (tmp_path / "file").write_bytes(content)
        assert len(data_fingerprint([tmp_path / "file"])) == 64


@pytest.mark.slow
def test_images_that_were_removed_while_a_run_was_stopped_are_noticed(tmp_path):
    make_demo_isic(tmp_path / "data", size=40, train=9, val=3)
    places = dict(data_path=str(tmp_path / "data"), work_dir=str(tmp_path / "runs"))
    train.main(ISICConfig(**TRAINING, **places, dataset="demo", epochs=1))
    folder = the_run(tmp_path / "runs")
    for part in ("images", "masks"):
        sorted((tmp_path / "data" / "train" / part).iterdir())[0].unlink()
    resumed = ["--resume", str(folder), "--epochs", "2"]
    with pytest.raises(ValueError, match=r"--resume .* epoch 1\b.*--accept-changed-data"):
        train.main(resolve(ISICConfig, resumed))
    assert len(read_rows(folder / "metrics.csv")) == 1
    train.main(resolve(ISICConfig, [*resumed, "--accept-changed-data"]))
    fact = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["changed_data"]
    assert "epoch 1" in fact and fact in (folder / "log.txt").read_text(encoding="utf-8")
    assert fact in html.unescape((folder / "report.html").read_text(encoding="utf-8"))
