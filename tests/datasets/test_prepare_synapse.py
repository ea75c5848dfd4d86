import gzip
import hashlib
import itertools
import json
import re
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from datasets import prepare_synapse, volume_writing
from datasets.nifti import own_orientation, write_nifti
from datasets.prepare_synapse import BTCV_ORGANS, HOLDOUT_CASES, PUBLISHED_LISTS, PrepareSynapse, prepare
from datasets.synapse import ORGANS, SynapseSlices, SynapseVolumes, read_list
from datasets.transforms import RandomGenerator
from datasets.volume_sources import CaseFiles, read_case
from tests.tiny import tree
from utils.files import read_rows

CLASSES = np.array([prepare_synapse.CLASS_OF_LABEL[label] for label in range(14)])
SHAPE, SPACING = (5, 6, 4), (0.7, 0.8, 3.0)  # columns, rows, slices


def volume(seed=0):
    """A scan of (columns to the left, rows to the back, slices to the head) in HU, and its labels 0..13."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1000, 1200, SHAPE).astype(np.int16), rng.integers(0, 14, SHAPE).astype(np.uint8)


def affine_lps(origin=(10.0, -20.0, 30.0)):
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])
    affine[:3, 3] = origin
    return affine


def turned(array, codes):
    """The same scan in a file whose axes point to other directions, such as "RAS" or "PIR"."""
    image = nibabel.Nifti1Image(array, affine_lps())
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def write_raw(folder, number, image, label):
    for kind, name, nifti in (("img", "img", image), ("label", "label", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if nifti is not None:
            nibabel.save(nifti, folder / kind / f"{name}{number:04d}.nii.gz")


def write_lists(folder, train=(), test=()):
    folder.mkdir(exist_ok=True)
    slices = [f"case{number:04d}_slice{index:03d}" for number in train for index in range(SHAPE[2])]
    for name, lines in (("train.txt", slices), ("test_vol.txt", [f"case{number:04d}" for number in test])):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def source(tmp_path):
    """Three raw volumes in different orientations."""
    folder = tmp_path / "raw"
    for number, codes in ((1, "RAS"), (2, "LAS"), (3, "PIR")):
        image, label = volume(number)
        write_raw(folder, number, turned(image, codes), turned(label, codes))
    return folder


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path / "lists", train=(1, 3), test=(2,))


def options(source, tmp_path, lists, out="out"):
    return PrepareSynapse(source=str(source), out=str(tmp_path / out), lists=str(lists))


def test_labels_become_the_organs_of_the_paper():
    """TransUNet's numbers, from BTCV's: spleen 1 -> 7, right kidney 2 -> 4, left kidney 3 -> 3, gallbladder 4 -> 2,
    liver 6 -> 5, stomach 7 -> 8, aorta 8 -> 1, pancreas 11 -> 6, the others background."""
    assert CLASSES.tolist() == [0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0]
    assert set(ORGANS) <= set(BTCV_ORGANS) and len(BTCV_ORGANS) == 13


def test_what_is_written_is_what_training_reads(source, lists, tmp_path):
    assert prepare(options(source, tmp_path, lists)) == (8, 1)
    out = tmp_path / "out"
    for number in (1, 3):
        image, label = volume(number)
        dataset = SynapseSlices(out / "train_npz", out / "lists" / "list_Synapse", RandomGenerator(8))
        for index in range(SHAPE[2]):
            stored = dataset.decode(dataset.names.index(f"case{number:04d}_slice{index:03d}"))
            expected = (np.clip(image[:, :, index].T.astype(np.float32), -125, 275) + 125) / 400
            assert np.array_equal(stored[0].numpy(), expected)
            assert np.array_equal(stored[1].numpy(), CLASSES[label[:, :, index].T])
    (case,) = SynapseVolumes(out / "test_vol_h5", out / "lists" / "list_Synapse")
    assert case[0].shape == (4, 6, 5) and case[2] == "case0002" and case[3] == pytest.approx([3.0, 0.8, 0.7])
    with h5py.File(out / "test_vol_h5" / "case0002.npy.h5") as file:
        assert file["image"].dtype == file["label"].dtype == np.float32
        assert np.allclose(file.attrs["affine"], affine_lps()) and file.attrs["orientation"] == "LPS"


def convert(folder, image, label):
    """The TrainingCase of two NIfTI images, and the orientation of their axes."""
    files = CaseFiles(folder / "img.nii", folder / "label.nii")
    for nifti, path in zip((image, label), files, strict=True):
        nibabel.save(nifti, path)
    raw = read_case(files)
    return prepare_synapse.conversion()(raw, files), own_orientation(raw.affine)


@pytest.mark.parametrize(
    "codes", ["".join(c) for axes in (("LR", "PA", "SI"), ("AP", "SI", "RL")) for c in itertools.product(*axes)]
)
def test_any_orientation_of_the_file_gives_the_same_volume(codes, tmp_path):
    image, label = volume()
    case, original = convert(tmp_path, turned(image, codes), turned(label, codes))
    assert np.array_equal(case.image, (np.clip(image.T.astype(np.float32), -125, 275) + 125) / 400)
    assert np.array_equal(case.label, CLASSES[label.T])
    assert np.allclose(case.affine, affine_lps()) and np.allclose(case.spacing, SPACING[::-1])
    assert original == codes


def test_predictions_can_be_laid_over_the_raw_scan(source, lists, tmp_path):
    """A volume written with the stored affine has each voxel at the scanner's mm where the raw file has it."""
    prepare(options(source, tmp_path, lists))
    with h5py.File(tmp_path / "out" / "test_vol_h5" / "case0002.npy.h5") as file:
        written = nibabel.Nifti1Image(file["label"][:].transpose(2, 1, 0), file.attrs["affine"])
        paths = write_nifti(
            tmp_path, "case0002", *(file[k][:] for k in ("image", "label", "label")), file.attrs["spacing"]
        )
    raw = nibabel.load(source / "label" / "label0002.nii.gz")
    back = written.as_reoriented(ornt_transform(io_orientation(written.affine), io_orientation(raw.affine)))
    assert np.allclose(back.affine, raw.affine)
    assert np.array_equal(back.get_fdata(), CLASSES[np.asarray(raw.dataobj)])
    assert np.allclose(nibabel.load(paths[0]).affine[:3, :3], written.affine[:3, :3])


