from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from datasets.check.__main__ import Check, main
from datasets.intensities import Scaling
from datasets.prepare_volumes import PrepareVolumes, divide, prepare
from datasets.synapse import SynapseSlices, SynapseVolumes
from datasets.transforms import RandomGenerator
from datasets.volume_sources import case_name, find_cases
from tests.datasets.volumes import DIRECTIONS, SHAPE, affine, arrays, make_data_set, make_pairs, options, save, turned
from utils.files import read_rows


def test_what_training_reads_is_the_scan_in_one_orientation(tmp_path):
    """Stored as LPS or RAS: columns run to the left, rows to the back, and the percentiles become 0 and 1."""
    record, parts = prepare(options(make_pairs(tmp_path), split=(50, 0, 50)))
    out, lists = tmp_path / "out", tmp_path / "out" / "lists" / "list_volumes"
    assert record["orientation"] == "LPS" and record["class_names"] == ["label 1", "label 2"]
    volumes = SynapseVolumes(out / "test_vol_h5", lists, 3)
    assert volumes.names == parts["test"]
    seeds = {"pat1_a": 0, "pat1_b": 1, "pat2_a": 2, "pat3_a": 3}
    for image, label, name, spacing in volumes:
        stored, labels = arrays(seeds[name])
        np.testing.assert_array_equal(label, labels.T)
        low, high = np.percentile(stored, (0.5, 99.5))
        np.testing.assert_allclose(image, ((np.clip(stored, low, high) - low) / (high - low)).T, atol=1e-6)
        np.testing.assert_allclose(spacing, (3.0, 0.8, 0.7), rtol=1e-6)
    slices = SynapseSlices(out / "train_npz", lists, RandomGenerator(8), 3)
    assert len(slices) == len(parts["train"]) * SHAPE[2]
    image, label = slices.decode(1)
    np.testing.assert_array_equal(label, arrays(seeds[parts["train"][0]])[1].T[1])


def test_lists_of_cases_say_the_parts(tmp_path):
    make_pairs(tmp_path)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("pat1_a\npat2_a\n")
    (lists / "test.txt").write_text("pat3_a\n")
    _, parts = prepare(options(tmp_path, lists=str(lists)))
    assert parts == {"train": ["pat1_a", "pat2_a"], "val": [], "test": ["pat3_a"]}
    (lists / "test.txt").write_text("pat3_a\npat2_a\n")
    with pytest.raises(ValueError, match=r"lists: pat2_a"):
        prepare(options(tmp_path, lists=str(lists)))
    (lists / "test.txt").write_text("pat9\n")
    with pytest.raises(ValueError, match=r"test\.txt.*pat9"):
        prepare(options(tmp_path, lists=str(lists)))


def test_nnunet_and_msd_folders_say_names_and_modality(tmp_path):
    for name, labels in (
        ("v2", {"background": 0, "aorta": 1, "liver": 2}),
        ("msd", {"0": "b", "2": "liver", "1": "aorta"}),
    ):
        folder = make_data_set(tmp_path / name, labels, {"0": "CT"})
        record, parts = prepare(PrepareVolumes(images=str(folder), out=str(tmp_path / f"{name}_out")))
        assert record["class_names"] == ["aorta", "liver"]
        assert record["intensities"] == {"kind": "window", "low": -125, "high": 275}
        assert sorted(case for cases in parts.values() for case in cases) == ["heart_000", "heart_001", "heart_002"]


def test_a_changed_bit_of_a_compressed_image_is_noticed(tmp_path):
    make_pairs(tmp_path)
    path = sorted((tmp_path / "images").glob("*.nii.gz"))[0]
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}.*CRC"):
        prepare(options(tmp_path))


def test_one_of_several_channels_must_be_chosen(tmp_path):
    folder = make_data_set(tmp_path, {"0": "b", "1": "a", "2": "l"}, {"0": "T1", "1": "T2"}, several=True)
    with pytest.raises(ValueError, match=r"--channel.*heart_000.* 0, 1"):
        prepare(PrepareVolumes(images=str(folder), out=str(tmp_path / "out")))
    record, _ = prepare(PrepareVolumes(images=str(folder), channel=1, intensities="window", out=str(tmp_path / "out")))
    assert record["channel"] == 1
    pairs, _ = find_cases(folder / "imagesTr", folder / "labelsTr", 1)
    assert pairs["heart_000"].image.name == "heart_000_0001.nii.gz"


