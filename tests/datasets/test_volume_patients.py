"""Which cases are of one patient, and the division into parts."""

import itertools
from pathlib import Path

import pytest

from datasets.prepare_volumes import divide, prepare
from tests.datasets.volumes import make_pairs, options


def names(pattern, *ranges):
    return [pattern.format(*numbers) for numbers in itertools.product(*ranges)]


@pytest.mark.parametrize(
    "cases, patients",
    [
        (names("hippocampus_{:03}", range(1, 30, 2)), 15),
        (names("patient{:03}_frame{:02}", range(1, 21), (1, 12)), 20),
        (names("T{}_patient{:03}", (1, 2), range(20)), None),
    ],
)
def test_in_one_pool_no_two_patients_share_a_long_number(cases, patients):
    """Its folds are drawn later, by patient."""
    if patients is None:
        with pytest.raises(
            ValueError, match=r"found T1_patient000 \(T1.*\) and T2_patient000 \(T2.*\), which.* one patient"
        ):
            divide(cases, options(Path(), split=(100, 0, 0)))
        return
    of_patients, parts = divide(cases, options(Path(), split=(100, 0, 0)))
    assert len({*of_patients.values()}) == patients and parts == {"train": sorted(cases), "val": [], "test": []}


@pytest.mark.parametrize(
    "cases, patients, example",
    [
        (names("hippocampus_{:03}", range(1, 30, 2)), 15, "hippocampus_001 has hippocampus_001"),
        (names("patient{:03}_frame{:02}", range(1, 21), (1, 12)), 20, "patient001 has patient001_frame01"),
        (names("patient{:03}_frame{:02}", (1, 2), (1, 12)), 2, "patient001 has patient001_frame01"),
        (names("BraTS20_Training_{:03}", range(1, 12)), 11, "BraTS20_Training_001 has"),
        (names("site{}_p{}", (1, 2), range(10, 20)), None, None),
        (names("genius_{:04}", range(800, 803)), 3, "genius_0801 has genius_0801"),  # frames of one, by its report
        (["0001", "0002"], 2, "0002 has 0002"),
        (["anna", "bert", "carl"], 3, "carl has carl"),
        (names("T{}_patient{:03}", (1, 2), range(20)), None, None),
        (names("T{}_patient{:03}", (1, 2, 3), range(20)), None, None),
    ],
)
def test_the_patients_are_guessed_and_three_are_shown(cases, patients, example, caplog):
    """The shortest beginning of the names that leaves no part empty; refused where two parts share a long number."""
    caplog.set_level("INFO")
    if patients is None:
        with pytest.raises(ValueError, match=r"--patient: found \w+ \(\w+\) and \w+ \(\w+\), which.* one patient"):
            divide(cases, options(Path()))
        patients, example = len(cases) // 2, "p"
        of_patients, parts = divide(cases, options(Path(), patient=r"(?<=p)\d+|patient\d+"))
        patients = len(set(of_patients.values()))
        assert patients in (10, 20)
    else:
        of_patients, parts = divide(cases, options(Path()))
        assert len(set(of_patients.values())) == patients and example in caplog.text
        assert caplog.text.count(" has ") == min(3, patients)
    parts_of = [{of_patients[case] for case in part} for part in parts.values()]
    assert sum(map(len, parts_of)) == patients and sorted(sum(parts.values(), [])) == sorted(cases)


def test_lists_that_part_a_patient_are_refused(tmp_path):
    cases = names("patient{:03}_frame{:02}", (1, 2), (1, 12))
    with pytest.raises(ValueError, match=r"found patient001_frame01 \(train\) and patient001_frame12 \(test\)"):
        divide(cases, options(tmp_path), {"train": [cases[0]], "val": [], "test": cases[1:]})
    patients, _ = divide(cases, options(tmp_path), {"train": cases[:2], "val": [], "test": cases[2:]})
    assert patients[cases[0]] == patients[cases[1]] == "patient001"


def test_all_cases_of_a_patient_are_in_one_part_and_the_seed_decides_which(tmp_path):
    cases = [f"patient{n:03d}_frame{f:02d}" for n in range(10) for f in (1, 12)]
    make_pairs(tmp_path, cases)
    _, parts = prepare(options(tmp_path))
    assert [len(parts[part]) for part in ("train", "val", "test")] == [14, 2, 4]
    patients = [{case[:10] for case in parts[part]} for part in parts]
    assert not set.intersection(*patients) and sum(map(len, patients)) == 10
    assert prepare(options(tmp_path, out=str(tmp_path / "again")))[1] == parts
    assert prepare(options(tmp_path, out=str(tmp_path / "other"), seed=1))[1] != parts
