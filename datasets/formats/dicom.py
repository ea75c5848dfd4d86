"""DICOM files: what their headers say, and the values and geometry of a series, read with pydicom.

Values are rescaled per slice with slope and intercept (or the lookup table), as floats. Display settings (MONOCHROME1,
windows) are ignored. Positions are those of each slice."""

import contextlib
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from datasets.array_checks import check_numbers
from datasets.formats import StoredVolume
from utils.files import MAX_PIXELS, first_few, reading
from utils.optional import optional

NEEDED_BY = "DICOM files"
DIRECTION_TOLERANCE = 5e-3  # allowed difference of direction cosines within a volume: 0.3 degrees
SLICE_TOLERANCE = 0.02  # allowed deviation of a slice distance, as a fraction of the median distance
DEFLATED = "1.2.840.10008.1.2.1.99"  # transfer syntax
PIXELS = (b"\xe0\x7f", b"\x7f\xe0")  # the group number of pixel data, in either byte order
LARGEST_DEFLATED = 2**28  # bytes of a file after inflation; a CT slice has half a megabyte
PHOTOGRAPH = "is a photograph in colours, expected grey values"
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")  # pydicom converts these to RGB
NO_IMAGES = {  # modalities with rows and columns, but without the values of a scan
    "RTDOSE": "a dose",
    "SEG": "a segmentation",
    "PR": "a presentation state",
    "REG": "a registration",
    "KO": "a selection of keys",
}


class DicomSlice(NamedTuple):
    """A DICOM file that holds an image, without its pixels. None stands for what it does not store."""

    path: Path
    instance: str  # UIDs
    series: str
    study: str
    frame: str
    modality: str
    shape: tuple[int, int]  # rows, columns
    number: float
    position: tuple[float, ...] | None  # (3,) mm, of the first pixel
    orientation: tuple[float, ...] | None  # (6,) directions of rows and columns
    spacing: tuple[float, ...] | None  # (2,) mm, between rows and columns
    thickness: float  # mm; 0: unknown

    def place(self, first: "DicomSlice") -> tuple[float, float]:
        """Return the sort key of a slice: its position along the normal of the volume's first slice, and its number."""
        along = 0.0
        if self.position is not None and first.orientation is not None:
            along = float(np.dot(self.position, np.cross(first.orientation[:3], first.orientation[3:])))
        return round(along, 4), self.number

    def is_parallel(self, other: "DicomSlice") -> bool:
        """Return whether both slices have the same orientation, up to DIRECTION_TOLERANCE, or both have none."""
        if self.orientation is None or other.orientation is None:
            return self.orientation == other.orientation
        return bool(np.allclose(self.orientation, other.orientation, rtol=0, atol=DIRECTION_TOLERANCE))


def read_slice(path: Path) -> DicomSlice | str:
    """Read a file's header. For a file that is not a slice of a scan, return the reason as text.

    Raises ValueError, naming tag and value, for a malformed value."""
    with reading(path), open(path, "rb") as file:
        header = open_dicom(path, file, stop_before_pixels=True)
        reason = why_no_image(header)
        if reason is None and file.read(2) not in PIXELS and header.file_meta.get("TransferSyntaxUID") != DEFLATED:
            reason = "is a DICOM file without pixels, or is damaged"
        return reason or slice_of(header, path)


def open_dicom(path: Path, file: BinaryIO, **options: Any) -> Any:
    """Return a pydicom.Dataset. Raises ValueError for a deflated file that inflates to more than LARGEST_DEFLATED."""
    pydicom = optional("pydicom", NEEDED_BY)
    about = optional("pydicom.filereader", NEEDED_BY).read_file_meta_info(path)
    if about.get("TransferSyntaxUID") == DEFLATED:
        file.seek(140)  # the length of the part before the deflated data
        (length,) = struct.unpack("<L", file.read(4))
        file.seek(length, 1)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(file.read(), LARGEST_DEFLATED)
        if inflater.unconsumed_tail:
            raise ValueError(f"it inflates to more than {LARGEST_DEFLATED >> 20} MB, expected a slice")
        file.seek(0)
    return pydicom.dcmread(file, **options)


def why_no_image(header: Any) -> str | None:
    """Return the reason why a file is not a slice of a scan; None if it is one."""
    modality = text(header, "Modality")
    if modality in NO_IMAGES:
        return f"holds {NO_IMAGES[modality]} (DICOM modality {modality}), expected an image"
    if min(number(header, name) for name in ("Rows", "Columns")) < 1:
        kind = header.get("SOPClassUID")
        return f"is a DICOM file without an image{f' ({kind.name})' if kind else ''}, or is damaged"
    frames = number(header, "NumberOfFrames", 1)
    if frames > 1:
        found = f"is a DICOM file of {frames:g} frames"
        return f"{found}, expected a file for each slice; dcm2niix converts it to NIfTI"
    if number(header, "SamplesPerPixel", 1) != 1 or text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        return PHOTOGRAPH
    return None


