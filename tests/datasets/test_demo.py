import os

import numpy as np
import pytest
from PIL import Image

from datasets.demo import MARKER, make_demo_isic, make_demo_synapse, make_once
from datasets.isic import ISICDataset
from datasets.synapse import SynapseSlices, SynapseVolumes
from datasets.synthetic import abdomen, lesion
from datasets.transforms import ISICTransform, RandomGenerator


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("demo") / "isic", size=64, train=12, val=4, test=2)


@pytest.fixture(scope="module")
def synapse(tmp_path_factory):
    return make_demo_synapse(tmp_path_factory.mktemp("demo") / "synapse", size=64, train=2, val=1, test=1, slices=10)


def test_lesions_have_the_real_layout(isic):
    train, val, test = (ISICDataset(isic, split, ISICTransform(64)) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (12, 4, 2)
    assert len({pair[0] for pair in train.pairs + val.pairs + test.pairs}) == 18
    for image, mask, name in (train[index] for index in range(12)):
        assert name.startswith("DEMO_")
        assert image.shape == (3, 64, 64)
        assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_abdomens_have_the_real_layout(synapse):
    lists = synapse / "lists" / "list_Synapse"
    slices = SynapseSlices(synapse / "train_npz", lists, RandomGenerator(64))
    volumes = SynapseVolumes(synapse / "test_vol_h5", lists)
    assert len(slices) == 20 and len(volumes) == 1
    image, label, name, spacing = volumes[0]
    assert image.shape == label.shape == (10, 64, 64) and name == "case0004" and spacing.shape == (3,)
    assert 0 <= image.min() and image.max() <= 1
    assert SynapseVolumes(synapse / "test_vol_h5", lists, list_name="val_vol.txt").names == ["case0003"]


def test_all_eight_organs_are_there():
    for seed in range(4):
        _, label, _ = abdomen(np.random.default_rng(seed), 128, 12)
        sizes = np.bincount(label.ravel(), minlength=9)
        assert len(sizes) == 9 and sizes.min() > 50
        assert sizes[5] > 3 * sizes[1:5].max()  # the liver is the largest by far


def test_lesions_cannot_be_found_by_a_threshold():
    """Even the best threshold for each image, on its darkness, leaves much to learn."""
    scores = []
    for seed in range(24):
        image, mask = lesion(np.random.default_rng(seed), 64)
        darkness, mask = 255 - image.mean(-1), mask > 0
        dice = [
            2 * (mask & (darkness > level)).sum() / (mask.sum() + (darkness > level).sum())
            for level in range(0, 255, 5)
        ]
        scores.append(max(dice))
    assert np.mean(scores) < 0.85


def test_same_seed_same_data(tmp_path, isic):
    again = make_demo_isic(tmp_path / "again", size=64, train=12, val=4, test=2)
    for path in isic.rglob("*.png"):
        assert np.array_equal(Image.open(path), Image.open(again / path.relative_to(isic)))


def test_data_are_called_synthetic(isic, synapse):
    for root in (isic, synapse):
        assert "Synthetic" in (root / MARKER).read_text(encoding="utf-8")


def test_made_only_once(isic):
    before = {path: path.stat().st_mtime_ns for path in isic.rglob("*")}
    assert make_demo_isic(isic) == isic
    assert {path: path.stat().st_mtime_ns for path in isic.rglob("*")} == before


def test_an_interruption_leaves_nothing(tmp_path):
    def write(folder):
        (folder / "half").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "demo", "data", write)
    assert os.listdir(tmp_path) == []


def test_of_two_processes_the_first_wins(tmp_path):
    def write(folder):
        if not (tmp_path / "demo").exists():
            make_once(tmp_path / "demo", "data", lambda other: (other / "first").touch())

    make_once(tmp_path / "demo", "data", write)
    assert sorted(os.listdir(tmp_path / "demo")) == [MARKER, "first"]
    assert os.listdir(tmp_path) == ["demo"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine.*--data-path"):
        make_demo_isic(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == []
