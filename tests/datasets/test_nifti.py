import nibabel
import numpy as np
import pytest

from datasets.nifti import affine_of_slices, from_slices, to_slices, write_nifti


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SLA"])
def test_a_scan_is_the_same_volume_however_its_file_orders_the_axes(axes):
    lps = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([-0.7, -0.8, 2.5, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(lps.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    stored = lps.as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(stored.affine)) == axes
    array = np.asarray(stored.dataobj)
    volume, spacing = to_slices(array, stored.affine, "LPS")
    np.testing.assert_array_equal(volume, np.asarray(lps.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(spacing, (2.5, 0.8, 0.7))
    np.testing.assert_array_equal(from_slices(volume, stored.affine, "LPS"), array)


def test_a_volume_of_a_known_spacing_is_its_own_slices():
    """Its affine says that columns run to the left, rows to the back, slices to the head: LPS, as it lies."""
    volume = np.arange(60).reshape(5, 4, 3)
    affine = affine_of_slices((2.5, 0.8, 0.7))
    assert "".join(nibabel.aff2axcodes(affine)) == "LPS"
    slices, spacing = to_slices(volume.transpose(2, 1, 0), affine, "LPS")
    np.testing.assert_array_equal(slices, volume)
    np.testing.assert_allclose(spacing, (2.5, 0.8, 0.7))
    np.testing.assert_array_equal(affine_of_slices(None, 5), np.diag([-1, -1, 5, 1]))


@pytest.mark.parametrize("spacing, expected", [(None, (1, 1, 2.5)), ((5.0, 0.8, 0.7), (0.7, 0.8, 5.0))])
def test_nifti_files_have_the_geometry_simpleitk_gives_an_array(tmp_path, spacing, expected):
    sitk = pytest.importorskip("SimpleITK")
    image = np.random.default_rng(0).random((3, 4, 6)).astype(np.float32)
    label = np.arange(72).reshape(image.shape)
    paths = write_nifti(tmp_path / "new", "case0001", image, label % 9, label % 5, spacing, z_spacing=2.5)
    assert [p.name for p in paths] == [f"case0001_{kind}.nii.gz" for kind in ("pred", "img", "gt")]
    for path, volume in zip(paths, (label % 9, image, label % 5), strict=True):
        read = sitk.ReadImage(str(path))
        assert read.GetSpacing() == pytest.approx(expected)
        assert read.GetOrigin() == (0, 0, 0)
        assert read.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        assert read.GetPixelID() == sitk.sitkFloat32
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read), volume.astype(np.float32))
