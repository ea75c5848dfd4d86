"""MetaImage and NRRD files: as SimpleITK reads them, and nothing beyond the file and its folder."""

import itertools
import os
import sys
import zlib

import numpy as np
import pytest

from datasets.formats.metaimage_nrrd import read_metaimage_or_nrrd

VALUES = np.random.default_rng(0).integers(0, 999, (6, 5, 4)).astype("<i2")  # (k, j, i)
NRRD = "NRRD0005\ntype: {type}\ndimension: 3\nsizes: 4 5 6\nencoding: {encoding}\nendian: little\n{more}\n"


def metaimage(data="LOCAL", voxels=b"", **fields):
    lines = {"ObjectType": "Image", "NDims": 3, "DimSize": "4 5 6", "ElementSpacing": "1 2 3"}
    lines |= {"ElementType": "MET_SHORT"} | fields | {"ElementDataFile": data}
    return "".join(f"{name} = {value}\n" for name, value in lines.items()).encode() + voxels


def nrrd(more="", voxels=b"", type="short", encoding="raw"):
    return NRRD.format(type=type, encoding=encoding, more=more and more + "\n").encode() + voxels


def read(path, content):
    path.write_bytes(content)
    return read_metaimage_or_nrrd(path)


DIRECTIONS = "space directions: (1,0,0) (0,2,0) (0.1,0,3)\nspace origin: (1,2,3)"
PLAIN = {
    "a.mha": metaimage(voxels=VALUES.tobytes(), Offset="1 2 3", Rotation="0 1 0 1 0 0 0 0 1"),
    "crlf.mha": metaimage(HeaderSize=0).replace(b"\n", b"\r\n") + VALUES.tobytes(),
    "long.mha": metaimage(voxels=VALUES.astype("<i4").tobytes(), ElementType="MET_LONG"),
    "big.mha": metaimage(voxels=VALUES.astype(">i2").tobytes(), BinaryDataByteOrderMSB="True"),
    "ras.nrrd": nrrd(f"space: RAS\n{DIRECTIONS}", VALUES.tobytes(), "signed short int"),
    "las.nrrd": nrrd(f"space: left-anterior-superior\n{DIRECTIONS}\nkey:=a: b", VALUES.tobytes(), "int16_t"),
    "text.nrrd": nrrd("spacings: 1 2 3", " ".join(map(str, VALUES.ravel())).encode(), encoding="ascii"),
}


def expected_of(path):
    """SimpleITK's array (i, j, k), and its affine in NIfTI's directions."""
    sitk = pytest.importorskip("SimpleITK")
    image, affine = sitk.ReadImage(str(path)), np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("name", PLAIN)
def test_a_header_means_what_it_means_to_simpleitk(tmp_path, name):
    stored = read(tmp_path / name, PLAIN[name])
    np.testing.assert_array_equal(stored.array, VALUES.T)
    array, affine = expected_of(tmp_path / name)
    np.testing.assert_array_equal(array, VALUES.T)
    np.testing.assert_allclose(stored.affine, affine)


def test_what_simpleitk_writes_is_read(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for dtype, ending, compressed in itertools.product(
        ("u1", "i2", "u4", "i8", "f4", "f8"), ("mha", "mhd", "nrrd"), (0, 1)
    ):
        image = sitk.GetImageFromArray(VALUES.astype(dtype))
        image.SetSpacing((0.7, 0.8, 2.5))
        image.SetDirection((0.6, 0.8, 0, -0.8, 0.6, 0, 0, 0, 1))
        path = tmp_path / f"{dtype}{compressed}.{ending}"
        sitk.WriteImage(image, str(path), bool(compressed))
        stored, (array, affine) = read_metaimage_or_nrrd(path), expected_of(path)
        np.testing.assert_array_equal(stored.array, array)
        np.testing.assert_allclose(stored.affine, affine)
        assert stored.measured and stored.placed and stored.array.dtype == dtype


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize(
    "name", ["../secret.raw", "{folder}/secret.raw", "link.raw", "/dev/zero", "LIST", "sub\\a.raw"]
)
@pytest.mark.parametrize("make", [metaimage, lambda data: nrrd(f"data file: {data}")], ids=["mhd", "nrrd"])
def test_no_file_of_another_folder_is_read(tmp_path, name, make):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(VALUES.tobytes())
    (tmp_path / "in" / "link.raw").symlink_to(tmp_path / "secret.raw")
    (tmp_path / "in" / "a.raw").write_bytes(VALUES.tobytes())
    ending = "mhd" if make is metaimage else "nrrd"
    np.testing.assert_array_equal(read(tmp_path / "in" / f"a.{ending}", make("a.raw")).array, VALUES.T)
    named = name.format(folder=tmp_path)
    with pytest.raises(ValueError, match=os.path.basename(named.replace("\\", "/"))):
        read(tmp_path / "in" / f"a.{ending}", make(named))


def test_a_changed_bit_of_compressed_voxels_is_noticed(tmp_path):
    good = bytearray(metaimage(voxels=zlib.compress(VALUES.tobytes()), CompressedData="True"))
    np.testing.assert_array_equal(read(tmp_path / "a.mha", good).array, VALUES.T)
    for place in range(1, 60):
        changed = good.copy()
        changed[-place] ^= 4
        with pytest.raises((ValueError, zlib.error)):
            read(tmp_path / "a.mha", changed)


@pytest.mark.parametrize(
    "content, told",
    [
        (metaimage(voxels=VALUES.tobytes()[:-1]), "239 .*240"),
        (metaimage(voxels=zlib.compress(VALUES.tobytes() + b"0"), CompressedData="True"), "240"),
        (metaimage(DimSize="1024 1024 400", CompressedData="True"), "1032"),
        (metaimage(DimSize="9999 9999 9999"), "9999"),
        (metaimage(DimSize="4 -5 6"), "-5"),
        (metaimage(ElementNumberOfChannels=3), "3 values"),
        (metaimage(ElementType="MET_STRING"), "MET_STRING"),
        (b"ObjectType = Image\nElementDataFile = LOCAL\n", "DimSize"),
        (b"text", "ElementDataFile"),
    ],
)
def test_a_damaged_header_is_named(tmp_path, content, told):
    with pytest.raises(ValueError, match=told):
        read(tmp_path / "a.mha", content)
