from collections import Counter

import pytest
from PIL import Image

from datasets.check.check_volumes import check_volumes
from datasets.demo import make_demo_isic
from datasets.folds import find_split, fold_of, nnunet_folds
from datasets.lesions import lesion_of
from datasets.prepare_isic import published_split
from datasets.prepare_volumes import prepare
from datasets.volume_loaders import build_synapse_loaders, listed_names
from tests.datasets.volumes import make_pairs, options
from tests.tiny import isic_config, synapse_config
from utils.files import write_rows

PATIENTS = [f"p{patient:02d}_{shot}" for patient in range(12) for shot in range(1 + patient % 4)]


def fold_config(folder, fold=0, **changes):
    return isic_config(folder, **dict(folds=3, fold=fold, fold_seed=42, fold_group="") | changes)


def stems(folder, split, config):
    return [stem for stem, _, _ in find_split(folder, split, config)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("demo") / "isic", size=16, train=7, val=4, test=2)


def flat_folder(root, names):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for name in names:
            Image.new("L", (4, 4)).save(root / kind / f"{name}.png")
    return root


def test_every_image_is_validated_on_once(folder):
    parts = [stems(folder, "val", fold_config(folder, fold)) for fold in range(3)]
    assert sorted(map(len, parts)) == [3, 4, 4]
    everything = sorted(stem for part in parts for stem in part)
    assert everything == sorted(
        stems(folder, part, isic_config(folder))[i] for part, n in (("train", 7), ("val", 4)) for i in range(n)
    )
    for fold, part in enumerate(parts):
        assert stems(folder, "train", fold_config(folder, fold)) == [stem for stem in everything if stem not in part]


def test_the_test_set_stays_out_of_the_folds(folder):
    assert stems(folder, "test", fold_config(folder)) == stems(folder, "test", isic_config(folder))
    pooled = stems(folder, "train", fold_config(folder)) + stems(folder, "val", fold_config(folder))
    assert len(pooled) == 11 and not set(pooled) & set(stems(folder, "test", fold_config(folder)))


def test_images_and_masks_without_train_and_val_are_enough(tmp_path):
    flat_folder(tmp_path, PATIENTS)
    config = fold_config(tmp_path, fold_group=r"^p\d+")
    train, val = (stems(tmp_path, part, config) for part in ("train", "val"))
    assert sorted(train + val) == sorted(PATIENTS) and val


def test_a_patient_stays_in_one_fold():
    for group in (r"^[^_]+", r"^p(\d+)_"):
        fold = fold_of(PATIENTS, 5, 42, group)
        by_patient = {}
        for stem in PATIENTS:
            by_patient.setdefault(stem[:3], set()).add(fold[stem])
        assert all(len(folds) == 1 for folds in by_patient.values())
        sizes = Counter(fold.values())
        assert len(sizes) == 5 and max(sizes.values()) - min(sizes.values()) <= 1  # 30 images, groups of 1 to 4


def test_the_images_of_a_lesion_stay_in_one_fold(tmp_path, caplog):
    flat_folder(tmp_path, PATIENTS)
    rows = [("p01_0", "p05_1"), ("p05_1", "p07_2"), ("p02_0", "p03_0"), ("p04_0", "not here")]
    write_rows(tmp_path / "same_lesion.csv", [dict(pair=1, first=first, second=second) for first, second in rows])
    for group in ("", r"^p\d+"):
        with caplog.at_level("INFO", "vmunet"):
            parts = [stems(tmp_path, "val", fold_config(tmp_path, fold, fold_group=group)) for fold in range(3)]
            learned = stems(tmp_path, "train", fold_config(tmp_path, 0, fold_group=group))
        assert sorted(learned + parts[0]) == sorted(parts[0] + parts[1] + parts[2]) == sorted(PATIENTS)
        fold = {stem: number for number, part in enumerate(parts) for stem in part}
        assert fold["p01_0"] == fold["p05_1"] == fold["p07_2"] and fold["p02_0"] == fold["p03_0"]
        if group:  # the patients with a lesion in common too
            assert len({fold[stem] for stem in PATIENTS if stem[:3] in ("p01", "p05", "p07")}) == 1
        assert [record.getMessage().split("same_lesion.csv: ")[1] for record in caplog.records] == [
            "6 images of 3 lesions stay together in folds; 1 names are not among the images: not here"
        ]
        caplog.clear()


