"""DICOM series: what belongs together, values of each slice, geometry, and masks as DICOM-SEG."""

import re

import numpy as np
import pytest

from inference.inputs import search
from inference.prediction import Prediction
from inference.volume_inputs import read_volume

pydicom = pytest.importorskip("pydicom")
SHAPE = (5, 12, 10)  # slices, rows, columns
STORED = np.random.default_rng(0).integers(0, 1200, SHAPE).astype(np.uint16)


def write(path, pixels=STORED[0], position=(0, 0, 0), number=1, **changes):
    """A CT slice of 0.8 mm rows and 0.7 mm columns."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    values = dict(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
        SOPInstanceUID=f"1.2.3.4.{number}",
        StudyInstanceUID="1.2.3",
        SeriesInstanceUID="1.2.3.4",
        FrameOfReferenceUID="1.2.9",
        Modality="CT",
        InstanceNumber=number,
        ImagePositionPatient=list(position),
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[0.8, 0.7],
        RescaleSlope=1,
        RescaleIntercept=-1024,
        PhotometricInterpretation="MONOCHROME2",
        SamplesPerPixel=1,
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
        Rows=pixels.shape[0],
        Columns=pixels.shape[1],
        PixelData=pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(),
    )
    for name, value in (values | changes).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder, step=(0, 0, 2.5), of_slice=lambda i: {}, **changes):
    for i, pixels in enumerate(STORED):
        position = np.array(step) * i
        write(folder / f"{9 - i}.dcm", pixels, position.tolist(), **({"number": i + 1} | changes | of_slice(i)))
    return folder


def read(folder):
    (item,) = search([folder]).inputs
    return read_volume(item)


def test_every_slice_has_its_own_slope_and_intercept(tmp_path):
    own = [(1, -1024), (0.5, -1000), (1.25, 0), (2, -1024), (0.001, 3.5)]
    volume = read(write_series(tmp_path, of_slice=lambda i: {"RescaleSlope": own[i][0], "RescaleIntercept": own[i][1]}))
    expected = [
        pixels.astype(float) * slope + intercept for pixels, (slope, intercept) in zip(STORED, own, strict=True)
    ]
    np.testing.assert_allclose(volume.slices, expected, rtol=1e-6, atol=1e-4)


def test_how_an_image_is_displayed_changes_no_value(tmp_path):
    plain = read(write_series(tmp_path / "2"))
    other = read(write_series(tmp_path / "1", PhotometricInterpretation="MONOCHROME1", WindowCenter=40, WindowWidth=9))
    np.testing.assert_array_equal(plain.slices, other.slices)
    np.testing.assert_array_equal(plain.slices, STORED.astype(np.float32) - 1024)


def test_signed_numbers_and_padding(tmp_path):
    pixels = np.array([[-2000, -5], [7, 3000]], np.int16)
    write(tmp_path / "a.dcm", pixels, PixelRepresentation=1, RescaleIntercept=0)
    np.testing.assert_array_equal(read(tmp_path).slices[0], pixels)
    high = np.array([[65535, 5], [7, 3000]], np.uint16)
    write(tmp_path / "b" / "b.dcm", high, PixelPaddingValue=65535, RescaleIntercept=0)
    np.testing.assert_array_equal(read(tmp_path / "b").slices[0], [[5, 5], [7, 3000]])


def test_a_tilted_gantry_changes_the_volume_of_a_voxel(tmp_path):
    volume = read(write_series(tmp_path, step=(0, 1, 2.5)))
    assert volume.voxel_mm3 == pytest.approx(0.7 * 0.8 * 2.5) and volume.spacing[0] > 2.6
    nifti = volume.to_nifti(np.zeros(SHAPE), np.uint8)
    assert nifti.header["qform_code"] == 0  # which can't hold it
    np.testing.assert_allclose(nifti.header.get_sform(), volume.affine, atol=1e-5)


@pytest.mark.parametrize("thickness, expected", [(5, 0.8 * 0.7 * 5), (None, None), (0, None)])
def test_one_slice_is_as_thick_as_it_says(tmp_path, thickness, expected):
    write(tmp_path / "a.dcm", SliceThickness=thickness)
    assert read(tmp_path).voxel_mm3 == (expected and pytest.approx(expected))


def test_unknown_positions_give_no_volume(tmp_path):
    volume = read(write_series(tmp_path, ImagePositionPatient=None, ImageOrientationPatient=None))
    assert volume.spacing is None and volume.voxel_mm3 is None
    np.testing.assert_array_equal(volume.slices[1], STORED[1].astype(np.float32) - 1024)  # by their numbers


def test_a_series_uid_for_each_slice_is_one_volume(tmp_path, caplog):
    write_series(tmp_path, of_slice=lambda i: {"SeriesInstanceUID": f"1.2.3.4.{i}"})
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.slices, STORED.astype(np.float32) - 1024)
    assert f"{tmp_path}: 5 " in caplog.text


@pytest.mark.parametrize("changed", [{"FrameOfReferenceUID": "1.2.8"}, {"ImagePositionPatient": [0, 0, 3]}])
def test_slices_that_do_not_fit_stay_apart_with_a_warning(tmp_path, caplog, changed):
    write_series(tmp_path, of_slice=lambda i: {"SeriesInstanceUID": f"1.2.3.4.{i}"} | (changed if i % 2 else {}))
    found = search([tmp_path])
    assert len(found.inputs) >= 3 and f"{len(found.inputs)} DICOM files" in caplog.text


def test_what_is_no_image_is_left_out_by_name(tmp_path):
    write_series(tmp_path)
    write(tmp_path / "dose.dcm", Modality="RTDOSE", SeriesInstanceUID="1.2.99")
    write(tmp_path / "report.dcm", Modality="SR", Rows=None, Columns=None, PixelData=None)
    write(tmp_path / "many.dcm", NumberOfFrames=3)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "9.dcm").read_bytes())
    found = search([tmp_path])
    reasons = {one.path.name: one.reason for one in found.exclusions}
    assert len(found.inputs) == 1 and len(found.inputs[0].files) == 5
    assert reasons.keys() == {"dose.dcm", "report.dcm", "many.dcm", "copy.dcm"} ^ (
        {"copy.dcm", "9.dcm"} if "9.dcm" in reasons else set()
    )
    assert "RTDOSE" in reasons["dose.dcm"] and " 3 " in reasons["many.dcm"]
    assert "9.dcm" in reasons.get("copy.dcm", "9.dcm") and "copy.dcm" in reasons.get("9.dcm", "copy.dcm")


@pytest.mark.parametrize("size", [300, -40])
def test_a_cut_file_is_named(tmp_path, size):
    """Cut in its header it is left out; cut in its pixels the series can't be read."""
    write_series(tmp_path)
    path = tmp_path / "7.dcm"
    path.write_bytes(path.read_bytes()[:size])
    found = search([tmp_path])
    if size > 0:
        assert [one.path for one in found.mistakes] == [path]
    else:
        with pytest.raises(ValueError, match="7.dcm"):
            read_volume(found.inputs[0])


