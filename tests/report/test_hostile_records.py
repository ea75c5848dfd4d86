"""Run folders from elsewhere: nothing is started, nothing outside is read, and odd records end in one sentence."""

import json
import os
import random
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from report import charts
from report.__main__ import main
from report.records import Record
from report.run_page import write_report
from tests.report.html_page import Page
from tests.report.made_runs import make_run
from utils.files import read_rows, write_rows

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n%%EOF\n"
NAMES = ("miou", "dsc", "accuracy", "specificity", "sensitivity")
OPTIMIZATION = {"optimizer": {"name": "AdamW", "lr": 1e-3}, "scheduler": {"name": "CosineAnnealingLR"}}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


ODD = [
    None,
    True,
    -1,
    0.5,
    10**9,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../../secret",
    "\ud800",
    [],
    {},
    ["x"],
]
ODD += [nested(20), nested(900)]
ODD_CELLS = ["", "x", "nan", "inf", "-1", "1e308", "../../../secret", "..", "a\0b", "1,2", "999999999999999999999"]


@pytest.fixture
def run(tmp_path):
    """A finished run with everything that a page shows but pictures."""
    run = make_run(tmp_path / "runs" / "run", [0.5, 0.75], facts={"optimization": OPTIMIZATION, "scan": "cpu"})
    scores = {score + suffix: 0.5 for score in NAMES for suffix in ("", "_per_image")}
    (run / "metrics.json").write_text(json.dumps(scores | {"split": "val"}))
    (run / "predictions").mkdir()
    return run


@pytest.fixture
def run_of_volumes(tmp_path):
    run = make_run(tmp_path / "runs" / "of_volumes", [0.5], num_classes=3, volume_resize="labels")
    scores = dict.fromkeys(("dice_transunet", "hd95_transunet", "dice_strict", "hd95_strict"), 0.5)
    named = {"class_names": ["liver", "spleen"], "classes": [scores, scores], **scores}
    (run / "metrics.json").write_text(json.dumps(named))
    row = {f"{score} {organ}": value for organ in ("liver", "spleen") for score, value in scores.items()}
    write_rows(run / "test_volumes.csv", [{"name": "case1", **row}])
    (run / "predictions").mkdir()
    return run


def refused(run):
    """The sentence with which a run is refused by the command."""
    with pytest.raises((ValueError, OSError)) as error:
        write_report(Record(run))
    return str(error.value)


def change(path, name, value):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {name: value}))


# ---- pictures


def test_a_picture_starts_no_program(run, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: pytest.fail(f"started {args}"))
    monkeypatch.setattr("subprocess.check_call", lambda *args, **options: pytest.fail(f"started {args}"))
    (run / "predictions" / "image0_overlay.png").write_bytes(EPS)
    assert re.search("image0_overlay.png .*expected PNG", refused(run))


def test_a_picture_has_a_limit_of_pixels(run, monkeypatch):
    monkeypatch.setattr("utils.files.MAX_PIXELS", 100)
    Image.new("RGB", (11, 11)).save(run / "predictions" / "image0_overlay.png")
    assert re.search("image0_overlay.png .*11x11 .*100", refused(run))


@pytest.mark.parametrize(
    "labels, found, expected",
    [(np.zeros((9, 8), np.uint8), r"\(9, 8\)", r"\(8, 8\)"), (np.full((8, 8), 3, np.uint8), "3 to 3", "0 to 2")],
)
def test_labels_are_class_numbers_of_their_image(labels, found, expected, tmp_path):
    run = make_run(tmp_path / "run", [0.5], num_classes=3)
    classes = [dict.fromkeys(("miou", "dsc"), 0.5)] * 3
    scores = {score + suffix: 0.5 for score in NAMES for suffix in ("", "_per_image")}
    (run / "metrics.json").write_text(json.dumps(scores | {"classes": classes}))
    (run / "predictions").mkdir()
    Image.new("RGB", (8, 8)).save(run / "predictions" / "image0_overlay.png")
    Image.fromarray(labels).save(run / "predictions" / "image0_truth.png")
    assert re.search(f"image0_truth.png: found .*{found}, expected .*{expected}", refused(run))


def test_pictures_of_volumes_go_through_the_same_reader(run_of_volumes):
    (run_of_volumes / "predictions" / "case1_planes.png").write_bytes(EPS)
    assert re.search("case1_planes.png .*expected PNG", refused(run_of_volumes))


# ---- names and links


