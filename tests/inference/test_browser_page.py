"""What the page of app.py keeps and shows, without its server."""

import dataclasses
import os
import re
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

import inference.browser_page
import utils.files
from inference.browser_page import (
    DISAGREEMENT,
    FOLDER,
    PageSession,
    PageSessions,
    about,
    draw,
    largest_upload,
    measurements,
    middle_slice,
    purpose,
    remove_leftovers,
    remove_oldest,
    save_masks,
    trust,
)
from inference.predictor import Predictor
from utils.runs.lock import LOCK


@pytest.fixture
def add_uploads(tmp_path_factory):
    def add(session, predictor, uploads):
        folder = tmp_path_factory.mktemp("uploads")
        added = inference.browser_page.add_uploads(session, predictor, uploads, folder)
        assert not list(folder.iterdir())
        return added

    return add


@pytest.fixture(scope="module")
def predictor(binary):
    predictor = Predictor(binary)
    predictor.options.probabilities = True
    return predictor


@pytest.fixture(scope="module")
def predictor_of_volumes(organs):
    return Predictor(organs)


@pytest.fixture
def photo(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def scan(tmp_path):
    values = np.random.default_rng(0).normal(0, 300, (20, 24, 5)).astype(np.int16)
    nifti = nibabel.Nifti1Image(values, np.diag([-1.5, -1.5, 4.0, 1.0]))
    nifti.set_qform(nifti.affine, 1)
    nibabel.save(nifti, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_another_threshold_does_not_ask_the_network(add_uploads, predictor, binary, photo, monkeypatch):
    session = PageSession(0.5)
    add_uploads(session, predictor, [photo])
    monkeypatch.setattr(Predictor, "_predict", None)  # nothing is predicted from here on
    masks = {}
    for threshold in (0.5, 0.505):
        session.decide(threshold, None)
        masks[threshold] = session.results[0].result.mask
    monkeypatch.undo()
    assert not np.array_equal(masks[0.5], masks[0.505])
    for threshold, mask in masks.items():
        np.testing.assert_array_equal(mask, Predictor(binary, threshold=threshold).predict(photo).mask)


def test_areas_need_the_size_of_a_pixel(add_uploads, predictor, photo):
    session = PageSession(0.5)
    add_uploads(session, predictor, [photo])
    found = int(session.results[0].result.mask.sum())
    (row,) = measurements(session.results)
    assert row == {
        "file": "photo.png",
        "structure": "foreground",
        "pixels": f"{found:,}",
        "share": f"{found / 3500:.2%}",
    }
    session.decide(0.5, 0.1)
    assert measurements(session.results)[0]["mm²"] == f"{found / 100:.2f}"
    session.decide(0.5, -1)
    assert "mm²" not in measurements(session.results)[0]


def test_a_bad_file_costs_only_itself(add_uploads, predictor, photo, scan, tmp_path, monkeypatch):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xffno image")
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(utils.files, "MAX_PIXELS", 5000)
    session = PageSession(0.5)
    add_uploads(
        session, predictor, [tmp_path / "broken.jpg", photo, scan, tmp_path / "notes.txt", tmp_path / "large.png"]
    )
    assert [one.file for one in session.results] == ["photo.png"]
    broken, large, notes, volume = sorted(session.rejections)
    assert broken.startswith("broken.jpg ") and "expected PNG" in broken
    assert re.match("large.png .*100x100.* 5000", large) and notes.startswith("notes.txt ")
    assert volume.startswith("scan.nii.gz ") and "--insist" in volume


def test_a_page_keeps_only_so_much(add_uploads, predictor, photo, monkeypatch):
    session = PageSession(0.5)
    add_uploads(session, predictor, [photo])
    monkeypatch.setattr(inference.browser_page, "LARGEST_SESSION", session.nbytes + 1)
    assert add_uploads(session, predictor, [photo]) == []
    assert len(session.results) == 1 and str(inference.browser_page.LARGEST_SESSION) in session.rejections[0]
    assert session.rejections[0].startswith("photo.png: ")


def test_files_of_one_name_stay_apart(add_uploads, predictor, photo, tmp_path):
    other = tmp_path / "other" / "photo.png"
    other.parent.mkdir()
    Image.new("RGB", (30, 40), "red").save(other)
    session = PageSession(0.5)
    add_uploads(session, predictor, [photo, other])
    add_uploads(session, predictor, [photo])
    assert len({one.name for one in session.results}) == 3
    assert [one.result.mask.shape for one in session.results] == [(50, 70), (40, 30), (50, 70)]
    path = save_masks(session.results, tmp_path / "download")
    names = zipfile.ZipFile(path).namelist()
    assert path.name == "masks.zip" and "structures.csv" in names
    assert sum(name.startswith("masks/") and name.endswith(".png") for name in names) == 3


def test_the_mask_of_a_photo_has_its_size_and_the_picture_is_turned_as_viewers_do(add_uploads, predictor, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "turned.jpg", exif=turned)
    session = PageSession(0.5)
    (one,) = add_uploads(session, predictor, [tmp_path / "turned.jpg"])
    shown = draw(one.result)
    assert shown.height == 2 * shown.width
    mask = Image.open(save_masks(session.results, tmp_path / "download"))
    assert mask.filename.endswith("turned_mask.png") and mask.size == (80, 40) and mask.getexif()[0x0112] == 6
    np.testing.assert_array_equal(np.asarray(mask) == 255, one.result.mask == 1)


def test_a_volume_has_slices_volumes_and_a_mask_in_its_geometry(add_uploads, predictor_of_volumes, scan, tmp_path):
    session = PageSession(0.5)
    (one,) = add_uploads(session, predictor_of_volumes, [scan])
    rows = measurements(session.results)
    assert [row["structure"] for row in rows] == predictor_of_volumes.class_names
    for number, row in enumerate(rows, 1):
        voxels = np.count_nonzero(one.result.mask == number)
        assert (
            row["voxels"] == f"{voxels:,}" and row["mm³"] == f"{voxels * 9:,}" and row["ml"] == f"{voxels * 0.009:.2f}"
        )
    found = np.count_nonzero(one.result.mask, axis=(1, 2))
    assert found[middle_slice(one.result)] == found.max()
    assert draw(one.result, 4).size == (640, 768)
    session.decide(0.9, 0.1)  # of no meaning for several classes, and for a volume
    assert measurements(session.results) == rows
    mask = nibabel.load(save_masks(session.results, tmp_path / "download"))
    assert Path(mask.get_filename()).name == "scan_mask.nii.gz" and mask.shape == (20, 24, 5)
    np.testing.assert_array_equal(mask.affine, nibabel.load(scan).affine)


def test_slices_of_a_dicom_series_that_are_dropped_together_are_one_volume(add_uploads, predictor_of_volumes, tmp_path):
    pytest.importorskip("pydicom")
    from tests.inference.test_dicom import write_series

    session = PageSession(0.5)
    (one,) = add_uploads(session, predictor_of_volumes, sorted(write_series(tmp_path / "ct").iterdir()))
    assert one.file == one.name == "series" and one.result.mask.shape == (5, 12, 10) and not session.rejections


def test_uploads_are_as_large_as_what_is_read(predictor, predictor_of_volumes):
    assert largest_upload(predictor) == 8 * utils.files.MAX_PIXELS
    assert largest_upload(predictor_of_volumes) == 8 * inference.browser_page.MAX_VALUES


def test_a_line_says_what_the_network_is(predictor):
    line = about(predictor, ["isic17"])
    assert "Not a medical device" in line and "trained on images of the data set demo" in line
    assert "pretrained_weights/vmunet_isic17.md" in line and "on this computer" in line


def test_where_networks_disagree_the_picture_is_yellow(add_uploads, predictor, photo, scan, predictor_of_volumes):
    for one, file in ((predictor, photo), (predictor_of_volumes, scan)):
        (added,) = add_uploads(PageSession(0.5), one, [file])
        plain = np.asarray(draw(added.result))
        assert np.array_equal(draw(added.result, disagreement=True), plain)  # one network has none
        half = np.zeros(added.result.classes.shape, np.float32)
        half[..., : half.shape[-1] // 2] = 0.5
        result = dataclasses.replace(added.result, disagreement=half)
        covered, width = np.asarray(draw(result, disagreement=True)), plain.shape[1]
        assert (covered[:, : width // 3] == DISAGREEMENT).all()
        assert np.array_equal(covered[:, -width // 3 :], plain[:, -width // 3 :])


def test_calibration_is_shown_for_the_shipped_network_and_said_to_be_unknown_for_others():
    text, picture = trust(["isic17"])
    assert "too sure" in text and picture is not None and picture.name == "vmunet_isic17_calibration.png"
    for names in (["results/a_run"], ["isic17", "results/a_run"]):
        text, picture = trust(names)
        assert "not been measured" in text and picture is None


def test_files_of_one_name_beside_one_named_like_their_folder(add_uploads, predictor, photo, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.png").write_bytes(photo.read_bytes())
    (tmp_path / "2").write_bytes(photo.read_bytes())
    session = PageSession(0.5)
    add_uploads(session, predictor, [tmp_path / "2", tmp_path / "a" / "photo.png", tmp_path / "b" / "photo.png"])
    add_uploads(session, predictor, [tmp_path / "a" / "photo.png"])
    assert len({one.file for one in session.results}) == len(session.results) >= 3


def test_an_upload_that_is_gone_costs_only_itself(add_uploads, predictor, photo, tmp_path):
    session = PageSession(0.5)
    add_uploads(session, predictor, [tmp_path / "gone.png", photo])
    assert [one.file for one in session.results] == ["photo.png"] and session.rejections[0].startswith("gone.png ")


def test_the_oldest_tabs_make_room(add_uploads, predictor, photo, monkeypatch):
    sessions, tabs = PageSessions(), [PageSession(0.5) for _ in range(3)]
    for tab in tabs:
        add_uploads(tab, predictor, [photo])
    size = tabs[0].nbytes
    monkeypatch.setattr(inference.browser_page, "LARGEST_SESSION", 2 * size)
    for tab in (tabs[0], tabs[1], tabs[0], tabs[2]):
        sessions.use(tab)
    assert [len(tab.results) for tab in tabs] == [1, 0, 1] and tabs[1].rejections == [inference.browser_page.GONE]
    monkeypatch.setattr(inference.browser_page, "TABS", 1)
    sessions.use(tabs[0])
    assert [len(tab.results) for tab in tabs] == [1, 0, 0] and sessions.nbytes == size
    sessions.remove(tabs[0])
    assert sessions.nbytes == 0 and tabs[0].results


def test_the_oldest_files_make_room(tmp_path, monkeypatch):
    for age, name in enumerate(("new", "middle", "old", LOCK)):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(inference.browser_page, "LARGEST_SESSION", 250)
    remove_oldest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle", LOCK}


def test_only_folders_of_dead_servers_are_removed(tmp_path):
    folders = {name: tmp_path / f"{FOLDER}{name}" for name in ("own", "alive", "dead", "without_lock")}
    folders["other"] = tmp_path / "other"
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "upload.png").write_bytes(b"x")
        if name != "without_lock":
            (folder / LOCK).touch()
    (tmp_path / f"{FOLDER}link").symlink_to(folders["other"])
    with FileLock(folders["own"] / LOCK), FileLock(folders["alive"] / LOCK):
        remove_leftovers(folders["own"])
    assert {name for name, folder in folders.items() if (folder / "upload.png").exists()} == folders.keys() - {"dead"}


@pytest.mark.parametrize(
    "sentence, shown",
    [
        ("a.png is MR; expected CT as in training (--insist predicts it)", "a.png is MR; expected CT as in training"),
        ("x: found -9 to 3, expected --window with the values that become 0 and 1", "x: found -9 to 3"),
        ("x: no units. Give them; in Hounsfield units --window -125 275", "x: no units. Give them"),
        ("a (--other).png, --b; c", "a (--other).png, --b; c"),
    ],
)
def test_advice_for_the_command_line_is_not_for_the_page(sentence, shown):
    assert inference.browser_page.ADVICE.sub("", sentence) == shown


def test_a_sentence_says_what_the_page_does(predictor, predictor_of_volumes):
    assert re.match("Drop a photograph, or click a sample, .* foreground, .*masks", purpose(predictor))
    assert purpose(predictor_of_volumes).startswith("Drop a volume to ")