@pytest.mark.parametrize(
    "text, message",
    [
        ("first,second\np01_0.png,p05_1.png\n", "found only other names: p01_0.png, p05_1.png.*without their endings"),
        ("first,second\np01_0,\np05_1,p07_2\n", "found 1 rows without two names"),
        ("a,b\np01_0,p05_1\n", "found the columns a, b"),
    ],
)
def test_a_list_of_lesions_that_would_do_nothing_is_an_error(tmp_path, text, message):
    flat_folder(tmp_path, PATIENTS)
    (tmp_path / "same_lesion.csv").write_text(text)
    with pytest.raises(ValueError, match=f"same_lesion.csv: {message}"):
        find_split(tmp_path, "val", fold_config(tmp_path))


def test_a_list_of_lesions_from_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "same_lesion.csv"
    path.write_text("pair;first;second\r\n1;p01_0 ;p05_1\r\n", encoding="utf-8-sig")
    assert lesion_of(path) == {"p01_0": "p01_0", "p05_1": "p01_0"}


@pytest.mark.parametrize("name", ["isic17", "isic18"])
def test_no_lesion_of_isic_is_in_two_folds(name):
    lesions = lesion_of()
    fold = fold_of(published_split(name), 5, 42, "", lesions)
    assert max(Counter(fold.values()).values()) - min(Counter(fold.values()).values()) <= 1
    for lesion in set(lesions.values()):
        assert len({fold[id] for id in fold if lesions.get(id) == lesion}) <= 1


def test_the_seed_decides_and_the_order_of_files_does_not():
    assert fold_of(PATIENTS, 5, 1) == fold_of(PATIENTS[::-1], 5, 1) != fold_of(PATIENTS, 5, 2)
    assert [fold_of("abcdefgh", 2, 42)[letter] for letter in "abcdefgh"] == FOLDS_OF_EIGHT
    fold = fold_of(PATIENTS, 5, 42, r"^p\d+")
    assert [fold[f"p{patient:02d}_0"] for patient in range(12)] == FOLDS_OF_PATIENTS


# written down once: another Python or a change of the code must not deal other folds
FOLDS_OF_EIGHT = [0, 1, 0, 0, 1, 1, 0, 1]
FOLDS_OF_PATIENTS = [4, 1, 3, 2, 2, 4, 4, 0, 2, 0, 3, 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(folds=12), r"--folds.* 12, .* 2\.\.11"),
        (dict(folds=1), r"--folds.* 1, .* 2\.\.11"),
        (dict(fold_group="^DEMO"), r"--folds.* 3, .* 2\.\.1, .* 11"),
        (dict(fold_group="patient"), r"--fold-group 'patient'.* DEMO_0000000"),
        (dict(fold_group="("), r"--fold-group.* '\('"),
    ],
)
def test_impossible_folds_are_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        find_split(folder, "val", fold_config(folder, **changes))


def test_a_name_in_train_and_val_is_refused(tmp_path):
    flat_folder(tmp_path / "train", ["a", "b"])
    flat_folder(tmp_path / "val", ["b", "c"])
    with pytest.raises(ValueError, match=f"1 .*{tmp_path.name}: b;"):
        find_split(tmp_path, "train", fold_config(tmp_path))