def test_an_archive_gives_the_same_files_as_a_folder(source, lists, tmp_path):
    with zipfile.ZipFile(tmp_path / "RawData.zip", "w") as archive:
        for path in source.rglob("*.nii.gz"):
            archive.write(path, Path("RawData", "Training", path.relative_to(source)))
        archive.writestr("RawData/Testing/img/img0061.nii.gz", b"without a label")
    for name, where in (("a", source), ("b", tmp_path / "RawData.zip"), ("c", tmp_path)):
        prepare(options(where, tmp_path, lists, name))
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")


def test_a_stopped_run_is_completed_and_a_finished_one_repeated(source, lists, tmp_path, monkeypatch):
    prepare(options(source, tmp_path, lists, "whole"))
    real, written = volume_writing.write_atomically, []

    def few(path, *parts):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(path)
        real(path, *parts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(volume_writing, "write_atomically", few)
        prepare(options(source, tmp_path, lists))
    assert not (tmp_path / "out" / "lists").exists()
    for _ in range(2):
        prepare(options(source, tmp_path, lists))
        assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    monkeypatch.setattr(prepare_synapse, "read_case", None)  # nothing is read again
    prepare(options(source, tmp_path, lists))


def test_a_changed_volume_is_prepared_again(source, lists, tmp_path):
    prepare(options(source, tmp_path, lists))
    image, label = volume(77)
    write_raw(source, 2, turned(image, "RAS"), turned(label, "RAS"))
    prepare(options(source, tmp_path, lists))
    prepare(options(source, tmp_path, lists, "fresh"))
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    row = read_rows(tmp_path / "out" / "cases.csv")[1]
    assert row["image_sha256"] == hashlib.sha256((source / "img" / "img0002.nii.gz").read_bytes()).hexdigest()
    assert (row["case"], row["orientation_of_file"], row["slice_mm"]) == ("case0002", "RAS", "3.0")


def test_other_lists_do_not_mix_with_the_first(source, lists, tmp_path):
    prepare(options(source, tmp_path, lists))
    with pytest.raises(ValueError, match=r"out.*lists_sha256: found \w+, expected \w+"):
        prepare(options(source, tmp_path, write_lists(tmp_path / "other", train=(1,), test=(2, 3))))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match="full.*--out"):
        prepare(options(source, tmp_path, lists, "full"))


# ---- the published lists


def test_published_lists():
    slices = prepare_synapse.slices_of_cases(read_list(PUBLISHED_LISTS, "train.txt"), "train.txt")
    volumes = read_list(PUBLISHED_LISTS, "test_vol.txt")
    assert (len(slices), sum(map(len, slices.values())), len(volumes)) == (18, 2211, 12)
    assert all(indices == list(range(len(indices))) for indices in slices.values())
    assert not set(slices) & set(volumes) and set(HOLDOUT_CASES) < set(slices)
    assert sorted(f"{case}.npy.h5" for case in (*slices, *volumes)) == sorted(read_list(PUBLISHED_LISTS, "all.lst"))


def test_the_published_lists_bring_a_holdout_beside_them(tmp_path, monkeypatch):
    published = tmp_path / "published"
    write_lists(published, train=(1, 3), test=(2,))
    raw = tmp_path / "raw"
    for number in (1, 2, 3):
        write_raw(raw, number, *(turned(array, "RAS") for array in volume(number)))
    monkeypatch.setattr(prepare_synapse, "PUBLISHED_LISTS", published)
    monkeypatch.setattr(prepare_synapse, "HOLDOUT_CASES", ("case0003",))
    assert prepare(PrepareSynapse(source=str(raw), out=str(tmp_path / "out"))) == (8, 2)
    lists = tmp_path / "out" / "lists" / "list_Synapse_holdout"
    assert read_list(lists, "val_vol.txt") == ["case0003"] and read_list(lists, "test_vol.txt") == ["case0002"]
    assert {name[:8] for name in read_list(lists, "train.txt")} == {"case0001"}
    assert len(SynapseVolumes(tmp_path / "out" / "test_vol_h5", lists, list_name="val_vol.txt")[0]) == 4


