"""DICOM series: what belongs together, values of each slice, geometry, and masks as DICOM-SEG."""

import re

import numpy as np
import pytest

import predict
from datasets.formats.dicom import read_slice
from inference.inputs import search
from inference.prediction import Prediction
from inference.volume_inputs import read_volume
from predict import PredictConfig
from utils.files import read_rows
from utils.runs.run_folder import stop_log

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


def raw(path, keyword, vr, value):
    """Replace an element of a file by one that pydicom would not write."""
    dataset = pydicom.dcmread(path)
    tag, content = pydicom.tag.Tag(keyword), value.encode("latin-1")
    element = pydicom.dataelem.RawDataElement(tag, vr, len(content), content, 0, False, True)
    dataset[tag] = element
    dataset.save_as(path, enforce_file_format=True)


ODD = {  # what one file of a good series may hold
    "decimal comma": ("PixelSpacing", "DS", "0,7\\0,7 ", "(0028,0030) PixelSpacing is '0,7"),
    "half a spacing": ("PixelSpacing", "DS", "0.7\\", "(0028,0030)"),
    "one spacing": ("PixelSpacing", "DS", "0.7 ", "(0028,0030)"),
    "spacing as text": ("PixelSpacing", "UT", "0.8\\0.7 ", " of VR UT"),
    "no spacing": ("PixelSpacing", "DS", "0\\0 ", "(0028,0030)"),
    "rows twice": ("Rows", "US", "\x0c\0\x0c\0", "(0028,0010) Rows is [12, 12]"),
    "zero in a UID": ("SeriesInstanceUID", "UI", "1.2\0.3 ", "(0020,000E)"),
    "path as a UID": ("SeriesInstanceUID", "UI", "../../up", "(0020,000E)"),
    "short directions": ("ImageOrientationPatient", "DS", "1\\0\\0\\0\\1 ", "(0020,0037)"),
    "short position": ("ImagePositionPatient", "DS", "1\\0 ", "(0020,0032)"),
    "words as a position": ("ImagePositionPatient", "DS", "here\\0\\0 ", "(0020,0032)"),
    "nan": ("ImagePositionPatient", "DS", "nan\\0\\0 ", "(0020,0032)"),
    "slope": ("RescaleSlope", "DS", "1,0 ", "(0028,1053) RescaleSlope is '1,0"),
    "slope of nothing": ("RescaleSlope", "DS", "0 ", "(0028,1053)"),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_header_costs_its_file_only(tmp_path, odd):
    keyword, vr, value, told = ODD[odd]
    write_series(tmp_path)
    write(tmp_path / "zz.dcm", number=99, position=(0, 0, 40))
    raw(tmp_path / "zz.dcm", keyword, vr, value)
    found = search([tmp_path])
    assert [(one.path.name, one.mistake) for one in found.exclusions] == [("zz.dcm", True)]
    assert told in found.exclusions[0].reason
    np.testing.assert_array_equal(read_volume(found.inputs[0]).slices, STORED.astype(np.float32) - 1024)
    for path in tmp_path.glob("?.dcm"):  # a whole series of such
        raw(path, keyword, vr, value)
    found = search([tmp_path])
    assert not found.inputs and [one.mistake for one in found.exclusions] == 6 * [True]
    assert all(told in one.reason for one in found.exclusions)


@pytest.mark.parametrize(
    "keyword, vr, value",
    [("InstanceNumber", "IS", "first "), ("InstanceNumber", "IS", "")],
)
def test_what_can_be_understood_is_read(tmp_path, keyword, vr, value):
    write_series(tmp_path)
    for path in tmp_path.glob("?.dcm"):
        raw(path, keyword, vr, value)
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.slices, STORED.astype(np.float32) - 1024)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.7))


