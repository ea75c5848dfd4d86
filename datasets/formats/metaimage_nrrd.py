"""MetaImage and NRRD files: a header of text, and the voxels after it or in a file beside it.

They are read without SimpleITK. Its native readers crash on some damaged files, read any file that a header names, and
allocate as much memory as a header declares."""

import re
import zlib
from pathlib import Path, PureWindowsPath

import numpy as np

from datasets.array_checks import check_numbers
from datasets.formats import StoredVolume

HEADER_BYTES = 65536  # the header lies within
LPS_TO_NIFTI = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's axes point right, front and up
# NumPy's type of each MetaImage type; MetaImage's long has 4 bytes
METAIMAGE_TYPES = {
    **{"MET_CHAR": "i1", "MET_SHORT": "i2", "MET_INT": "i4", "MET_LONG": "i4", "MET_LONG_LONG": "i8"},
    **{"MET_UCHAR": "u1", "MET_USHORT": "u2", "MET_UINT": "u4", "MET_ULONG": "u4", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
NRRD_TYPES = {  # by a word within names such as "unsigned short int" and uint16_t
    **{"int8": "i1", "char": "i1", "int16": "i2", "short": "i2", "int64": "i8", "long": "i8", "int": "i4"},
    **{"float": "f4", "double": "f8"},
}
NRRD_FLIPS = {  # from the axes of a space to NIfTI's
    **dict.fromkeys(("right-anterior-superior", "ras"), np.eye(4)),
    **dict.fromkeys(("left-anterior-superior", "las"), np.diag([-1.0, 1.0, 1.0, 1.0])),
    **dict.fromkeys(("left-posterior-superior", "lps"), LPS_TO_NIFTI),
}


class Header(dict[str, str]):
    """The fields of a header by their names."""

    def __missing__(self, name: str) -> str:
        raise ValueError(f"found no {name} in its header")

    def shape(self, name: str, count: str) -> tuple[int, ...]:
        """Return the sizes of the axes; another field gives their number."""
        found = self[name].split()
        if not all(map(str.isdecimal, found)) or self.get(count, str(len(found))) != str(len(found)):
            expected = f"whole numbers, as many as {count} says"
            raise ValueError(f"found {name} {self[name]} and {count} {self.get(count)}, expected {expected}")
        return tuple(map(int, found))

    def numbers(self, count: int, *names: str) -> np.ndarray | None:
        """Return the `count` numbers of the first of several fields that exists; None if none exists."""
        name = next((name for name in names if name in self), None)
        if name is None:
            return None
        numbers = re.findall(r"[^\s(),]+", self[name])
        if len(numbers) != count:
            raise ValueError(f"found {name} {self[name]}, expected {count} numbers")
        return np.array(numbers, float)


def read_metaimage_or_nrrd(path: Path) -> StoredVolume:
    """Read a MetaImage or NRRD file, according to its suffix. Raises ValueError for a damaged file."""
    with open(path, "rb") as file:
        content = file.read(HEADER_BYTES)
    return (read_nrrd if path.name.lower().endswith(".nrrd") else read_metaimage)(path, content)


def read_metaimage(path: Path, content: bytes) -> StoredVolume:
    """Read an .mha or .mhd file, which begins with `content`. Raises ValueError for voxels of several values."""
    end = re.search(rb"^ElementDataFile[ \t]*=.*(?:\n|\Z)", content, re.MULTILINE)
    if end is None:
        raise ValueError("found no ElementDataFile, expected the header of a MetaImage")
    lines = content[: end.end()].decode("latin-1").splitlines()
    header = Header({key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)})
    if header.get("ElementNumberOfChannels", "1") != "1":
        raise ValueError(f"found {header['ElementNumberOfChannels']} values a voxel, expected grey values")
    if header.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise ValueError(f"found DistanceUnits {header['DistanceUnits']}, expected mm")
    shape = header.shape("DimSize", "NDims")
    big = "true" in (header.get(f"{name}ByteOrderMSB", "").lower() for name in ("BinaryData", "Element"))
    if header["ElementType"] not in METAIMAGE_TYPES:
        raise ValueError(f"found the type {header['ElementType']}, expected numbers")
    dtype = np.dtype((">" if big else "<") + METAIMAGE_TYPES[header["ElementType"]])
    compressed = header.get("CompressedData", "False").lower() == "true"
    encoding = "gzip" if compressed else "raw" if header.get("BinaryData", "True").lower() == "true" else "text"
    name = header["ElementDataFile"]
    place = (path, end.end()) if name.upper() == "LOCAL" else (_beside(path, name), int(header.get("HeaderSize", 0)))
    array = _read_voxels(*place, shape, dtype, encoding)
    spacing = header.numbers(array.ndim, "ElementSpacing", "ElementSize")
    axes = header.numbers(array.ndim**2, "TransformMatrix", "Rotation", "Orientation")
    origin = header.numbers(array.ndim, "Offset", "Position", "Origin")
    return _volume(array, axes, spacing, origin, LPS_TO_NIFTI, spacing is not None, axes is not None)


def read_nrrd(path: Path, content: bytes) -> StoredVolume:
    """Read an .nrrd file, which begins with `content`. Raises ValueError for other units than mm."""
    end = re.search(rb"\r?\n\r?\n", content)
    if not content.startswith(b"NRRD") or end is None:
        raise ValueError("found no header of an NRRD file that ends with an empty line")
    fields = re.findall(r"^([^#:\n]+):(?!=) *(.*?)\r?$", content[: end.start()].decode("latin-1"), re.MULTILINE)
    header = Header({key.strip().lower().replace(" ", ""): value.strip() for key, value in fields})
    for name, usual in (("spaceunits", '"mm"'), ("units", '"mm"'), ("byteskip", "0"), ("lineskip", "0")):
        if {*header.get(name, usual).split()} - {usual}:
            raise ValueError(f"found {name} {header[name]}, expected {usual}")
    shape = header.shape("sizes", "dimension")
    dtype = _nrrd_type(header["type"].lower(), header.get("endian", "").lower())
    name = header.get("datafile")
    place = (path, end.end()) if name is None else (_beside(path, name), 0)
    array = _read_voxels(*place, shape, dtype, header["encoding"].lower())
    axes = header.numbers(array.ndim**2, "spacedirections")
    spacing = header.numbers(array.ndim, "spacings") if axes is None else None  # the directions have lengths
    origin, space = header.numbers(array.ndim, "spaceorigin"), header.get("space", "").lower()
    measured, placed = axes is not None or spacing is not None, space in NRRD_FLIPS
    return _volume(array, axes, spacing, origin, NRRD_FLIPS.get(space, LPS_TO_NIFTI), measured, placed)


def _nrrd_type(name: str, endian: str) -> np.dtype:
    word = re.search("|".join(NRRD_TYPES), name)
    code = "" if word is None else NRRD_TYPES[word[0]].replace("i", "u" if name.startswith("u") else "i")
    if word is None or endian not in ("big", "little", *[""] * code.endswith("1")):
        raise ValueError(f"found the type {name}, {endian or 'no'} endian, expected numbers, big or little endian")
    return np.dtype((">" if endian == "big" else "<") + code)


def _beside(path: Path, name: str) -> Path:
    """Return the path of the voxel file. Raises ValueError unless it is a plain name beside the header, and not a link.

    Otherwise a header could make any file of the machine visible as an image."""
    file = path.with_name(name) if name == Path(name).name == PureWindowsPath(name).name else None
    if file is None or file.is_symlink() or not file.is_file():
        raise ValueError(f"found its voxels in {name}, expected them in the file, or in one beside it that is no link")
    return file


def _read_voxels(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype, encoding: str) -> np.ndarray:
    """Return the array (i, j, k, ...) that is stored from byte `start` on; -1: at the end of the file."""
    stored = path.stat().st_size
    if min(shape) < 1:
        raise ValueError(f"found the shape {shape}, expected positive numbers")
    check_numbers(shape, dtype, "the file", stored)
    size = int(np.prod(shape)) * dtype.itemsize
    with open(path, "rb") as file:
        file.seek(start if start >= 0 else max(0, stored - size))
        values = file.read(size + 1 if encoding == "raw" else stored)  # one byte more, to detect surplus voxels
    if encoding in ("gzip", "gz"):
        values = _inflate(values, size)
    elif encoding in ("text", "txt", "ascii"):
        values = np.array(values.split(maxsplit=size)[: size // dtype.itemsize], dtype=float).astype(dtype).tobytes()
    elif encoding != "raw":
        raise ValueError(f"found the encoding {encoding}, expected raw, gzip or text")
    if len(values) != size:
        raise ValueError(f"found {len(values)} bytes of voxels, expected {size} of the shape {shape}")
    return np.frombuffer(values, dtype).reshape(shape, order="F")


def _inflate(stored: bytes, size: int) -> bytes:
    """Return the `size` bytes of a stream of zlib or gzip. Raises an error unless it ends there, with its checksum."""
    inflater = zlib.decompressobj(wbits=47)  # either format
    values = inflater.decompress(stored, size)
    if inflater.decompress(inflater.unconsumed_tail, 1) or not inflater.eof:
        raise ValueError(f"its compressed voxels do not end after {len(values)} bytes, probably damaged")
    return values


def _volume(
    array: np.ndarray,
    axes: np.ndarray | None,  # (n * n,): the direction of each axis of the array
    spacing: np.ndarray | None,
    origin: np.ndarray | None,
    to_nifti: np.ndarray,
    measured: bool,
    placed: bool,
) -> StoredVolume:
    n, spatial = array.ndim, min(array.ndim, 3)
    vectors = np.eye(n) if axes is None else axes.reshape(n, n)
    vectors = vectors if spacing is None else vectors * spacing[:, None]
    affine = np.eye(4)
    affine[:spatial, :spatial] = vectors[:spatial, :spatial].T
    affine[:spatial, 3] = 0 if origin is None else origin[:spatial]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    measured = measured and array.ndim == 3  # one slice has no thickness
    return StoredVolume(array[..., None] if array.ndim == 2 else array, to_nifti @ affine, measured, placed)
