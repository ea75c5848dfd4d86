"""Volumes: intensities by one rule, and where voxels lie."""

import h5py
import nibabel
import numpy as np
import pytest

from datasets.formats.arrays import read_h5_image
from datasets.intensities import Scaling, scale_hu, to_unit
from inference.inputs import Input
from inference.prediction import Prediction
from inference.volume_inputs import read_volume

ML = 120 * 0.7 * 0.8 * 2.5 / 1000  # of all voxels
SHAPE = (6, 5, 4)  # (i, j, k)
HU = np.random.default_rng(0).integers(-1000, 1200, SHAPE).astype(np.int16)
AFFINE = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 80.5], [0, 0, 2.5, -300], [0, 0, 0, 1]])


def nifti(path, array=HU, affine=AFFINE, unit="mm", sform=1, qform=1):
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return read_volume(Input(path, "nifti"))


def h5(path, **attributes):
    with h5py.File(path, "w") as file:
        file["image"] = scale_hu(HU.T)
        file.attrs.update(attributes)
    return read_volume(Input(path, "h5"))


def ml(volume):
    (row,) = Prediction(np.ones(volume.slices.shape, np.uint8), None, ["a"], volume, volume.spacing).structures()
    return row["volume_ml"]


# ---- intensities


def test_values_are_recognised():
    scaled = scale_hu(HU)
    np.testing.assert_array_equal(to_unit(HU, "scan"), scaled)
    np.testing.assert_array_equal(to_unit(scaled, "scan"), scaled)
    over = (1.3 * scaled - 0.15).astype(np.float32)
    np.testing.assert_array_equal(to_unit(over, "scan"), over)
    np.testing.assert_array_equal(to_unit((scaled * 255).round(), "scan", (0, 255)), (scaled * 255).round() / 255)


@pytest.mark.parametrize(
    "values",
    [scale_hu(HU) * 255, HU + 1000, (HU > 0).astype(np.uint8), HU / 500, HU * 0],
    ids=["0..255", "shifted", "mask", "z-score", "constant"],
)
def test_other_values_are_refused_with_the_option_that_settles_it(values):
    with pytest.raises(ValueError, match="scan .*--window"):
        to_unit(values, "scan")


def test_hounsfield_units_are_refused_where_values_must_be_scaled():
    with pytest.raises(ValueError, match="scan.h5 .*--window"):
        to_unit(HU, "scan.h5", hounsfield=False)


@pytest.mark.parametrize("values", [HU.astype(np.float32), scale_hu(HU)], ids=["Hounsfield", "scaled"])
def test_nan_outside_the_field_of_view_becomes_0(values, caplog):
    holes = values.copy()
    holes[:2] = np.nan
    expected = to_unit(values, "scan")
    expected[:2] = 0
    np.testing.assert_array_equal(to_unit(holes, "scan"), expected)
    assert "scan" in caplog.text and "33.3 %" in caplog.text


@pytest.mark.parametrize("window", [None, (0, 1)])
def test_nan_everywhere_and_infinite_values_are_refused(window):
    with pytest.raises(ValueError, match="scan .*NaN"):
        to_unit(np.full(SHAPE, np.nan), "scan", window)
    with pytest.raises(ValueError, match="scan .*infinite"):
        to_unit(np.where(HU > 1000, np.inf, HU), "scan", (-125, 275))


# ---- geometry


@pytest.mark.parametrize("unit, mm", [("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_the_unit_of_a_header_is_heeded(tmp_path, unit, mm):
    scale = np.diag([1 / mm, 1 / mm, 1 / mm, 1])
    assert ml(nifti(tmp_path / "a.nii", affine=scale @ AFFINE, unit=unit)) == pytest.approx(
        120 * 0.7 * 0.8 * 2.5 / 1000
    )


def test_the_volume_of_a_sheared_voxel_is_the_determinant(tmp_path):
    sheared = AFFINE.copy()
    sheared[1, 2] = 2
    assert ml(nifti(tmp_path / "a.nii", affine=sheared, qform=0)) == pytest.approx(ML)


def test_without_an_orientation_a_scan_is_taken_as_stored(tmp_path, caplog):
    volume = nifti(tmp_path / "a.nii", sform=0, qform=0)
    np.testing.assert_array_equal(volume.slices, HU.T)
    assert ml(volume) == "" and caplog.text.count("a.nii has no") == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unit": "meter"},
        {"unit": "micron"},
        {"sform": 0},
        {"qform": 0},
        {"sform": 0, "qform": 0},
        {"sform": 2, "qform": 3},
    ],
)
def test_a_mask_lies_on_its_image_for_every_reader(tmp_path, changes):
    sitk = pytest.importorskip("SimpleITK")
    turn = np.array([[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]])
    affine = AFFINE.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    volume = nifti(tmp_path / "image.nii.gz", affine=affine, **changes)
    nibabel.save(volume.to_nifti(volume.slices, np.int16), tmp_path / "mask.nii.gz")
    image, mask = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in ("image", "mask"))
    np.testing.assert_array_equal(image.affine, mask.affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), HU)
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert image.header[field] == mask.header[field]
    image, mask = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("image", "mask"))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(image, get)() == getattr(mask, get)()


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_mask_of_metaimage_and_nrrd_lies_on_its_image(tmp_path, ending):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(HU.T)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-3, 5, 8))
    image.SetDirection((0.6, 0.8, 0, -0.8, 0.6, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"image{ending}"))
    volume = read_volume(Input(tmp_path / f"image{ending}", "itk"))
    assert ml(volume) == pytest.approx(ML)
    nibabel.save(volume.to_nifti(volume.slices, np.int16), tmp_path / "mask.nii.gz")
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), HU.T)