def test_photographs_are_read_and_files_without_pixels_are_named(tmp_path):
    write_series(tmp_path / "series")
    write(tmp_path / "empty.dcm", PixelData=None)
    write(tmp_path / "photo.dcm", SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    found = search([tmp_path / "series", tmp_path / "photo.dcm", tmp_path / "empty.dcm"])
    assert [(one.path.name, one.format) for one in found.inputs] == [("series", "dicom"), ("photo.dcm", "photograph")]
    assert [one.path.name for one in found.mistakes] == ["empty.dcm"] and "without pixels" in found.mistakes[0].reason


def test_a_deflated_file_inflates_to_a_slice_only(tmp_path, monkeypatch):
    write_series(tmp_path)
    for path in tmp_path.glob("?.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path).slices, STORED.astype(np.float32) - 1024)
    monkeypatch.setattr("datasets.formats.dicom.LARGEST_DEFLATED", 300)
    with pytest.raises(ValueError, match="inflates"):
        read_slice(path)


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


ACROSS, DOWN = [1, 0, 0], [0, 1, 0]
GEOMETRIES = {
    "flipped columns": ([-1, 0, 0, *DOWN], (0, 0, 2.5)),
    "flipped rows and slices": ([*ACROSS, 0, -1, 0], (0, 0, -2.5)),
    "coronal": ([*ACROSS, 0, 0, -1], (0, 2.5, 0)),
    "tilted gantry": ([*ACROSS, 0, 0.9553365, -0.2955202], (0, 0, 2.5)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_segments_lie_where_the_mask_lies(tmp_path, geometry):
    """Centroids in the patient, from the frames' own positions, and from the affine of the NIfTI mask."""
    pytest.importorskip("highdicom")
    from inference.formats.dicom_seg import save_dicom_seg

    directions, step = GEOMETRIES[geometry]
    volume = read(write_series(tmp_path / "series", step, ImageOrientationPatient=directions))
    classes = np.zeros(volume.slices.shape, np.uint8)
    low, middle, high = (np.array(classes.shape) * part // 8 for part in (1, 4, 7))
    classes[tuple(map(slice, low, middle))], classes[tuple(map(slice, middle, high))] = 1, 2
    result = Prediction(classes, None, ["liver", "tumour"], volume, volume.spacing, mask_values=(0, 6, 7))
    save_dicom_seg(tmp_path / "mask.dcm", result, "abc")
    stored = pydicom.dcmread(tmp_path / "mask.dcm")
    assert [s.SegmentDescription for s in stored.SegmentSequence] == ["label 6", "label 7"]
    found: dict[int, list] = {1: [], 2: []}
    shared = stored.SharedFunctionalGroupsSequence[0]
    down, across = shared.PixelMeasuresSequence[0].PixelSpacing
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    for frame, pixels in zip(stored.PerFrameFunctionalGroupsSequence, stored.pixel_array, strict=True):
        corner = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[number] += [corner + x * across * row + y * down * column for y, x in np.argwhere(pixels)]
    nifti = volume.to_nifti(result.mask, np.uint8)
    for number, label in ((1, 6), (2, 7)):
        voxels = np.argwhere(np.asarray(nifti.dataobj) == label)
        expected = (nifti.affine @ [*voxels.mean(0), 1])[:3] * [-1, -1, 1]  # NIfTI's axes point right and front
        assert len(voxels) == len(found[number]) > 0
        np.testing.assert_allclose(np.mean(found[number], 0), expected, atol=1e-3)


@pytest.mark.parametrize("characters", [["", "ISO 2022 IR 87"], ["", "ISO 2022 IR 149"], "", "ISO_IR 100", None])
def test_every_character_set_gives_a_mask(tmp_path, characters):
    pytest.importorskip("highdicom")
    from inference.formats.dicom_seg import save_dicom_seg

    name = {"IR 87": "Yamada^Tarou=山田^太郎", "IR 149": "Hong^Gildong=洪^吉洞=홍^길동", "_IR 100": "Grün^Jörg"}
    name = next((text for part, text in name.items() if str(characters).rstrip("']").endswith(part)), "Doe^Jo")
    volume = read(write_series(tmp_path / "series", SpecificCharacterSet=characters, PatientName=name))
    result = Prediction(np.ones(SHAPE, np.uint8), None, ["größe"], volume, volume.spacing)
    save_dicom_seg(tmp_path / "mask.dcm", result, "abc")
    stored = pydicom.dcmread(tmp_path / "mask.dcm")
    assert stored.PatientName == name and stored.SegmentSequence[0].SegmentLabel == "größe"


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_series_that_can_not_be_referred_to_lacks_its_dicom_seg_only(tmp_path, organs, keyword):
    pytest.importorskip("highdicom")
    write_series(tmp_path / "bad", **{keyword: None})
    write_series(tmp_path / "good", StudyInstanceUID="1.2.4", SeriesInstanceUID="1.2.5")
    out = tmp_path / "out"
    options = dict(checkpoint=str(organs), inputs=(str(tmp_path / "bad"), str(tmp_path / "good")), output=str(out))
    for existing in ("refuse", "skip"):
        with pytest.raises(ValueError, match="1 DICOM-SEG .*bad"):
            try:
                predict.main(PredictConfig(**options, dicom_seg=True, device="cpu", existing=existing))
            finally:
                stop_log()
        log = (out / "log.txt").read_text(encoding="utf-8")
        assert keyword in log and "(002" in log
        assert {row["name"] for row in read_rows(out / "structures.csv")} == {"bad", "good"}
        for folder, files in (("masks", 2), ("overlays", 2), ("dicom_seg", 1)):
            assert len(list((out / folder).iterdir())) == files


def test_orientations_that_differ_by_rounding_are_one_volume(tmp_path):
    """Rounding to any number of digits would split such a series."""
    tilts = (0.0005, 0.000499999, 0.0, 0.0012, 0.0007)
    volume = read(write_series(tmp_path, of_slice=lambda i: {"ImageOrientationPatient": [1, tilts[i], 0, 0, 1, 0]}))
    np.testing.assert_array_equal(volume.slices, STORED.astype(np.float32) - 1024)
    assert volume.spacing[0] == pytest.approx(2.5)


def test_a_series_that_becomes_several_volumes_is_told(tmp_path, caplog):
    write_series(tmp_path, of_slice=lambda i: {"Modality": "MR" if i > 2 else "CT"})
    assert sorted(len(item.files) for item in search([tmp_path]).inputs) == [2, 3]
    assert "1.2.3.4_2" in caplog.text and tmp_path.name in caplog.text


@pytest.mark.parametrize(
    "of_slice, told",
    [
        (lambda i: {"ImagePositionPatient": None} if i == 2 else {}, "4 of 5 .*0020,0032"),
        (lambda i: {"ImagePositionPatient": None, "InstanceNumber": None}, "numbered 0, 0.*0020,0013"),
        (lambda i: {"ImagePositionPatient": None, "InstanceNumber": i + (i > 2)}, "numbered 0, 1, 2, 4.*0020,0013"),
        (lambda i: {"ImagePositionPatient": None, "InstanceNumber": i // 2}, "numbered 0, 0, 1.*0020,0013"),
    ],
)
def test_slices_that_cannot_be_sorted_are_no_volume(tmp_path, of_slice, told):
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*{told}"):
        read(write_series(tmp_path, of_slice=of_slice))


def test_numbers_sort_slices_without_positions(tmp_path):
    volume = read(write_series(tmp_path, ImagePositionPatient=None))
    np.testing.assert_array_equal(volume.slices, STORED.astype(np.float32) - 1024)


def test_values_in_the_upper_bits_are_named(tmp_path):
    write(tmp_path / "a.dcm", BitsStored=12, HighBit=15)
    (one,) = search([tmp_path]).mistakes
    assert "(0028,0102)" in one.reason and "15" in one.reason and "11" in one.reason