def test_slices_of_different_directions_or_spacings_are_no_volume(tmp_path):
    write_series(tmp_path, of_slice=lambda i: {"PixelSpacing": [0.8, 0.7 + 0.1 * i]})
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}.*0.8, 0.7.*0.8, 1.1"):
        read(tmp_path)


def test_compressed_pixels_are_decoded(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    pytest.importorskip("gdcm")
    image = sitk.GetImageFromArray(STORED[:1])
    writer = sitk.ImageFileWriter()
    writer.UseCompressionOn()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.Execute(image)
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read(tmp_path).slices[0], STORED[0])


# ---- masks as DICOM-SEG


def test_a_mask_refers_to_its_series_and_opens_again(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    from inference.formats.dicom_seg import save_dicom_seg

    volume = read(
        write_series(
            tmp_path / "series", (0, 2.5, 0), PatientName="Doe^Jo", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
        )
    )
    mask = np.random.default_rng(1).integers(0, 3, volume.slices.shape).astype(np.uint8)
    result = Prediction(mask, None, ["liver", "tumour", "nowhere"], volume, volume.spacing)
    save_dicom_seg(tmp_path / "out" / "mask.dcm", result, "abc")
    stored = pydicom.dcmread(tmp_path / "out" / "mask.dcm")
    assert stored.SOPClassUID.name == "Segmentation Storage" and stored.PatientName == "Doe^Jo"
    assert [s.SegmentLabel for s in stored.SegmentSequence] == ["liver", "tumour", "nowhere"]
    assert stored.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    (series,) = stored.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.4" and stored.FrameOfReferenceUID == "1.2.9"
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == {
        f"1.2.3.4.{i}" for i in range(1, 6)
    }
    opened = highdicom.seg.segread(tmp_path / "out" / "mask.dcm")
    frames = opened.get_pixels_by_source_instance([f"1.2.3.4.{i}" for i in range(1, 6)], combine_segments=True)
    by_number = sorted(volume.files, key=lambda file: pydicom.dcmread(file).InstanceNumber)
    expected = volume.as_stored(mask).transpose(2, 1, 0)[[volume.files.index(file) for file in by_number]]
    np.testing.assert_array_equal(frames, expected)


def test_a_mask_of_other_files_or_of_several_series_is_refused(tmp_path):
    pytest.importorskip("highdicom")
    from inference.formats.dicom_seg import save_dicom_seg

    volume = read(write_series(tmp_path, of_slice=lambda i: {"SeriesInstanceUID": f"1.2.3.4.{i}"}))
    result = Prediction(np.zeros(SHAPE, np.uint8), None, ["liver"], volume, volume.spacing)
    with pytest.raises(ValueError, match="--dicom-seg: mask .*5 series"):
        save_dicom_seg(tmp_path / "mask.dcm", result, "abc")
    volume.files = ()
    with pytest.raises(ValueError, match="--dicom-seg: mask"):
        save_dicom_seg(tmp_path / "mask.dcm", result, "abc")