def slice_of(header: Any, path: Path) -> DicomSlice:
    """Return the values of a header. Raises ValueError, naming tag and value, for a malformed value."""
    position, index = numbers(header, "ImagePositionPatient", 3), 0.0
    with contextlib.suppress(ValueError) if position else contextlib.nullcontext():  # the position sorts the slices
        index = number(header, "InstanceNumber")
    rescaling(header)
    high, bits = number(header, "HighBit", -1), number(header, "BitsStored", 0)
    if high not in (-1, bits - 1):
        raise ValueError(f"the DICOM value (0028,0102) HighBit is {high:g}; expected {bits - 1:g}, below BitsStored")
    return DicomSlice(
        path,
        text(header, "SOPInstanceUID"),
        text(header, "SeriesInstanceUID"),
        text(header, "StudyInstanceUID"),
        text(header, "FrameOfReferenceUID"),
        text(header, "Modality"),
        (int(number(header, "Rows")), int(number(header, "Columns"))),
        index,
        position,
        numbers(header, "ImageOrientationPatient", 6),
        numbers(header, "PixelSpacing", 2, positive=True),
        number(header, "SliceThickness"),
    )


def numbers(header: Any, name: str, count: int, positive: bool = False) -> tuple[float, ...] | None:
    """Return the `count` numbers of an element; None if it is absent or empty.

    Raises ValueError, naming tag and value, for other values, such as those with a decimal comma."""
    stored = header.get_item(name)  # as stored in the file; pydicom's conversion may fail
    if stored is None:
        return None
    value = stored.value
    try:
        value = header[name].value
        parts = value if np.iterable(value) and not isinstance(value, str) else [value]
        if not any(part not in (None, "") for part in parts):
            return None
        result = tuple(float(part) for part in parts)
        if len(result) == count and all(map(math.isfinite, result)) and (not positive or min(result) > 0):
            return result
    except Exception:  # pydicom raises many kinds of errors for values that it cannot convert
        pass
    as_text = stored.value.decode("latin-1") if isinstance(stored.value, bytes) else ""
    found = repr(as_text[:80]) if as_text.isprintable() and as_text else str(value)[:80]
    expected = f"{count} {'positive ' * positive}number{'s' * (count > 1)}"
    found += f" of VR {stored.VR}" if isinstance(value, str) and stored.VR else ""  # its backslashes part nothing
    raise ValueError(f"the DICOM value {stored.tag} {name} is {found}; expected {expected}")


def number(header: Any, name: str, default: float = 0) -> float:
    """Return the number of an element, see `numbers`; `default` if it is absent or empty."""
    return (numbers(header, name, 1) or (default,))[0]


