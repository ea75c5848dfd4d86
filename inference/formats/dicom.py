"""DICOM series: group files into series, and read their values and geometry with pydicom.

Values are rescaled per slice with slope and intercept (or the lookup table), as floats. Display settings (MONOCHROME1,
windows) are ignored. Positions are those of each slice."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.array_checks import check_numbers
from inference.formats import StoredVolume
from utils.files import first_few, reading
from utils.optional import optional

log = logging.getLogger("vmunet")

NEEDED_BY = "DICOM files"
SLICE_TOLERANCE = 0.02  # allowed deviation of a slice distance, as a fraction of the median distance
FEWEST_SLICES = 3  # slices whose distances can be compared
NO_IMAGES = {  # modalities with rows and columns, but without the values of a scan
    "RTDOSE": "a dose",
    "SEG": "a segmentation",
    "PR": "a presentation state",
    "REG": "a registration",
    "KO": "a selection of keys",
}
SERIES_TAGS = (  # what `find_series` reads
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "ImageType"),
)


class DicomSlice(NamedTuple):
    """A DICOM file that holds an image, without its pixels."""

    path: Path
    header: Any  # pydicom.Dataset


def find_series(files: Sequence[Path]) -> tuple[dict[str, tuple[str, ...]], list[tuple[Path, str]]]:
    """Group the DICOM files of a folder: ({series UID: files in the order of the slices}, [(other file, the reason)]).

    Some scanners and anonymisers give each slice a series UID of its own. Such slices are joined if study, frame of
    reference and geometry fit."""
    pydicom = optional("pydicom", NEEDED_BY)
    groups: dict[tuple, list[DicomSlice]] = {}
    excluded = []
    for path in files:
        try:
            with reading(path):
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(SERIES_TAGS))
                reason = why_no_image(header)
                sort_key(header)
        except (ValueError, OSError) as error:
            reason = f"is a damaged DICOM file: {error}"
        if reason:
            excluded.append((path, reason))
        else:
            key = (str(header.get("SeriesInstanceUID", "")), *shape_of(header))
            groups.setdefault(key, []).append(DicomSlice(path, header))
    series: dict[str, tuple[str, ...]] = {}
    for group in join_single_slices(list(groups.values())):
        unique: dict[tuple, DicomSlice] = {}
        for one in sorted(group, key=lambda one: (sort_key(one.header), one.path.name)):
            first = unique.setdefault((str(one.header.get("SOPInstanceUID", one.path)), sort_key(one.header)), one)
            if first is not one:
                excluded.append((one.path, f"is a copy of {first.path.name}, by its DICOM SOPInstanceUID"))
        ordered = list(unique.values())
        uid = str(ordered[0].header.get("SeriesInstanceUID", "")) or "series"
        names = itertools.chain([uid], (f"{uid}_{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in series)  # the same UID for other sizes or directions
        series[name] = tuple(str(one.path) for one in ordered)
    return series, excluded


def why_no_image(header: Any) -> str | None:
    """Return the reason why a file is no slice of a scan; None if it is one."""
    modality = str(header.get("Modality", ""))
    if modality in NO_IMAGES:
        return f"holds {NO_IMAGES[modality]} (DICOM modality {modality}), expected an image"
    if not header.get("Rows") or not header.get("Columns"):
        kind = header.get("SOPClassUID")
        return f"is a DICOM file without an image{f' ({kind.name})' if kind is not None else ''}, or is damaged"
    if int(header.get("NumberOfFrames") or 1) > 1:
        found = f"is a DICOM file of {header.NumberOfFrames} frames"
        return f"{found}, expected a file for each slice; dcm2niix makes a NIfTI file of it"
    return None


def shape_of(header: Any) -> tuple:
    """Return (rows, columns, directions), which the slices of a volume share."""
    orientation = header.get("ImageOrientationPatient") or ()
    directions = tuple(round(float(x), 3) + 0.0 for x in orientation)
    return int(header.Rows), int(header.Columns), directions


def sort_key(header: Any) -> tuple[float, float]:
    """Return (position along the slices' normal, number), by which slices are sorted."""
    position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    along = 0.0
    if position is not None and orientation is not None:
        rows, columns = np.reshape(np.array(orientation, dtype=float), (2, 3))
        along = float(np.dot(np.array(position, dtype=float), np.cross(rows, columns)))
    return round(along, 4), float(header.get("InstanceNumber") or 0)


def join_single_slices(groups: list[list[DicomSlice]]) -> list[list[DicomSlice]]:
    """Join groups of one slice that fit each other; a warning lists those that fit no other."""
    candidates: dict[tuple, list[DicomSlice]] = {}
    for group in groups:
        if len(group) == 1:
            header = group[0].header
            names = [str(header.get(n, "")) for n in ("StudyInstanceUID", "FrameOfReferenceUID", "Modality")]
            spacing = tuple(round(float(mm), 4) for mm in header.get("PixelSpacing") or ())
            candidates.setdefault((*names, *shape_of(header), spacing), []).append(group[0])
    result = [group for group in groups if len(group) > 1]
    single = []
    for key, slices in candidates.items():
        slices.sort(key=lambda one: sort_key(one.header))
        corners = corners_of([one.header for one in slices])
        if len(slices) >= FEWEST_SLICES and key[1] and corners is not None and uneven(corners) is None:
            text = "%s: %d DICOM files with a series UID each are joined to one volume, as study and geometry fit"
            log.warning(text, slices[0].path.parent, len(slices))
            result.append(slices)
        else:
            single += slices
    if len(single) > 1:
        names = first_few(one.path for one in single)
        log.warning("%d DICOM files are each a series of one slice, predicted one by one: %s", len(single), names)
    return sorted([*result, *([one] for one in single)], key=lambda group: min(one.path for one in group))


def corners_of(headers: Sequence[Any]) -> np.ndarray | None:
    """Return the positions (slices, 3) of the first pixels; None if a slice has none."""
    positions = [header.get("ImagePositionPatient") for header in headers]
    if any(position is None or len(position) != 3 for position in positions):
        return None
    return np.array(positions, dtype=float)


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
    pydicom = optional("pydicom", NEEDED_BY)
    headers, planes = [], []
    for path in files:
        with reading(path):
            dataset = pydicom.dcmread(path)
            reason = why_no_image(dataset)
            if reason:
                raise ValueError(f"{path} {reason}")
            planes.append(values_of(dataset))
            for name in {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
                del dataset[name]
        headers.append(dataset)
    what = Path(files[0]) if len(files) == 1 else Path(files[0]).parent
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        raise ValueError(f"{what} holds slices of different sizes: {first_few(sorted(shapes))}")
    check_numbers((*planes[0].shape, len(planes)), planes[0].dtype, str(what))
    affine, measured, placed = geometry_of_slices(headers, what)
    modality = str(headers[0].get("Modality", "")) or None
    return StoredVolume(np.stack(planes).transpose(2, 1, 0), affine, measured, placed, modality=modality)


def values_of(dataset: Any) -> np.ndarray:
    """Return the values (rows, columns) of a slice, float32, rescaled by its lookup table or slope and intercept."""
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise ValueError("it holds colours, expected grey values")
    stored = dataset.pixel_array
    values = optional("pydicom.pixels", NEEDED_BY).apply_modality_lut(stored, dataset).astype(np.float32)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:  # outside the field of view; not where it is the lowest anyway
        ends = sorted((padding, dataset.get("PixelPaddingRangeLimit", padding)))
        outside = (stored >= ends[0]) & (stored <= ends[1])
        if not outside.all():
            values[outside] = np.minimum(values[outside], values[~outside].min())
    return values


def geometry_of_slices(headers: Sequence[Any], what: Path) -> tuple[np.ndarray, bool, bool]:
    """Return (affine, measured, placed), see StoredVolume. Slices may be sheared, as under a tilted gantry."""
    first, corners = headers[0], corners_of(headers)
    spacings = {tuple(float(mm) for mm in header.get("PixelSpacing") or ()) for header in headers}
    if len({shape_of(header)[2] for header in headers}) > 1:
        raise ValueError(f"{what} holds slices of different directions, expected one volume")
    if np.ptp([spacing or (0, 0) for spacing in spacings], axis=0).max() > 1e-3:
        raise ValueError(f"{what} holds slices of different pixel spacings: {first_few(sorted(spacings))}")
    spacing, orientation = first.get("PixelSpacing"), first.get("ImageOrientationPatient")
    measured = spacing is not None and len(spacing) == 2 and min(map(float, spacing)) > 0
    placed = orientation is not None and len(orientation) == 6 and corners is not None
    down, across = map(float, spacing) if measured else (1.0, 1.0)
    row, column = np.reshape(np.array(orientation if placed else (1, 0, 0, 0, 1, 0), dtype=float), (2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * across, column * down, np.cross(row, column)
    if corners is not None:
        affine[:3, 3] = corners[0]
    if len(headers) == 1 or corners is None:
        thickness = float(first.get("SliceThickness") or 0) if len(headers) == 1 else 0.0
        measured = measured and thickness > 0
        affine[:3, 2] *= thickness or 1
    else:
        problem = uneven(corners)
        if problem:
            raise ValueError(f"{what}: {problem}: slices are missing, or several acquisitions are mixed")
        affine[:3, 2] = (corners[-1] - corners[0]) / (len(headers) - 1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, measured, placed