def test_a_channel_of_a_four_dimensional_file(tmp_path):
    for case in ("a1", "a2"):
        image, label = arrays()
        save(nibabel.Nifti1Image(np.stack([image, image * 0 + 7], -1), affine()), tmp_path / "images" / f"{case}.nii")
        save(nibabel.Nifti1Image(label, affine()), tmp_path / "labels" / f"{case}.nii")
    with pytest.raises(ValueError, match=r"a\d\.nii.*\(5, 6, 4, 2\).*--channel"):
        prepare(options(tmp_path))
    prepare(options(tmp_path, channel=0))
    with pytest.raises(ValueError, match=r"a\d\.nii.* 7"):
        prepare(options(tmp_path, channel=1, out=str(tmp_path / "constant")))


def test_arrays_in_npz_and_h5_files(tmp_path):
    """Values of 0..255 without position: percentiles, slices as they are stored, no spacing unless it is there."""
    (tmp_path / "images").mkdir()
    for seed, case in enumerate(("patient001_frame01", "patient002_frame01")):
        image, label = (array.T for array in arrays(seed, 0, 256, 4))
        np.savez(tmp_path / "images" / f"{case}.npz", image=image.astype(np.uint8), label=label)
    with h5py.File(tmp_path / "images" / "patient003.npy.h5", "w") as file:
        file["image"], file["label"] = image, label
        file.attrs["spacing"] = (8.0, 1.5, 1.4)
    record, parts = prepare(options(tmp_path, split=(34, 0, 66), class_names=("rv", "myo", "lv")))
    assert record["orientation"] == "stored" and record["intensities"]["kind"] == "percentiles"
    assert record["class_names"] == ["rv", "myo", "lv"]
    rows = {row["case"]: row for row in read_rows(tmp_path / "out" / "cases.csv")}
    assert rows["patient001_frame01"]["slice_mm"] == "" and rows["patient003"]["slice_mm"] == "8.0"
    for _, label, name, spacing in SynapseVolumes(
        tmp_path / "out" / "test_vol_h5", tmp_path / "out/lists/list_volumes", 4
    ):
        assert (spacing is None) == (name != "patient003")
        assert label.shape == (4, 6, 5)


@pytest.mark.parametrize(
    "codes, spacing, expected",
    [
        ("LPS", (1, 1, 5), "LPS"),
        ("PIL", (1, 1, 5), "PIL"),  # sagittal slices
        ("LIP", (1, 1, 5), "LIP"),  # coronal slices
        ("LPS", (5, 1, 1), "PIL"),  # sagittal slices along the first axis of the file
        ("PIR", (1, 1, 1), "LPS"),  # as thick in all directions
    ],
)
def test_slices_lie_across_the_thickest_axis(tmp_path, codes, spacing, expected):
    for seed in range(2):
        for kind, array in zip(("images", "labels"), arrays(seed), strict=True):
            axes = np.eye(4)
            axes[:3, :3] = np.array([DIRECTIONS[code] for code in codes]).T * spacing
            save(nibabel.Nifti1Image(array, axes), tmp_path / kind / f"p{seed}.nii")
    record, _ = prepare(options(tmp_path))
    assert record["orientation"] == expected
    row = read_rows(tmp_path / "out" / "cases.csv")[0]
    assert float(row["slice_mm"]) == max(spacing)


def test_oblique_scans_keep_their_axes(tmp_path):
    """A short axis of the heart lies across no direction of the patient: turning it would mix the patients."""
    cos, sin = np.cos(0.7), np.sin(0.7)
    oblique = np.array([[cos, 0, -sin, 0], [0, 1, 0, 0], [sin, 0, cos, 0], [0, 0, 0, 1]]) @ np.diag([1, 1, 8, 1.0])
    for seed in range(2):
        for kind, array in zip(("images", "labels"), arrays(seed), strict=True):
            save(nibabel.Nifti1Image(array, oblique), tmp_path / kind / f"p{seed}.nii")
    record, parts = prepare(options(tmp_path))
    assert record["orientation"] == "stored"
    with h5py.File(tmp_path / "out" / "test_vol_h5" / f"{parts['test'][0]}.npy.h5") as file:
        np.testing.assert_allclose(file.attrs["affine"], oblique, atol=1e-6)
        np.testing.assert_allclose(file.attrs["spacing"], (8, 1, 1), rtol=1e-6)
        np.testing.assert_array_equal(file["label"][:], arrays(int(parts["test"][0][1]))[1].T)


