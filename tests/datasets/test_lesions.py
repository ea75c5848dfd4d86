import re

import pytest

from datasets.lesions import LISTED, components, leaked, lesion_of
from datasets.prepare_isic import published_split
from utils.files import read_rows, write_rows


def test_chains_of_pairs_are_one_component():
    assert components([]) == {}
    linked = components([("b", "c"), ("x", "y"), ("d", "a"), ("c", "d"), ("z", "z")])
    assert linked == dict(a="a", b="a", c="a", d="a", x="x", y="x", z="z")


def test_the_list_is_sorted_and_names_the_smallest_id_of_each_lesion():
    rows = read_rows(LISTED)
    lesions, known = lesion_of(), published_split("isic17").keys() | published_split("isic18").keys()
    pairs = [(row["lesion"], row["first"], row["second"]) for row in rows]
    assert pairs == sorted(set(pairs))
    for row in rows:
        assert list(row) == ["lesion", "first", "second", "kind", "matches", "mirrored"]
        assert row["first"] < row["second"] and {row["first"], row["second"]} <= known
        assert row["lesion"] == lesions[row["first"]] == lesions[row["second"]]
        assert row["kind"] in ("same photograph", "same lesion") and row["mirrored"] in ("True", "False")
        assert re.fullmatch(r"\d+", row["matches"])


@pytest.mark.parametrize("reported, training", [("ISIC_0014846", "ISIC_0000222"), ("ISIC_0013032", "ISIC_0012685")])
def test_a_reported_image_of_a_lesion_in_training_has_leaked(reported, training):
    assert leaked([reported, "ISIC_0000003"], [training, "ISIC_0000000"]) == {reported}
    assert leaked([reported], ["ISIC_0000000"]) == leaked([], [training]) == set()


def test_a_list_that_is_missing_or_has_other_columns(tmp_path):
    assert lesion_of(tmp_path / "same_lesion.csv") == {}
    write_rows(tmp_path / "same_lesion.csv", [dict(first="a", other="b")])
    with pytest.raises(ValueError, match="same_lesion.csv.* first, other, .* second"):
        lesion_of(tmp_path / "same_lesion.csv")