def test_missing_folders_and_lists_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}.*train/images"):
        find_split(tmp_path, "train", fold_config(tmp_path))
    flat_folder(tmp_path / "train", ["a", "b"])
    with pytest.raises(FileNotFoundError, match=f"--protocol holdout.*{tmp_path.name}.*split.csv"):
        find_split(tmp_path, "test", isic_config(tmp_path, protocol="holdout"))
    (tmp_path / "split.csv").write_text("name\na\n")
    with pytest.raises(ValueError, match="split.csv.* name, .* id, holdout"):
        find_split(tmp_path, "test", isic_config(tmp_path, protocol="holdout"))
    (tmp_path / "split.csv").write_text("id,holdout\na,train\nx,test\n")
    with pytest.raises(ValueError, match="split.csv.* 1 .* test, 1 .*: x"):
        find_split(tmp_path, "test", isic_config(tmp_path, protocol="holdout"))
    assert stems(tmp_path, "train", isic_config(tmp_path, protocol="holdout")) == ["a"]


def test_listed_names_are_found_in_any_unicode_form(tmp_path):
    flat_folder(tmp_path / "train", ["a\u0308"])
    (tmp_path / "split.csv").write_text("id,holdout\n\u00e4,train\n", encoding="utf-8")
    assert stems(tmp_path, "train", isic_config(tmp_path, protocol="holdout")) == ["\u00e4"]


# ---- volumes


def test_the_folds_of_volumes_are_those_of_nnunet():
    """Of twelve cases, from scikit-learn's KFold(5, shuffle=True, random_state=12345) over their sorted names."""
    fold = nnunet_folds({f"n{number:02d}": f"n{number:02d}" for number in range(11, -1, -1)}, 5, 12345)
    parts = [sorted(int(case[1:]) for case in fold if fold[case] == number) for number in range(5)]
    assert parts == [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]
    with pytest.raises(ValueError, match=r"--folds: found 5, expected 2\.\.2, the number of patients"):
        nnunet_folds({"a": "p1", "b": "p1", "c": "p2"}, 5, 12345)


@pytest.fixture
def pool(tmp_path):
    """Four cases of three patients, each as slices and as a volume."""
    record, parts = prepare(options(make_pairs(tmp_path), split=(100, 0, 0), patient="^[^_]+"))
    assert list(map(len, parts.values())) == [4, 0, 0] and len(record["class_names"]) == 2
    return tmp_path / "out"


def volume_config(folder, fold, **changes):
    values = dict(dataset="own", folds=3, fold=fold, fold_seed=12345, fold_group="", num_classes=3, batch_size=2)
    return synapse_config(folder, **values | changes)


def test_every_volume_is_reported_once_and_not_trained_on(pool):
    reported = []
    for fold in range(3):
        config = volume_config(pool, fold)
        loader, volumes = build_synapse_loaders(config)
        reported += volumes.names
        trained = {name.rsplit("_slice", 1)[0] for name in loader.dataset.names}
        assert trained | {*volumes.names} == {"pat1_a", "pat1_b", "pat2_a", "pat3_a"}
        assert not {name[:4] for name in trained} & {name[:4] for name in volumes.names}  # patients
        assert volumes[0][0].shape == (4, 6, 5) and len(loader.dataset) == 4 * len(trained)
    assert sorted(reported) == ["pat1_a", "pat1_b", "pat2_a", "pat3_a"]


def test_a_pattern_replaces_the_patients_of_the_folder(pool):
    parts = {tuple(listed_names(volume_config(pool, n, folds=2, fold_group=".$"), "test_vol.txt")) for n in (0, 1)}
    assert parts == {("pat1_a", "pat2_a", "pat3_a"), ("pat1_b",)}


def test_with_holdout_a_fold_selects_and_the_test_volumes_are_reported(pool):
    (pool / "lists/list_volumes/test_vol.txt").write_text("other\n")
    config = volume_config(pool, 0, protocol="holdout")
    assert listed_names(config, "val_vol.txt") == listed_names(volume_config(pool, 0), "test_vol.txt")
    assert listed_names(config, "test_vol.txt") == ["other"]


def test_a_pool_is_checked_as_such_while_every_case_is_a_volume_too(pool):
    report = check_volumes(pool, None)
    assert not report.problems and "--folds 5 --fold all" in report.lines[-1]
    next((pool / "test_vol_h5").iterdir()).unlink()
    report = check_volumes(pool, None)
    assert "has no test_vol.txt" in report.problems[0] and "--folds" not in report.lines[-1]