def test_units_of_the_header_count(tmp_path):
    for seed in range(2):
        for kind, array in zip(("images", "labels"), arrays(seed), strict=True):
            nifti = nibabel.Nifti1Image(array, affine((0.001, 0.001, 0.005)))
            nifti.header.set_xyzt_units("meter")
            save(nifti, tmp_path / kind / f"p{seed}.nii")
    prepare(options(tmp_path))
    row = read_rows(tmp_path / "out" / "cases.csv")[0]
    assert (row["slice_mm"], row["row_mm"]) == ("5.0", "1.0")


def test_names_of_pairs():
    names = {
        "img0001.nii.gz": "0001",
        "label0001.nii.gz": "0001",
        "patient001_frame01_gt.nii.gz": "patient001_frame01",
        "scan-seg.nii": "scan",
        "my scan.nii": "my_scan",
        "segment7.nii": "segment7",
        "case.npy.h5": "case",
    }
    assert {name: case_name(Path(name)) for name in names} == names


def test_images_and_labels_in_one_folder_and_files_that_are_left_out(tmp_path):
    """As ACDC is distributed: frame01 beside frame01_gt and a film of all frames, a folder for each patient."""
    for patient in ("patient001", "patient002"):
        image, label = arrays()
        folder = tmp_path / "images" / patient
        save(nibabel.Nifti1Image(image, affine()), folder / f"{patient}_frame01.nii.gz")
        save(nibabel.Nifti1Image(label, affine()), folder / f"{patient}_frame01_gt.nii.gz")
        save(nibabel.Nifti1Image(np.stack([image] * 2, -1), affine()), folder / f"{patient}_4d.nii.gz")
        (folder / "Info.cfg").write_text("ED: 1")
    pairs, unused = find_cases(tmp_path / "images", tmp_path / "images", None)
    assert list(pairs) == ["patient001_frame01", "patient002_frame01"]
    assert len(unused) == 4
    assert sum("patient001_4d.nii.gz" in sentence for sentence in unused) == 1
    assert sum("Info.cfg" in sentence for sentence in unused) == 2


def test_a_repeated_command_completes_and_another_one_is_refused(tmp_path):
    prepare(options(make_pairs(tmp_path)))
    npz = sorted((tmp_path / "out" / "train_npz").iterdir())
    before = {path: path.stat().st_mtime_ns for path in npz}
    npz[0].unlink()
    prepare(options(tmp_path))
    assert npz[0].is_file()
    case = npz[0].name.split("_slice")[0]
    assert all(path.stat().st_mtime_ns == before[path] for path in npz if not path.name.startswith(case))
    with pytest.raises(ValueError, match="out.*intensities.*--out"):
        prepare(options(tmp_path, percentiles=(1, 99)))


def spoil_label(folder):
    image, label = arrays()
    save(nibabel.Nifti1Image(label + np.float32(0.5), affine()), folder / "labels" / "pat1_a.nii.gz")


def spoil_shape(folder):
    save(nibabel.Nifti1Image(arrays()[1][:, :, 1:], affine()), folder / "labels" / "pat1_a.nii.gz")


def spoil_place(folder):
    save(nibabel.Nifti1Image(arrays()[1], affine((1.7, 0.8, 3))), folder / "labels" / "pat1_a.nii.gz")


def spoil_image(folder):
    (folder / "images" / "pat1_a.nii.gz").write_bytes(b"nothing")


def remove_image(folder):
    (folder / "images" / "pat1_a.nii.gz").unlink()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_label, r"pat1_a\.nii\.gz.*\d\.5"),
        (spoil_shape, r"pat1_a\.nii\.gz.*\(5, 6, 4\).*\(5, 6, 3\)"),
        (spoil_place, r"pat1_a\.nii\.gz.* \d\.\d mm"),
        (spoil_image, r"images.pat1_a\.nii\.gz"),
        (remove_image, r"images.* pat1_a\.nii\.gz"),
    ],
)
def test_bad_files_are_named(tmp_path, spoil, message):
    spoil(make_pairs(tmp_path))
    with pytest.raises(ValueError, match=message):
        prepare(options(tmp_path))


