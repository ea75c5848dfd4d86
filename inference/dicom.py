"""DICOM series: which files belong together, their values and where their slices lie. Read by pydicom.

Values are the stored numbers under the slope and intercept of each slice (or its lookup table), as floats. How an image
is to be displayed (MONOCHROME1, windows) changes nothing. Positions are DICOM's own, of each slice."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from datasets.files import check_numbers
from utils.files import reading, some

log = logging.getLogger("vmunet")

SLICE_TOLERANCE = 0.02  # of the distance between two slices, by which the others may differ
FEWEST = 3  # slices whose distances can be compared
NO_IMAGES = {  # modalities that have rows and columns, but no values of a scan
    "RTDOSE": "a dose",
    "SEG": "a segmentation",
    "PR": "a presentation state",
    "REG": "a registration",
    "KO": "a selection of keys",
}
HEADER = (  # what `find_series` must know
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "ImageType"),
)


class Slice(NamedTuple):
    """A DICOM file that holds an image, without its pixels."""

    path: Path
    header: Any  # pydicom.Dataset


class Series(NamedTuple):
    """Files that are one volume."""

    uid: str
    files: list[str]  # in the order of the slices


class Stack(NamedTuple):
    """What the files of a series hold."""

    values: np.ndarray  # (columns, rows, slices), float32
    affine: np.ndarray  # (4, 4) in NIfTI's directions, mm
    measured: bool  # whether the distances of voxels are known along all axes
    placed: bool  # whether it is known how the patient lies
    modality: str | None


def import_pydicom() -> ModuleType:
    """pydicom. Raises ValueError with the command that installs it."""
    try:
        import pydicom
        import pydicom.pixels
    except ModuleNotFoundError as error:
        raise ValueError("DICOM files need pydicom; pip install -r requirements-extra.txt") from error
    return pydicom


# ---- which files belong together


def find_series(files: Sequence[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """(series among the DICOM files of a folder, [(file that is in none, the reason)]), both in a fixed order.

    A series that was given one UID a slice, as some scanners and programs that remove names do, is put together again
    where study, frame of reference and geometry fit."""
    pydicom = import_pydicom()
    slices, left_out = [], []
    for path in files:
        try:
            with reading(path):
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
                reason = why_no_image(header)
                sort_key(header)
        except (ValueError, OSError) as error:
            left_out.append((path, f"is a damaged DICOM file: {error}"))
            continue
        if reason:
            left_out.append((path, reason))
        else:
            slices.append(Slice(path, header))
    groups: dict[tuple, list[Slice]] = {}
    for one in slices:
        groups.setdefault((str(one.header.get("SeriesInstanceUID", "")), *shape_of(one.header)), []).append(one)
    series = []
    for group in joined(list(groups.values())):
        ordered, copies = without_copies(sorted(group, key=lambda one: (sort_key(one.header), one.path.name)))
        left_out += copies
        uid = str(ordered[0].header.get("SeriesInstanceUID", "")) or "series"
        same = sum(other.uid.split("_")[0] == uid for other in series)  # of other sizes or directions
        series.append(Series(f"{uid}_{same + 1}" if same else uid, [str(one.path) for one in ordered]))
    return series, left_out


def why_no_image(header: Any) -> str | None:
    """Why a file is no slice of a scan; None if it is one."""
    modality = str(header.get("Modality", ""))
    if modality in NO_IMAGES:
        return f"holds {NO_IMAGES[modality]} (DICOM modality {modality}), expected an image"
    if not header.get("Rows") or not header.get("Columns"):
        kind = header.get("SOPClassUID")
        known = f" ({kind.name})" if kind is not None else ""
        return f"is a DICOM file without an image{known}, or is damaged"
    if int(header.get("NumberOfFrames") or 1) > 1:
        return (
            f"is a DICOM file of {header.NumberOfFrames} frames, expected a file for each slice; dcm2niix makes a "
            "NIfTI file of it"
        )
    return None


def shape_of(header: Any) -> tuple:
    """What the slices of a volume have in common."""
    orientation = header.get("ImageOrientationPatient") or ()
    directions = tuple(round(float(x), 3) + 0.0 for x in orientation)
    return int(header.Rows), int(header.Columns), directions


def sort_key(header: Any) -> tuple[float, float]:
    """(position along the slices' normal, number), which put slices in order."""
    position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    along = 0.0
    if position is not None and orientation is not None:
        rows, columns = np.reshape(np.array(orientation, dtype=float), (2, 3))
        along = float(np.dot(np.array(position, dtype=float), np.cross(rows, columns)))
    return round(along, 4), float(header.get("InstanceNumber") or 0)


def joined(groups: list[list[Slice]]) -> list[list[Slice]]:
    """Groups of one slice that fit each other become one; a warning names those that don't."""
    alone: dict[tuple, list[list[Slice]]] = {}
    for group in groups:
        if len(group) == 1:
            header = group[0].header
            names = [str(header.get(n, "")) for n in ("StudyInstanceUID", "FrameOfReferenceUID", "Modality")]
            spacing = tuple(round(float(mm), 4) for mm in header.get("PixelSpacing") or ())
            alone.setdefault((*names, *shape_of(header), spacing), []).append(group)
    several = [group for group in groups if len(group) > 1]
    single = []
    for key, found in alone.items():
        stack = sorted((group[0] for group in found), key=lambda one: sort_key(one.header))
        if len(stack) >= FEWEST and key[1] and are_even([one.header for one in stack]):
            folder = stack[0].path.parent
            log.warning(
                "%s: %d DICOM files with a series UID each are taken as one volume: they share study, frame of "
                "reference and directions, and lie at even distances",
                *(folder, len(stack)),
            )
            several.append(stack)
        else:
            single += found
    if len(single) > 1:
        names = some(group[0].path for group in single)
        log.warning("%d DICOM files are each a series of one slice, predicted on their own: %s", len(single), names)
    return sorted(several + single, key=lambda group: min(one.path for one in group))


def without_copies(slices: list[Slice]) -> tuple[list[Slice], list[tuple[Path, str]]]:
    """(slices, each once; [(file that is a copy of another, the reason)])."""
    kept: dict[tuple, Slice] = {}
    copies = []
    for one in slices:
        key = (str(one.header.get("SOPInstanceUID", one.path)), sort_key(one.header))
        if key in kept:
            copies.append((one.path, f"is a copy of {kept[key].path.name}, by its DICOM SOPInstanceUID"))
        else:
            kept[key] = one
    return list(kept.values()), copies


def corners_of(headers: Sequence[Any]) -> np.ndarray | None:
    """(slices, 3) positions of the first pixels; None if a slice has none."""
    positions = [header.get("ImagePositionPatient") for header in headers]
    if any(position is None or len(position) != 3 for position in positions):
        return None
    return np.array(positions, dtype=float)


def are_even(headers: Sequence[Any]) -> bool:
    corners = corners_of(headers)
    return corners is not None and uneven(corners) is None


def uneven(corners: np.ndarray) -> str | None:
    """What is wrong with the distances of slices; None if nothing is."""
    steps = np.diff(corners, axis=0)
    distances = np.linalg.norm(steps, axis=1)
    middle = np.median(distances)
    if middle == 0 or np.linalg.norm(steps - np.median(steps, axis=0), axis=1).max() > SLICE_TOLERANCE * middle:
        return f"found slices {distances.min():g} to {distances.max():g} mm apart, expected an even distance"
    return None


# ---- what they hold


def read_series(files: Sequence[str | Path]) -> Stack:
    """The Stack of files in the order of their slices. Raises ValueError that names the file for what can't be read,
    and for slices that are no volume."""
    pydicom = import_pydicom()
    headers, planes = [], []
    for path in files:
        with reading(path):
            dataset = pydicom.dcmread(path)
            reason = why_no_image(dataset)
            if reason:
                raise ValueError(f"{path} {reason}")
            planes.append(values_of(dataset, pydicom))
            for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
                if name in dataset:
                    del dataset[name]
        headers.append(dataset)
    what = Path(files[0]) if len(files) == 1 else Path(files[0]).parent
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        raise ValueError(f"{what} holds slices of different sizes: {some(sorted(shapes))}")
    check_numbers((*planes[0].shape, len(planes)), planes[0].dtype, str(what))
    affine, measured, placed = geometry_of_slices(headers, what)
    modality = str(headers[0].get("Modality", "")) or None
    return Stack(np.stack(planes).transpose(2, 1, 0), affine, measured, placed, modality)


def values_of(dataset: Any, pydicom: ModuleType) -> np.ndarray:
    """(rows, columns) float32: stored numbers, by the lookup table or the slope and intercept of this slice."""
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise ValueError("it holds colours, expected grey values")
    stored = dataset.pixel_array
    values = pydicom.pixels.apply_modality_lut(stored, dataset).astype(np.float32)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:  # outside the field of view; not where it is the lowest anyway
        ends = sorted((padding, dataset.get("PixelPaddingRangeLimit", padding)))
        outside = (stored >= ends[0]) & (stored <= ends[1])
        if not outside.all():
            values[outside] = np.minimum(values[outside], values[~outside].min())
    return values


def geometry_of_slices(headers: Sequence[Any], what: Path) -> tuple[np.ndarray, bool, bool]:
    """(affine, measured, placed), see Stack. Slices may follow each other askew, as under a tilted gantry."""
    first, corners = headers[0], corners_of(headers)
    spacings = {tuple(float(mm) for mm in header.get("PixelSpacing") or ()) for header in headers}
    if len({shape_of(header)[2] for header in headers}) > 1:
        raise ValueError(f"{what} holds slices of different directions, expected one volume")
    if np.ptp([spacing or (0, 0) for spacing in spacings], axis=0).max() > 1e-3:
        raise ValueError(f"{what} holds slices of different pixel spacings: {some(sorted(spacings))}")
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