def text(header: Any, name: str) -> str:
    """Return the text of an element; "" if it is absent. Raises ValueError, naming tag and value, for characters
    that no identifier has."""
    stored = header.get_item(name)
    value = stored.value if stored is not None and stored.value else ""
    value = (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip(" \0")
    if not value.isprintable() or set(value) & set("/\\"):
        raise ValueError(f"the DICOM value {stored.tag} {name} is {value[:80]!r}; expected one identifier")
    return value


def corners_of(slices: Sequence[DicomSlice]) -> np.ndarray | None:
    """Return the positions (slices, 3) of the first pixels; None if a slice has none."""
    positions = [one.position for one in slices if one.position is not None]
    return np.array(positions) if len(positions) == len(slices) else None


def uneven(corners: np.ndarray) -> str | None:
    """Describe uneven distances of slices; None if they are even."""
    steps = np.diff(corners, axis=0)
    distances = np.linalg.norm(steps, axis=1)
    middle = np.median(distances)
    if middle == 0 or np.linalg.norm(steps - np.median(steps, axis=0), axis=1).max() > SLICE_TOLERANCE * middle:
        return f"found slices {distances.min():g} to {distances.max():g} mm apart, expected an even distance"
    return None


def read_series(files: Sequence[str | Path]) -> StoredVolume:
    """Read files, given in the order of their slices, as a float32 volume (columns, rows, slices).

    Raises ValueError that names the file for unreadable files, and for slices that do not form a volume."""
    slices, planes = [], []
    for path in map(Path, files):
        with reading(path), open(path, "rb") as file:
            dataset = open_dicom(path, file)
            reason = why_no_image(dataset)
            if reason:
                raise ValueError(f"{path} {reason}")
            slices.append(slice_of(dataset, path))
            check_numbers((*slices[-1].shape, len(files)), np.dtype(np.float32), str(path))
            planes.append(values_of(dataset))
    what = Path(files[0]) if len(files) == 1 else Path(files[0]).parent
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        raise ValueError(f"{what} holds slices of different sizes: {first_few(sorted(shapes))}")
    affine, measured, placed = geometry_of_slices(slices, what)
    array = np.stack(planes).transpose(2, 1, 0)
    return StoredVolume(array, affine, measured, placed, modality=slices[0].modality or None)


def values_of(dataset: Any) -> np.ndarray:
    """Return the values (rows, columns) of a slice, float32, rescaled by its lookup table or slope and intercept."""
    stored = dataset.pixel_array
    if dataset.get("ModalityLUTSequence"):
        values = optional("pydicom.pixels", NEEDED_BY).apply_modality_lut(stored, dataset).astype(np.float32)
    else:
        slope, intercept = rescaling(dataset)
        values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    padding = numbers(dataset, "PixelPaddingValue", 1)
    if padding is not None:  # outside the field of view; not where it is the lowest anyway
        ends = sorted((*padding, *(numbers(dataset, "PixelPaddingRangeLimit", 1) or padding)))
        outside = (stored >= ends[0]) & (stored <= ends[1])
        if not outside.all():
            values[outside] = np.minimum(values[outside], values[~outside].min())
    return values


def rescaling(dataset: Any) -> tuple[float, float]:
    """Return slope and intercept. Raises ValueError, naming tag and value, for a slope of 0."""
    slope = number(dataset, "RescaleSlope", 1)
    if slope == 0:
        raise ValueError("the DICOM value (0028,1053) RescaleSlope is 0; expected another number")
    return slope, number(dataset, "RescaleIntercept")


def check_numbering(slices: Sequence[DicomSlice], what: Path) -> None:
    """Raise ValueError unless slices, at least one of them without a position, can be sorted by their numbers."""
    placed = sum(one.position is not None for one in slices)
    if placed:
        found = f"{placed} of {len(slices)} slices with a DICOM value (0020,0032) ImagePositionPatient"
        raise ValueError(f"{what}: found {found}, expected it in all or none")
    steps = np.diff([one.number for one in slices])
    if not (steps == 1).all():
        found = f"slices without positions, numbered {first_few(f'{one.number:g}' for one in slices)}"
        expected = "the DICOM value (0020,0013) InstanceNumber to count them"
        raise ValueError(f"{what}: found {found}; expected {expected}, without gaps or repetitions")


def geometry_of_slices(slices: Sequence[DicomSlice], what: Path) -> tuple[np.ndarray, bool, bool]:
    """Return (affine, measured, placed), see StoredVolume. Slices may be sheared, as under a tilted gantry."""
    first, corners = slices[0], corners_of(slices)
    spacings = {one.spacing or () for one in slices}
    if not all(map(first.is_parallel, slices)):
        raise ValueError(f"{what} holds slices of different directions, expected one volume")
    if np.ptp([spacing or (0, 0) for spacing in spacings], axis=0).max() > 1e-3:
        raise ValueError(f"{what} holds slices of different pixel spacings: {first_few(sorted(spacings))}")
    if len(slices) > 1 and corners is None:
        check_numbering(slices, what)
    measured, placed = first.spacing is not None, first.orientation is not None and corners is not None
    down, across = first.spacing or (1.0, 1.0)
    row, column = np.reshape((first.orientation if placed else None) or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * across, column * down, np.cross(row, column)
    if corners is not None:
        affine[:3, 3] = corners[0]
    if len(slices) == 1 or corners is None:
        thickness = first.thickness if len(slices) == 1 else 0.0
        measured = measured and thickness > 0
        affine[:3, 2] *= thickness or 1
    else:
        problem = uneven(corners)
        if problem:
            raise ValueError(f"{what}: {problem}: slices are missing, or several acquisitions are mixed")
        affine[:3, 2] = (corners[-1] - corners[0]) / (len(slices) - 1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, measured, placed


def read_photograph(path: str | Path) -> np.ndarray:
    """Read a photograph, such as dermatology stores, as uint8 (H, W, 3).

    Raises ValueError, naming the file, for a damaged one, more than MAX_PIXELS, and colours that are not RGB of 8 bits
    or known to become it."""
    with reading(path), open(path, "rb") as file:
        dataset = open_dicom(Path(path), file)
        if dataset.Rows * dataset.Columns > MAX_PIXELS:
            raise ValueError(f"it has {dataset.Columns}x{dataset.Rows} pixels, expected at most {MAX_PIXELS}")
        kind = dataset.PhotometricInterpretation
        if kind not in COLOURS:
            raise ValueError(f"its colours are {kind}, expected one of {', '.join(COLOURS)}")
        pixels = dataset.pixel_array
        if kind == "PALETTE COLOR":
            pixels = optional("pydicom.pixels", NEEDED_BY).apply_color_lut(pixels, dataset)
            pixels = (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)  # most tables have 16 bits
        if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            raise ValueError(f"its colours have {dataset.BitsAllocated} bits, expected 8")
        return pixels