def test_one_volume_of_another_kind_is_refused(tmp_path):
    """Hounsfield units and values that were scaled before in one folder: a window fits the first only."""
    make_pairs(tmp_path, low=-1000, high=1000)
    save(nibabel.Nifti1Image(arrays(9, 0, 256)[0], affine()), tmp_path / "images" / "pat2_a.nii.gz")
    save(nibabel.Nifti1Image(arrays(9)[1], affine()), tmp_path / "labels" / "pat2_a.nii.gz")
    with pytest.raises(ValueError, match=r"pat2_a\.nii\.gz.* 0 to 25.*-125 to 275.*--window"):
        prepare(options(tmp_path, intensities="window"))


def test_scaling_says_what_it_can_not_do():
    with pytest.raises(ValueError, match="percentiles 99 101"):
        Scaling("percentiles", 99, 101)
    for bad, message in (([np.nan, np.nan], "x .*NaN"), ([0, np.inf], "x .*infinite")):
        for scaling in (Scaling("window", 0, 1), Scaling("percentiles", 1, 99)):
            with pytest.raises(ValueError, match=message):
                scaling(np.array(bad), "x")
    with pytest.raises(ValueError, match="x: 1 to 99 %.* 3"):
        Scaling("percentiles", 1, 99)(np.full(9, 3), "x")
    np.testing.assert_array_equal(Scaling("window", 0, 2)(np.array([-1, 1, 3]), "x"), np.float32([0, 0.5, 1]))


def test_nan_outside_the_field_of_view_becomes_0_and_changes_nothing_else():
    values = np.random.default_rng(0).normal(50, 20, 1000)
    with_nan = np.concatenate([np.full(500, np.nan), values])
    for scaling in (Scaling("window", 10, 90), Scaling("percentiles", 1, 99)):
        scaled = scaling(with_nan, "x")
        np.testing.assert_array_equal(scaled, np.concatenate([np.zeros(500, np.float32), scaling(values, "x")]))


def test_a_look_at_the_folder_knows_its_classes(tmp_path):
    prepare(options(make_pairs(tmp_path / "raw"), out=str(tmp_path / "out"), class_names=("atrium", "valve")))
    main(Check(folder=str(tmp_path / "out"), output=str(tmp_path / "report")))
    text = (tmp_path / "report/report.txt").read_text(encoding="utf-8")
    assert "atrium" in text and "valve" in text and "Problems: none" in text


def test_linked_folders_are_searched_once(tmp_path):
    make_pairs(tmp_path / "elsewhere")
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for name, target in (("linked", tmp_path / "elsewhere" / kind), ("loop", tmp_path / kind)):
            (tmp_path / kind / name).symlink_to(target, target_is_directory=True)
    _, parts = prepare(options(tmp_path))
    assert sum(map(len, parts.values())) == 4


def test_a_ct_among_other_scans_is_named(tmp_path):
    make_pairs(tmp_path)
    save(turned(arrays(low=-1000)[0], "RAS"), tmp_path / "images" / "pat3_a.nii.gz")
    seed = next(seed for seed in range(9) if "pat3_a" not in split_of(tmp_path, seed)["train"])  # auto reads the first
    with pytest.raises(ValueError, match="pat3_a.nii.gz.*-99.*--intensities"):
        prepare(options(tmp_path, seed=seed))


def split_of(folder, seed):
    return divide(["pat1_a", "pat1_b", "pat2_a", "pat3_a"], options(folder, seed=seed))[1]


def test_a_label_without_orientation_is_told(tmp_path, caplog):
    make_pairs(tmp_path)
    path = tmp_path / "labels" / "pat1_a.nii.gz"
    image = nibabel.load(path)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "new.nii.gz")
    (tmp_path / "new.nii.gz").replace(path)
    prepare(options(tmp_path))
    assert path.name in caplog.text and "orientation" in caplog.text
