import numpy as np

from datasets.check.check_volumes import PICTURES_OF_VOLUME, inspect_file
from datasets.check.data_report import DataReport, Inspection, repeated_in, tally
from datasets.demo import make_demo_synapse
from datasets.synapse import SynapseVolumes
from utils.files import read_rows


def test_a_report_lists_lines_problems_and_warnings():
    report = DataReport(["a", "b"], ["one", "two", "three"], ["w"])
    assert report.text().split("\n") == [
        "a",
        "b",
        "",
        "Problems: 3",
        "  one",
        "  two",
        "  three",
        "",
        "Warnings: 1",
        "  w",
        "",
    ]
    assert report.text(shown=2).split("\n")[4:7:1][:2] == ["  one", "  two"] and "  three" not in report.text(shown=2)
    assert "Problems: none\n" in DataReport().text() and "Warnings: none\n" in DataReport().text()


def test_things_are_counted_and_places_compared():
    assert tally(["b", "a", "a", "c"]) == ["a (2)", "b (1)", "c (1)"]
    assert repeated_in([("x", "train"), ("y", "train"), ("x", "val"), ("y", "train")]) == [
        "x (train and val)",
        "y (train and train)",
    ]


def test_classes_are_described_by_their_pixels(tmp_path):
    report, size = DataReport(), {"size": "10x10"}
    inspections = [
        Inspection("train", "a", size, np.array([30, 70, 0]), warnings=["small"]),
        Inspection("train", "b", size, np.array([100, 0, 0]), warnings=["small"]),
        Inspection("train", "c", problems=["c is bad"]),
    ]
    report.add(inspections, ["one", "two"])
    assert [line.split() for line in report.lines] == [
        ["train", "3", "files", "size", "10x10", "(2)"],
        ["class", "train", "pixels", "files"],
        ["background", "65.000", "%", "2"],
        ["one", "35.000", "%", "1"],
        ["two", "0.000", "%", "0"],
    ]
    assert len(report.warnings) == 2 and "two" in report.warnings[0]
    assert "train/a, train/b" in report.warnings[1]  # a warning that several files share is one line
    assert report.problems == ["c is bad"]
    report.save(tmp_path, thumbnails=4)
    first, _, last = read_rows(tmp_path / "files.csv")
    assert first == {
        "part": "train",
        "name": "a",
        "size": "10x10",
        "class_1": "0.7",
        "class_2": "0.0",
        "problems": "",
        "warnings": "small",
    }
    assert (last["name"], last["size"], last["class_1"], last["problems"]) == ("c", "", "", "c is bad")


def test_pictures_do_not_keep_their_volume_in_memory(tmp_path):
    folder = make_demo_synapse(tmp_path / "synapse", size=16, train=1, val=1, test=1, slices=9)
    dataset = SynapseVolumes(folder / "test_vol_h5", folder / "lists" / "list_Synapse")
    found = inspect_file(dataset, 0, "test_vol.txt")
    image, label, name, _ = dataset[0]
    assert len(found.cells) == PICTURES_OF_VOLUME
    for cell in found.cells:
        number = int(cell.name.removeprefix(f"{name} slice "))
        shown = cell.read()
        assert all(array.base is None for array in shown)
        np.testing.assert_array_equal(shown[0], image[number])
        np.testing.assert_array_equal(shown[1], label[number])