# ---- what is wrong


def test_missing_volumes_are_named(source, lists, tmp_path):
    with pytest.raises(FileNotFoundError, match="--source .*nowhere: found nothing of this name"):
        prepare(options(tmp_path / "nowhere", tmp_path, lists))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty.*img/imgXXXX.nii.gz"):
        prepare(options(tmp_path / "empty", tmp_path, lists))
    with pytest.raises(FileNotFoundError, match="1 of 2.*raw: case0009"):
        prepare(options(source, tmp_path, write_lists(tmp_path / "other", train=(1,), test=(9,))))
    (source / "label" / "label0002.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 .*raw.*: img0002.nii.gz"):
        prepare(options(source, tmp_path, lists))
    assert not (tmp_path / "out").exists()


def test_slices_must_be_those_of_the_list(source, tmp_path, caplog):
    lists = write_lists(tmp_path / "lists", train=(1,), test=(2,))
    with open(lists / "train.txt", "a") as file:
        file.write("case0001_slice004\n")
    with pytest.raises(ValueError, match="img0001.nii.gz.* 4 .*train.txt.* 004 .*case0001"):
        prepare(options(source, tmp_path, lists))
    (lists / "train.txt").write_text("0001/0\n")
    with pytest.raises(ValueError, match="train.txt.*'0001/0'"):
        prepare(options(source, tmp_path, lists))
    (lists / "train.txt").write_text("case0001_slice000\ncase0001_slice001\n")
    assert prepare(options(source, tmp_path, lists, "two")) == (2, 1)
    assert re.search("case0001 .*4 .*train.txt.* 2", caplog.text)
    assert len(list((tmp_path / "two" / "train_npz").iterdir())) == 2


def oblique(image):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    return nibabel.Nifti1Image(image, turn @ affine_lps())


def without_codes(image):
    nifti = nibabel.Nifti1Image(image, None)
    nifti.set_sform(None, 0)
    nifti.set_qform(None, 0)
    return nifti


def flat(image):
    nifti = nibabel.Nifti1Image(image, None)
    nifti.set_sform(np.diag([1.0, 1, 0, 1]), 1)
    return nifti


def lps(array):
    return turned(array, "LPS")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i, l: (oblique(i), oblique(l)), "img.nii.* 11.5 degrees.* 1;"),
        (lambda i, l: (without_codes(i), lps(l)), "img.nii .*orientation.*LPS"),
        (lambda i, l: (flat(i), lps(l)), "img.nii has the affine"),
        (lambda i, l: (lps(i), turned(l, "RAS")), "img.nii and .*label.nii .* mm"),
        (lambda i, l: (lps(i), lps(l[:, :, :3])), r"img.nii .*\(5, 6, 4\).*label.nii .*\(5, 6, 3\)"),
        (lambda i, l: (lps(np.stack([i, i], -1)), lps(l)), r"img.nii .*\(5, 6, 4, 2\)"),
        (lambda i, l: (lps((i > 0).astype(np.uint8)), lps(l)), "img.nii .* 0 to 1;.*Hounsfield"),
        (lambda i, l: (lps(np.where(i > 1000, np.inf, i)), lps(l)), "img.nii .*infinite"),
        (lambda i, l: (lps(np.full(i.shape, np.nan)), lps(l)), "img.nii .*NaN"),
        (lambda i, l: (lps((i - i.min()) / 10), lps(l)), "img.nii .* 0 to 2.*--window LOW HIGH"),
        (
            lambda i, l: (lps(i), lps(np.where(l == 3, 100, l).astype(np.uint8))),
            "label.nii .* 100; .* 13",
        ),
        (lambda i, l: (lps(i), lps(l * 0.5)), r"label.nii .* \d\.5,"),
    ],
)
def test_unusable_volumes_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, *change(*volume()))


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: c[:-20], lambda c: b"not a volume" * 99, lambda c: b""]
)
def test_damaged_files_are_named(source, lists, tmp_path, damage):
    path = source / "img" / "img0001.nii.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="img0001.nii.gz"):
        prepare(options(source, tmp_path, lists))


def test_a_small_file_cannot_fill_the_memory(source, lists, tmp_path):
    (path,) = source.rglob("img0001.nii.gz")
    header = nibabel.load(path).header
    for shape in ((2**14, 2**14, 3), (1024, 1024, 500)):  # more values than are read, more than the file can hold
        header.set_data_shape(shape)
        path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
        with pytest.raises(ValueError, match=r"img0001.nii.gz .*( 536870912 |1032)"):
            prepare(options(source, tmp_path, lists))


def test_the_record_names_the_window(source, lists, tmp_path):
    prepare(options(source, tmp_path, lists))
    assert json.loads((tmp_path / "out" / "preparation.json").read_text(encoding="utf-8"))["hu_window"] == [-125, 275]
