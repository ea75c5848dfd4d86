import json

import pytest
from PIL import Image

from datasets import prepare_isic
from datasets.isic import find_pairs
from datasets.prepare_isic import OFFICIAL, prepare


@pytest.fixture(params=OFFICIAL)
def source(request, tmp_path):
    """The official folders of one year with 7 and 3 pairs, superpixels among them."""
    for count, (images, masks) in zip((7, 3), OFFICIAL[request.param][0], strict=True):
        for folder in (images, masks):
            (tmp_path / "source" / folder).mkdir(parents=True)
        for number in range(count):
            stem = f"ISIC_{count}{number:06d}"
            Image.new("RGB", (4, 4)).save(tmp_path / "source" / images / f"{stem}.jpg")
            Image.new("L", (4, 4)).save(tmp_path / "source" / images / f"{stem}_superpixels.png")
            Image.new("L", (4, 4)).save(tmp_path / "source" / masks / f"{stem}_segmentation.png")
    return tmp_path / "source"


def stems(out):
    return {
        part: [stem for stem, _, _ in find_pairs(out / part / "images", out / part / "masks")]
        for part in ("train", "val")
    }


def test_three_parts_test_on_what_two_parts_validate_on(source, tmp_path):
    prepare(source, tmp_path / "two", seed=1)
    assert prepare(source, tmp_path / "three", seed=1, three_way=True) == {"train": 6, "val": 1, "test": 3}
    two, three = (
        {path.name for path in (tmp_path / name / part).rglob("*.jpg")}
        for name, part in (("two", "val"), ("three", "test"))
    )
    assert two == three


@pytest.mark.parametrize("link", [False, True])
def test_both_official_sets_are_pooled_and_split(source, tmp_path, link):
    out = tmp_path / "out"
    assert prepare(source, out, seed=1, link=link) == {"train": 7, "val": 3}
    found = stems(out)
    assert not set(found["train"]) & set(found["val"]) and len(found["train"] + found["val"]) == 10
    assert json.loads((out / "split.json").read_text())["val"] == found["val"]
    files = [path for path in out.rglob("*.jpg")]
    assert all(path.is_symlink() == link for path in files)


def test_the_seed_decides_the_split(source, tmp_path):
    splits = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(source, tmp_path / name, seed)
        splits.append(stems(tmp_path / name))
    assert splits[0] == splits[1] != splits[2]


def test_a_complete_set_is_split_as_published(monkeypatch):
    for name, total, train, val in (("isic17", 2150, 1500, 650), ("isic18", 2694, 1886, 808)):
        split = prepare_isic.split_pairs([(str(number), None, None) for number in range(total)], name, 42)
        assert (len(split["train"]), len(split["val"])) == (train, val)


def test_an_interrupted_run_is_completed(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = []

    def copy_few(source, target):
        if len(done) == 5:
            target.write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(target)
        target.write_bytes(source.read_bytes())

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_isic.shutil, "copyfile", copy_few)
        prepare(source, out, seed=1)
    prepare(source, out, seed=1)
    prepare(source, tmp_path / "whole", seed=1)
    assert stems(out) == stems(tmp_path / "whole")
    assert not list(out.rglob("*.partial"))


def test_another_split_does_not_mix_with_the_first(source, tmp_path):
    out = tmp_path / "out"
    prepare(source, out, seed=1)
    with pytest.raises(ValueError, match="split.json records another split"):
        prepare(source, out, seed=2)
    (out / "split.json").unlink()
    with pytest.raises(ValueError, match="holds data that this tool has not split"):
        prepare(source, out, seed=1)


def test_what_is_missing_is_named(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds none of the official folders; expected ISIC-2017_Training_Data"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    masks = next(path for path in source.iterdir() if "Training" in path.name and "GroundTruth" in path.name)
    masks.rename(source / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"has no folder {masks.name}"):
        prepare(source, tmp_path / "out")