@pytest.mark.parametrize("name", ["../../../secret", "..", "a/b", "a\\b", "/etc/passwd", "a\0b", "x" * 300])
def test_names_in_records_are_no_paths(name, run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret_overlay.png")
    rows = read_rows(run / "test_images.csv")
    rows[0]["name"] = name
    write_rows(run / "test_images.csv", rows)
    assert "test_images.csv, line 2: " in refused(run)


@pytest.mark.parametrize("inside", ["log.txt", "facts.json", "predictions/image0_overlay.png"])
def test_links_that_lead_out_of_the_folder_are_refused(inside, run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (run / inside).unlink(missing_ok=True)
    (run / inside).symlink_to(secret)
    assert f"{run / inside}: found a link " in refused(run)
    if inside == "facts.json":
        with pytest.raises(ValueError, match="facts.json: found a link "):
            Record(run).copy(tmp_path / "kept")


def test_a_linked_folder_of_predictions_is_refused_and_a_link_within_is_not(run, tmp_path):
    Image.new("RGB", (8, 8)).save(run / "predictions" / "other.png")
    (run / "predictions" / "image0_overlay.png").symlink_to("other.png")
    assert Page(write_report(Record(run))).tags.count("img") == 1
    (run / "predictions").rename(tmp_path / "elsewhere")
    (run / "predictions").symlink_to(tmp_path / "elsewhere")
    assert "image0_overlay.png: found a link " in refused(run)


def test_a_report_is_written_into_its_folder_only(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (run / "report.html").symlink_to(secret)
    assert "<html" in write_report(Record(run)).read_text(encoding="utf-8")
    assert secret.read_text() == "mine" and not (run / "report.html").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_a_table_is_refused(run):
    (run / "metrics.csv").unlink()
    os.mkfifo(run / "metrics.csv")
    assert "metrics.csv: " in refused(run)


# ---- odd values


@pytest.mark.parametrize(
    "file, name, value, expected",
    [
        ("config.json", "protocol", "best", "paper, holdout"),
        ("config.json", "num_classes", 10**9, "1 to 255"),
        ("config.json", "epochs", "ten", "int"),
        ("config.json", "depths", nested(900), "8 levels"),
        ("config.json", "class_names", ["a", "b"], "--num-classes 1"),
        ("config.json", "folds", 10**9, "at most 1000"),
        ("config.json", "class_colours", ["red"], "--num-classes 1"),
        ("metrics.json", "dsc", None, "'dsc'"),
        ("metrics.json", "dsc", 7, "7 as 'dsc'"),
        ("facts.json", "optimization", 3, "3 as 'optimization'"),
        ("facts.json", "lost", ["x"], "['x'] as 'lost'"),
    ],
)
def test_an_odd_value_is_named_with_its_file(file, name, value, expected, run):
    change(run / file, name, value)
    message = refused(run)
    assert str(run / file) in message and expected in message


def test_colours_of_masks_are_colours_of_each_class(tmp_path):
    run = make_run(tmp_path / "run", [0.5], num_classes=3, mask_values=["#000000", "#ff0000", "#red"])
    assert f"{run / 'config.json'}: " in refused(run)


@pytest.mark.parametrize(
    "file, column, cell, named",
    [
        ("metrics.csv", "epoch", "one", "'one' as 'epoch'.* line 2"),
        ("metrics.csv", "epoch", "", "'epoch'.* line 2"),
        ("metrics.csv", "train_loss", "inf", "'inf' as 'train_loss'.* line 2"),
        ("test_images.csv", "dsc", "", "no dsc of image0"),
        ("test_images.csv", "fp", "", "no fp of image0"),
        ("test_images.csv", "name", "image1", "image1"),
    ],
)
def test_an_odd_cell_is_named_with_its_file_and_line(file, column, cell, named, run):
    rows = read_rows(run / file)
    rows[0][column] = cell
    write_rows(run / file, rows)
    assert re.search(f"{file}: found .*{named}", refused(run))


def test_a_missing_column_and_a_missing_score_are_named(run):
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    scores.pop("accuracy")
    (run / "metrics.json").write_text(json.dumps(scores))
    assert "metrics.json: found no 'accuracy'" in refused(run)
    rows = read_rows(run / "test_images.csv")
    write_rows(run / "test_images.csv", [{"dsc": row["dsc"]} for row in rows])
    assert re.search("test_images.csv: .*'name'.* line 2", refused(run))


@pytest.mark.parametrize("file", ["config.json", "metrics.json", "facts.json"])
def test_mutated_records_end_in_a_page_or_a_sentence_that_names_the_file(file, run, capsys, monkeypatch):
    monkeypatch.setattr(charts, "_svg", lambda figure, title: "")  # drawing takes most of the time
    original = json.loads((run / file).read_text(encoding="utf-8"))
    rng = random.Random(0)
    for name in rng.sample(sorted(original), min(12, len(original))):
        for value in rng.sample(ODD, 4):
            (run / file).write_text(json.dumps(original | {name: value}))
            said_or_done(run, file, capsys)


@pytest.mark.parametrize("file", ["metrics.csv", "test_images.csv"])
def test_mutated_tables_end_in_a_page_or_a_sentence_that_names_the_file(file, run, capsys, monkeypatch):
    monkeypatch.setattr(charts, "_svg", lambda figure, title: "")
    original = read_rows(run / file)
    for column in original[0]:
        for cell in ODD_CELLS:
            write_rows(run / file, [original[0] | {column: cell}, *original[1:]])
            said_or_done(run, file, capsys)


def said_or_done(run, file, capsys):
    """The command makes the page, or prints one sentence with the file's name."""
    try:
        main([str(run)])
        assert capsys.readouterr().out.strip() == str(run / "report.html")
    except SystemExit:
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and str(run / file) in error


def test_text_without_utf8_is_written_nevertheless(run):
    change(run / "config.json", "dataset", "\ud800")
    assert "\\ud800" in write_report(Record(run)).read_text(encoding="utf-8")


@pytest.mark.parametrize("folds, fold", [(3, 3), (3, "all"), (2, -1)])
def test_a_fold_is_one_of_its_cross_validation(folds, fold, run):
    change(run / "config.json", "folds", folds)
    change(run / "config.json", "fold", fold)
    assert re.search("config.json: .*'fold'", refused(run))


@pytest.mark.parametrize("value", ["x", [1], 0.5, 10**9, None])
def test_fields_that_the_config_of_a_run_does_not_have_are_only_shown(value, run_of_volumes, tmp_path, capsys):
    for name in ("rotation", "antialias", "threshold", "mask_values"):
        change(run_of_volumes / "config.json", name, value)
    assert write_report(Record(run_of_volumes)).is_file()
    other = tmp_path / "runs" / "other"
    shutil.copytree(run_of_volumes, other)
    change(other / "config.json", "seed", 5)
    main([str(run_of_volumes), str(other), "-o", str(tmp_path / "compare.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "compare.html")


def test_a_run_that_is_whole_has_no_objection(run, run_of_volumes):
    assert Record(run_of_volumes).finished and write_report(Record(run_of_volumes)).is_file()
