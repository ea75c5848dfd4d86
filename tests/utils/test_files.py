"""Tables and texts that users edit: what Windows programs and spreadsheets make of them, and what they do not run."""

import csv
import io
import json

import pytest

from datasets.folds import listed_pairs
from datasets.synapse import read_list
from datasets.volume_sources import read_dataset_json
from utils.files import read_json, read_rows, read_text, write_rows

ROWS = [
    {"name": "a;b", "dsc": "0.5", "dsc core, outer": "-1e-05", "note": ""},
    {"name": "Bauch, groß", "dsc": "12", "dsc core, outer": "nan", "note": "x"},
]


def as_saved_by(rows, separator, comma, encoding, end):
    """The bytes of a table as a spreadsheet saves it, with an empty row and empty cells behind the others."""
    lines = [[*line, "", ""] for line in ([*rows[0]], *(row.values() for row in rows), [""] * len(rows[0]))]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end)
    for line in lines:
        numbers = [cell.replace(".", ",") if comma and cell[0:1].strip("-").isdecimal() else cell for cell in line]
        writer.writerow(numbers)
    return text.getvalue().encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator, comma", [(",", False), (";", True), (";", False), ("\t", True)])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_is_the_same_from_each_program(separator, comma, encoding, end, tmp_path):
    (tmp_path / "table.csv").write_bytes(as_saved_by(ROWS, separator, comma, encoding, end))
    assert read_rows(tmp_path / "table.csv", "name", "dsc") == ROWS


@pytest.mark.parametrize("text", ["name;value\n1;2\n", "value\n1\n", "\n\n", "name,value,case,case\n1,2,3,4\n"])
def test_a_missing_column_and_one_that_is_there_twice_are_named_with_the_file(text, tmp_path):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=r"table.csv: .*expected (name, |)(case|each once)"):
        read_rows(tmp_path / "table.csv", "name", "case")


def test_a_row_longer_than_its_header_and_another_encoding_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("name\n1\n1,2\n")
    with pytest.raises(ValueError, match=r"table.csv: .* line 3 "):
        read_rows(tmp_path / "table.csv")
    (tmp_path / "table.csv").write_bytes("name\nMädchen\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"table.csv: .* UTF-8"):
        read_rows(tmp_path / "table.csv")


def test_no_table_and_an_empty_one_have_no_rows(tmp_path):
    write_rows(tmp_path / "table.csv", [])
    assert read_rows(tmp_path / "no.csv", "name") == read_rows(tmp_path / "table.csv", "name") == []


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@", "=", "-", "-name.png"]


def test_a_spreadsheet_runs_no_cell_and_our_reader_returns_it_as_it_was(tmp_path):
    rows = [{"name": text, "=column": text, "number": "1"} for text in [*FORMULAS, "'", "'a", "a=b", "", " =1"]]
    write_rows(tmp_path / "table.csv", rows)
    assert read_rows(tmp_path / "table.csv") == rows
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert not [cell for line in csv.reader(file) for cell in line if cell[:1] in tuple("=+-@\t\r")]
    before = (tmp_path / "table.csv").read_bytes()
    write_rows(tmp_path / "table.csv", read_rows(tmp_path / "table.csv"))
    assert (tmp_path / "table.csv").read_bytes() == before


def test_numbers_stay_numbers(tmp_path):
    rows = [{"value": value} for value in (-0.1, -3, "-1.5e-05", "+2", "-inf", float("nan"), -(10**20))]
    write_rows(tmp_path / "table.csv", rows)
    lines = (tmp_path / "table.csv").read_text().split()[1:]
    assert lines == ["-0.1", "-3", "-1.5e-05", "+2", "-inf", "nan", "-100000000000000000000"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_and_descriptions_of_windows_programs(encoding, tmp_path):
    (tmp_path / "train.txt").write_bytes("case1\r\ncase2\r\n".encode(encoding))
    assert read_list(tmp_path, "train.txt") == ["case1", "case2"]
    content = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_bytes(json.dumps(content).encode(encoding))
    assert (
        read_dataset_json(tmp_path) == ({1: "liver"}, {0: "CT"}, None)
        and read_json(tmp_path / "dataset.json") == content
    )
    assert read_text(tmp_path / "train.txt").startswith("case1")


def test_json_is_named_values(tmp_path):
    for content in ("[]", "3", "{", "[" * 100000, ""):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match="x.json"):
            read_json(tmp_path / "x.json")


def test_a_split_without_its_columns_is_named(tmp_path):
    (tmp_path / "split.csv").write_text("\ufeffid;paper\na;train\n", encoding="utf-8")
    with pytest.raises(ValueError, match="split.csv: .*expected holdout"):
        listed_pairs(tmp_path, "train")
