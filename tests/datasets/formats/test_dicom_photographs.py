"""Photographs in DICOM are images: RGB, JPEG, palettes; slices of a scan stay volumes."""

import io

import numpy as np
import pytest
from PIL import Image

from datasets.formats.dicom import read_photograph
from datasets.synthetic import lesion
from inference.image_files import read_picture
from inference.inputs import find_inputs, search

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402  # after importorskip
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid  # noqa: E402

PHOTO, CT = "1.2.840.10008.5.1.4.1.1.77.1.4", "1.2.840.10008.5.1.4.1.1.2"


def write(path, pixels, interpretation, sop_class=PHOTO, syntax=ExplicitVRLittleEndian, **tags):
    """A DICOM file of pixels (H, W) or (H, W, 3), or of the bytes of a JPEG file of 40 x 48 pixels."""
    dataset = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    dataset.file_meta.TransferSyntaxUID, dataset.file_meta.MediaStorageSOPClassUID = syntax, sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SOPClassUID, dataset.SeriesInstanceUID, dataset.Modality = sop_class, generate_uid(), "DMS"
    shape = (40, 48, 3) if isinstance(pixels, bytes) else pixels.shape
    bits = 8 if isinstance(pixels, bytes) else pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *shape[:2], len(shape) * 2 - 3
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = interpretation, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    if len(shape) == 3:
        dataset.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate([pixels]) if isinstance(pixels, bytes) else pixels.tobytes()
    dataset.save_as(path)
    return path


@pytest.fixture
def photo():
    return np.asarray(Image.fromarray(lesion(np.random.default_rng(0), 48)[0]).crop((0, 0, 48, 40)))


def test_a_photograph_is_read_as_its_colours(photo, tmp_path):
    planes = np.ascontiguousarray(photo.transpose(2, 0, 1)).reshape(photo.shape)  # R, then G, then B
    write(tmp_path / "rgb.dcm", photo, "RGB")
    write(tmp_path / "planes.dcm", planes, "RGB", PlanarConfiguration=1)
    items = find_inputs([tmp_path])
    assert [(item.stem, item.is_volume) for item in items] == [("planes", False), ("rgb", False)]
    for item in items:
        assert np.array_equal(read_picture(item).pixels.permute(1, 2, 0).numpy(), photo), item.stem


def test_a_jpeg_is_converted_from_luminance_and_chrominance(photo, tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(photo).save(jpeg, "JPEG", quality=95)
    write(tmp_path / "a.dcm", jpeg.getvalue(), "YBR_FULL_422", syntax=JPEGBaseline8Bit)
    assert np.abs(read_photograph(tmp_path / "a.dcm").astype(int) - photo).mean() < 4


def test_palettes_are_photographs_and_greys_are_not(photo, tmp_path):
    table = np.arange(256, dtype=np.uint16)
    grey = photo[..., 0].copy()
    palettes = {}
    for colour, entries in zip(("Red", "Green", "Blue"), (table, 255 - table, table // 2), strict=True):
        palettes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palettes[f"{colour}PaletteColorLookupTableData"] = (entries * 257).tobytes()
    read = read_photograph(write(tmp_path / "a.dcm", grey, "PALETTE COLOR", CT, **palettes))
    assert np.array_equal(read, np.stack([grey, 255 - grey, grey // 2], 2))
    write(tmp_path / "b.dcm", grey, "MONOCHROME2", CT)
    assert [find_inputs([tmp_path / f"{name}.dcm"])[0].format for name in "ab"] == ["photograph", "dicom"]


def test_what_is_no_photograph_of_8_bits_is_named(photo, tmp_path):
    for name, pixels, kind, words in (
        ("deep.dcm", photo.astype(np.uint16), "RGB", "16 bits"),
        ("cmy.dcm", photo, "HSV", "HSV"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            read_photograph(write(tmp_path / name, pixels, kind))
    write(tmp_path / "frames.dcm", photo, "RGB", NumberOfFrames=2)
    (found,) = (one for one in search([tmp_path]).exclusions if one.path.name == "frames.dcm")
    assert "2 frames" in found.reason