def test_a_nrrd_header_without_spacings_gives_no_volume(tmp_path):
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + HU.T.astype("<i2").tobytes())
    assert ml(read_volume(Input(tmp_path / "a.nrrd", "itk"))) == ""


def test_h5_geometry(tmp_path):
    assert ml(h5(tmp_path / "a.h5")) == ""
    for attributes in (
        {"spacing": (2.5, 0.8, 0.7)},
        {"affine": AFFINE},
        {"affine": AFFINE, "spacing": (2.5, 0.8, 0.7)},
    ):
        assert ml(h5(tmp_path / "a.h5", **attributes)) == pytest.approx(ML)


@pytest.mark.parametrize(
    "attributes, text",
    [
        ({"spacing": (1, 1)}, r"a.h5: .*spacing.*\[1 1\]"),
        ({"spacing": (0, 1, 1)}, "a.h5: .*spacing"),
        ({"spacing": "wide"}, "a.h5.*spacing.*object"),
        ({"affine": np.eye(3)}, "a.h5.*affine"),
        ({"affine": np.diag([1, 1, 0, 1])}, "a.h5.*affine"),
        ({"affine": AFFINE, "spacing": (1, 1, 1)}, "a.h5: .*spacing.*affine"),
    ],
)
def test_bad_h5_geometry_is_named(tmp_path, attributes, text):
    with pytest.raises(ValueError, match=text):
        h5(tmp_path / "a.h5", **attributes)


def test_a_changed_bit_of_a_compressed_file_is_noticed(tmp_path):
    nifti(tmp_path / "a.nii.gz")
    good = (tmp_path / "a.nii.gz").read_bytes()
    for place in (len(good) // 2, len(good) - 9, len(good) - 6, len(good) - 2):
        (tmp_path / "b.nii.gz").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(ValueError, match="b.nii.gz"):
            read_volume(Input(tmp_path / "b.nii.gz", "nifti"))
    (tmp_path / "b.nii.gz").write_bytes(good[:-5])
    with pytest.raises(ValueError, match="b.nii.gz"):
        read_volume(Input(tmp_path / "b.nii.gz", "nifti"))


def test_one_channel_of_four_dimensions(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.stack([HU, HU + 1], -1), AFFINE), tmp_path / "a.nii.gz")
    item = Input(tmp_path / "a.nii.gz", "nifti")
    np.testing.assert_array_equal(read_volume(item, channel=1).slices, nifti(tmp_path / "b.nii", HU + 1).slices)
    for channel in (None, 2):
        with pytest.raises(ValueError, match="--channel"):
            read_volume(item, channel=channel)


def test_only_attributes_of_numbers_are_read(tmp_path, shared):
    """HDF5 never returns from the text in this file."""
    path = shared / "cases" / "h5-attribute-hang" / "volume_vlen_hang.h5"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with pytest.raises(ValueError, match="volume_vlen_hang.h5.*spacing"):
        read_h5_image(path)


def test_a_small_h5_file_can_not_hold_much(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (512, 1024, 1024), "f8", chunks=(1, 1024, 1024), compression="gzip")
    with pytest.raises(ValueError, match="a.h5: image .*4.3 GB"):
        read_volume(Input(tmp_path / "a.h5", "h5"))


# ---- kinds of scans

WINDOW, PERCENTILES = Scaling("window", -125, 275), Scaling("percentiles", 0.5, 99.5)


@pytest.mark.parametrize(
    "scaling, modality, values, fits",
    [
        (WINDOW, "CT", HU, True),
        (WINDOW, "MR", HU, False),
        (WINDOW, "PT", HU, False),
        (WINDOW, None, HU, True),
        (WINDOW, None, np.abs(HU), False),  # never below
        (WINDOW, None, HU - 2000, False),  # never within
        (PERCENTILES, "MR", HU, True),
        (PERCENTILES, "CT", np.abs(HU), False),
        (PERCENTILES, "PT", np.abs(HU), False),
        (PERCENTILES, None, np.abs(HU), True),
        (PERCENTILES, None, HU.astype(np.float32), False),  # air
    ],
)
def test_a_scan_must_be_of_the_kind_of_training(scaling, modality, values, fits):
    if fits:
        scaling.check_kind(values, modality, "scan")
        scaling(values, "scan")
        return
    with pytest.raises(ValueError, match="scan.*--window"):
        scaling.check_kind(values, modality, "scan")
        scaling(values, "scan")


def test_what_looks_like_labels_is_told(caplog):
    labels = np.random.default_rng(0).integers(0, 5, (40, 40, 40)).astype(np.float32)
    PERCENTILES(labels, "scan.nii")
    assert "scan.nii" in caplog.text and " 5 " in caplog.text
    caplog.clear()
    for other in (labels + 0.5, np.abs(HU), np.where(labels < 0.5, -1, labels)):
        PERCENTILES(other, "scan.nii")
    assert not caplog.text
