"""Each check is a function that returns a Section."""

from pathlib import Path

import numpy as np

from datasets.check.images import Classes, Pair, Seen, check_pairs, describe_classes, guess_classes
from datasets.check.report import Section, in_several, join, tally
from datasets.check.synapse import PICTURES_OF_VOLUME, check_overlap, look_at_volume
from datasets.demo import make_demo_synapse
from datasets.synapse import SynapseVolumes


def test_the_report_is_its_sections_in_their_order():
    first = Section(["a"], [{"name": 1}], problems=["one"], warnings=["w"])
    second = Section(["b"], problems=["two", "three"])
    report = join([first, Section(), second])
    assert report == Section(["a", "b"], [{"name": 1}], ["one", "two", "three"], ["w"])
    assert report.text() == "a\nb\n\nProblems: 3\n  one\n  two\n  three\n\nWarnings: 1\n  w\n"
    assert "  two\n  and 1 more, see report.txt\n\nWarnings: 1\n  w\n" in report.text(shown=2)
    assert Section().text() == "\nProblems: none\n\nWarnings: none\n"
    assert first.lines == ["a"]  # joining leaves the sections as they are


def test_things_are_counted_and_places_compared():
    assert tally(["b", "a", "a", "c"]) == ["a (2)", "b (1)", "c (1)"]
    assert in_several([("x", "train"), ("y", "train"), ("x", "val"), ("y", "train")]) == [
        "x (train and val)",
        "y (train and train)",
    ]


def test_what_masks_hold_decides_the_classes():
    for masks, classes, line, warnings in (
        ([({0, 1}, "grey"), ({0}, "grey")], Classes(1), "Masks: 2 values, 0, 1", 0),
        ([({0, 1}, "grey"), ({0, 255}, "grey")], Classes(1), "Masks: 3 values, 0, 1, 255", 1),
        ([({0, 7}, "grey"), ({7}, "grey")], Classes(1, ("0", "7")), "Masks: 2 values, 0, 7", 0),
        ([({0, 1}, "palette"), ({2}, "palette")], Classes(3), "Masks: 3 indices of a palette, 0, 1, 2", 0),
        ([({0, 9}, "grey"), ({5}, "grey")], Classes(3, ("0", "5", "9")), "Masks: 3 values, 0, 5, 9", 0),
    ):
        found, section = guess_classes(masks)
        assert found == classes and section.lines == [line] and len(section.warnings) == warnings
        assert not section.rows and not section.problems
    assert Classes(3, ("0", "5", "9")).flags == ["--num-classes", "3", "--mask-values", "0", "5", "9"]
    assert Classes(3, ("0", "5", "9")).values == (0, 5, 9)


def test_classes_are_described_by_their_pixels():
    pairs = [Pair("train", stem, Path(f"{stem}.png"), Path(f"{stem}.png")) for stem in "abc"]
    seen = [Seen(pairs[0], counts=np.array([30, 70, 0])), Seen(pairs[1], counts=np.array([100, 0, 0])), Seen(pairs[2])]
    section = describe_classes(seen, Classes(3))
    assert [line.split() for line in section.lines[1:4]] == [
        ["background", "0", "65.000", "%", "2"],
        ["class", "1", "1", "35.000", "%", "1"],
        ["class", "2", "2", "0.000", "%", "0"],
    ]
    assert "covers 0.00 to 70.00 % of an image" in section.lines[4]
    assert section.warnings == ["class 2 is nowhere"] and not section.problems and not section.rows


def test_each_pair_has_a_row_and_each_warning_is_said_once():
    pairs = [Pair("", stem, Path(f"{stem}.png"), Path(f"{stem}.png")) for stem in "ab"]
    seen = [
        Seen(pair, (8, 9), "L", np.array([1, 3]), warnings=["small"], problems=[f"{pair.stem} is bad"])
        for pair in pairs
    ]
    section = check_pairs(seen, 1)
    assert [row["name"] for row in section.rows] == ["a", "b"]
    assert section.rows[0] == {
        "part": "",
        "name": "a",
        "width": 8,
        "height": 9,
        "mode": "L",
        "class_1": 0.75,
        "problems": "a is bad",
        "warnings": "small",
    }
    assert section.problems == ["a is bad", "b is bad"] and section.warnings == ["small, in 2 pairs: a, b"]


def test_a_case_in_two_lists_is_a_problem_of_their_folder(tmp_path):
    for name, lines in (
        ("train.txt", "case0001_slice000 case0001_slice001 case0002_slice000"),
        ("val_vol.txt", "case0002"),
    ):
        (tmp_path / name).write_text(lines)
    assert check_overlap(tmp_path).problems == [
        f"{tmp_path} has no test_vol.txt",
        f"{tmp_path}: 1 cases are in several lists: case0002 (train.txt and val_vol.txt)",
    ]


def test_pictures_do_not_keep_their_volume_in_memory(tmp_path):
    folder = make_demo_synapse(tmp_path / "synapse", size=16, train=1, val=1, test=1, slices=9)
    dataset = SynapseVolumes(folder / "test_vol_h5", folder / "lists" / "list_Synapse")
    seen = look_at_volume(dataset, 0)
    image, label, name, _ = dataset[0]
    assert len(seen.cells) == PICTURES_OF_VOLUME
    for cell in seen.cells:
        number = int(cell.name.removeprefix(f"{name} slice "))
        shown = cell.read()
        assert all(array.base is None for array in shown)
        np.testing.assert_array_equal(shown[0], image[number])
        np.testing.assert_array_equal(shown[1], label[number])
