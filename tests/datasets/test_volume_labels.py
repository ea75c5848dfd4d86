"""The labels of volumes: their numbers and names in files, their classes in training."""

import json

import h5py
import nibabel
import numpy as np
import pytest

from datasets.prepare_volumes import PrepareVolumes, prepare
from datasets.volume_sources import read_dataset_json
from tests.datasets.volumes import affine, arrays, make_data_set, make_pairs, options, save


def test_the_label_that_nnunet_ignores_becomes_255(tmp_path):
    folder = make_data_set(tmp_path / "in", {"background": 0, "aorta": 1, "ignore": 2}, {"0": "CT"})
    record, parts = prepare(PrepareVolumes(images=str(folder), out=str(tmp_path / "out")))
    assert record["class_names"] == ["aorta"] and record["labels"] == [1] and record["ignore_label"] == 255
    with h5py.File(tmp_path / "out" / "test_vol_h5" / f"{parts['test'][0]}.npy.h5") as file:
        stored = nibabel.load(folder / "labelsTr" / f"{parts['test'][0]}.nii.gz").get_fdata()
        assert np.unique(file["label"]).tolist() == [0, 1, 255]
        assert (file["label"][:] == 255).sum() == (stored == 2).sum()


def store_labels(folder, numbers):
    """Replace the labels 0, 1, 2, ... of all files by other numbers."""
    for path in folder.iterdir():
        image = nibabel.load(path)
        save(nibabel.Nifti1Image(np.array(numbers, np.int16)[np.asarray(image.dataobj)], image.affine), path)


def test_labels_of_dataset_json_may_have_gaps_and_ignore_255(tmp_path):
    """As in BraTS, 0, 1, 2, 4."""
    make_pairs(tmp_path, labels=5)
    store_labels(tmp_path / "labels", [0, 1, 2, 4, 255])
    labels = {"background": 0, "edema": 2, "core": 1, "enhancing": 4, "ignore": 255}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "MR"}}))
    record, parts = prepare(options(tmp_path))
    assert record["class_names"] == ["core", "edema", "enhancing"] and record["labels"] == [1, 2, 4]
    with h5py.File(tmp_path / "out" / "test_vol_h5" / f"{parts['test'][0]}.npy.h5") as file:
        assert np.unique(file["label"]).tolist() == [0, 1, 2, 3, 255]


@pytest.mark.parametrize(
    "numbers, class_names, labels, ignored",
    [
        ([0, 1, 255], (), [1], 255),
        ([0, 1, 255], ("organ", "border"), [1, 255], None),
        ([0, 128, 255], (), [128, 255], None),  # grey levels
        ([0, 255, 255], (), [255], None),
    ],
)
def test_255_beside_class_numbers_is_ignored(tmp_path, caplog, numbers, class_names, labels, ignored):
    store_labels(make_pairs(tmp_path) / "labels", numbers)
    record, _ = prepare(options(tmp_path, class_names=class_names))
    assert record["labels"] == labels and record.get("ignore_label") == ignored
    assert ("label 255" in caplog.text and "--class-names" in caplog.text) == (ignored is not None)


def test_a_byte_order_mark_changes_nothing(tmp_path):
    folder = make_data_set(tmp_path / "in", {"background": 0, "aorta": 1, "liver": 2}, {"0": "CT"})
    described = folder / "dataset.json"
    described.write_text(described.read_text(encoding="utf-8"), encoding="utf-8-sig")
    for part, number in (("train", 0), ("val", 1), ("test", 2)):
        (tmp_path / f"{part}.txt").write_text(f"heart_{number:03}\r\n", encoding="utf-8-sig", newline="")
    for _ in range(2):
        config = PrepareVolumes(images=str(folder), lists=str(tmp_path), out=str(tmp_path / "out"))
        assert prepare(config)[1] == {"train": ["heart_000"], "val": ["heart_001"], "test": ["heart_002"]}
        table = tmp_path / "out" / "cases.csv"
        table.write_text(table.read_text(encoding="utf-8"), encoding="utf-8-sig")


def test_labels_that_a_slope_moves_are_rounded_and_told(tmp_path, caplog):
    make_pairs(tmp_path)

    def store(path, slope):
        image = nibabel.load(path)
        stored = nibabel.Nifti1Image((100 * np.round(image.get_fdata())).astype(np.uint8), image.affine)
        stored.header.set_slope_inter(slope, 0)
        nibabel.save(stored, path)

    for path in (tmp_path / "labels").iterdir():
        store(path, 0.010002)
    caplog.set_level("INFO")
    record, _ = prepare(options(tmp_path))
    assert record["labels"] == [1, 2]
    (line,) = [line for line in caplog.messages if "the slope" in line]
    assert "4 cases" in line and "pat1_a.nii.gz (0.010002)" in line
    store(path, 0.012)
    with pytest.raises(ValueError, match=rf"{path.name}.*label \d\.\d"):
        prepare(options(tmp_path))


def test_labels_with_gaps_become_consecutive_classes(tmp_path):
    for seed, case in enumerate(("p1", "p2")):
        image, label = arrays(seed)
        save(nibabel.Nifti1Image(image, affine()), tmp_path / "images" / f"{case}.nii")
        save(nibabel.Nifti1Image(np.array([0, 4, 7], np.float32)[label], affine()), tmp_path / "labels" / f"{case}.nii")
    record, parts = prepare(options(tmp_path))
    assert record["labels"] == [4, 7] and record["class_names"] == ["label 4", "label 7"]
    with h5py.File(tmp_path / "out" / "test_vol_h5" / f"{parts['test'][0]}.npy.h5") as file:
        np.testing.assert_array_equal(file["label"][:], arrays(["p1", "p2"].index(parts["test"][0]))[1].T)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, r"dataset.json.*whole: \[1, 2\]"),
        ({"labels": {"background": 0, "ignore": 3}}, r"dataset.json.*\[0, 3\]"),
        ({"labels": {"1": "b", "2": "a"}}, r"dataset.json.*\[1, 2\]"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, r"dataset.json.*b: 1"),
        ([1], r"dataset.json.*\"labels\""),
    ],
)
def test_labels_of_dataset_json_that_are_no_classes(tmp_path, content, message):
    make_pairs(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        prepare(options(tmp_path))


def test_channels_are_in_the_order_of_their_numbers(tmp_path):
    channels = {str(number): f"channel {number}" for number in (10, 2, *range(2), *range(3, 10))}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1}, "channel_names": channels}))
    assert read_dataset_json(tmp_path)[1] == {number: f"channel {number}" for number in range(11)}
