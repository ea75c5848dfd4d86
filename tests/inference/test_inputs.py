"""Finding inputs: every file of a folder is an input, part of one, or named with the reason."""

import inspect
import os
import sys

import pytest
from PIL import Image

from inference.inputs import ABOUT, find_inputs, search


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jfif", ".webp", ".gif", ".jp2", ".jpg"):
            Image.new("RGB", (4, 4)).save(path, {".jfif": "JPEG", ".jp2": "JPEG2000"}.get(path.suffix))
        else:
            path.write_text("text")


def reasons(found):
    return {one.path.name: one.reason for one in found.exclusions}


def names(found):
    return [item.path.name for item in found.inputs]


def test_every_file_is_used_or_named(tmp_path):
    make(tmp_path, "a.png", "b.webp", "c.gif", "d.jfif", "f.jp2", "notes.txt", "sub/g.png", ".hidden/h.png", "x.npz")
    (tmp_path / "e.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "photo").write_bytes((tmp_path / "a.png").read_bytes())  # without an ending
    found = search([tmp_path])
    assert names(found) == ["a.png", "b.webp", "d.jfif", "g.png"]
    assert {one.path.name for one in found.mistakes} == {"c.gif", "f.jp2", "e.png", "photo", "x.npz"}
    assert "link" in reasons(found)["e.png"] and "expected .png" in reasons(found)["c.gif"]
    assert {one.path.name for one in found.exclusions if not one.mistake} == {"notes.txt", ".hidden"}


def test_a_bad_path_does_not_hide_the_good_ones(tmp_path):
    make(tmp_path, "a.png", "notes.txt", "empty/notes.txt")
    found = search([tmp_path / "a.png", tmp_path / "nowhere.png", tmp_path / "notes.txt", tmp_path / "empty"])
    assert names(found) == ["a.png"]
    assert [one.path.name for one in found.mistakes] == ["nowhere.png", "notes.txt", "empty"]
    assert "no such file" in reasons(found)["nowhere.png"] and "expected .png" in reasons(found)["empty"]
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        find_inputs([tmp_path / "a.png", tmp_path / "nowhere.png"])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="an administrator may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    make(tmp_path, "a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    found = search([tmp_path])
    (tmp_path / "closed").chmod(0o700)
    assert names(found) == ["a.png"] and "Permission denied" in reasons(found)["closed"]


def test_the_rules_of_training_hold_for_prediction(tmp_path):
    make(tmp_path, "a.png", "a_superpixels.png", "a_segmentation.png", "b_segmentation.png")
    make(tmp_path, "images/c.png", "masks/c.png", "imagesTr/d.png", "labelsTr/d.png")
    found = search([tmp_path])
    assert names(found) == ["a.png", "b_segmentation.png", "c.png", "d.png"]  # b has no image beside it
    assert not found.mistakes
    excluded = {"a_superpixels.png": "superpixels", "a_segmentation.png": "mask", "masks": "masks", "labelsTr": "masks"}
    assert reasons(found).keys() == excluded.keys()
    assert all(word in reasons(found)[name] for name, word in excluded.items())
    assert names(search([tmp_path / "masks"])) == ["c.png"]  # as it was named


LABELS = (
    *(
        "p1_gt.nii.gz",
        "p1_seg.nii.gz",
        "p1-label.nrrd",
        "p1.seg.nrrd",
        "label0001.nii.gz",
        "p1-seg.nii",
        "Segmentation.mha",
    ),
    *("p1_SEGMENTATION.mhd", "segmentation-0.nii", "liver-seg001.mhd", "p1_dseg.nii.gz", "p1_msk.nii.gz", "mask.nii"),
)


@pytest.mark.parametrize("name", LABELS)
def test_label_maps_are_no_inputs(tmp_path, name):
    make(tmp_path, "p1.nii.gz", "segment_1.nii.gz", "masked01.mha", name)
    found = search([tmp_path])
    assert names(found) == ["masked01.mha", "p1.nii.gz", "segment_1.nii.gz"] and not found.mistakes
    assert [one.path.name for one in found.exclusions] == [name]
    (named,) = search([tmp_path / name]).mistakes
    assert "--insist" in named.reason
    assert names(search([tmp_path / name], insist=True)) == [name]
    with pytest.raises(ValueError, match=name):
        find_inputs([tmp_path / name])


def test_masks_and_folders_of_labels_beside_images_are_no_inputs(tmp_path):
    make(tmp_path, "a.png", "a_mask.png", "b_mask.png", "s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "s2/gt/a.nii")
    make(tmp_path, "v.mhd", "v.raw")
    found = search([tmp_path])
    assert names(found) == ["a.png", "b_mask.png", "v.mhd", "ct.nii.gz", "a.nii"]  # b_mask and gt have no image
    assert {one.path.name for one in found.exclusions} == {"a_mask.png", "segmentations", "v.raw"}
    assert not found.mistakes
    named = search([tmp_path / "a.png", tmp_path / "a_mask.png", tmp_path / "b_mask.png"])  # as a shell's *.png does
    assert names(named) == ["a.png", "b_mask.png"] and [one.path.name for one in named.mistakes] == ["a_mask.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_devices_and_pipes_are_no_inputs(tmp_path):
    make(tmp_path, "a.nii")
    (tmp_path / "z.nii").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "p.nii")
    found = search([tmp_path])
    assert names(found) == ["a.nii"] and {one.path.name for one in found.mistakes} == {"z.nii", "p.nii"}
    assert all("regular" in one.reason for one in found.mistakes)


def test_results_are_no_inputs(tmp_path):
    make(tmp_path, "a.png", "earlier/masks/a.png", f"earlier/{ABOUT}", "pred/masks/a.png", "pred/overlays/a.png")
    found = search([tmp_path], output=tmp_path / "pred")
    assert names(found) == ["a.png"] and not found.mistakes
    assert [one.path.relative_to(tmp_path).as_posix() for one in found.exclusions if "results" in one.reason] == [
        "earlier/masks",
        "pred/masks",
        "pred/overlays",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_between_folders_end(tmp_path):
    make(tmp_path, "a/x.png", "elsewhere/deep/y.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "out").symlink_to(tmp_path / "elsewhere")
    found = search([tmp_path / "a"])
    assert names(found) == ["x.png", "y.png"]
    assert reasons(found).keys() == {"up"} and not found.mistakes


def test_a_damaged_dicom_file_costs_itself_only(tmp_path):
    pytest.importorskip("SimpleITK")
    make(tmp_path, "a.png")
    (tmp_path / "RD.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)))
    found = search([tmp_path])
    assert names(found) == ["a.png"] and [one.path.name for one in found.mistakes] == ["RD.dcm"]


def test_nested_folders_of_any_depth_are_searched(tmp_path):
    depth, limit = 200, sys.getrecursionlimit()
    make(tmp_path, "/".join(["d"] * depth + ["a.png"]))
    sys.setrecursionlimit(len(inspect.stack()) + depth // 2)
    try:
        (item,) = search([tmp_path]).inputs
    finally:
        sys.setrecursionlimit(limit)
    assert item.path.parts.count("d") == depth


def test_dicom_without_preamble_is_a_mistake(tmp_path):
    (tmp_path / "IM0001").write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + bytes(200))
    (one,) = search([tmp_path]).mistakes[:1]
    assert one.path.name == "IM0001" and "DICM" in one.reason


def test_two_names_of_one_file_are_two_inputs(tmp_path):
    (tmp_path / "store").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "store" / "x.png")
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "store" / "x.png")
    assert [item.path.name for item in search([tmp_path / "in", tmp_path / "in" / "a.png"]).inputs] == [
        "a.png",
        "b.png",
    ]
