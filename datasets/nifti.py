"""NIfTI files: convert an array with its affine to a volume in a known orientation, and back.

Volumes are (S, H, W): slices, rows, columns. A spacing is in millimetres, in the same order.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from datasets.array_checks import check_numbers
from datasets.downloads import Download
from datasets.formats import StoredVolume
from utils.files import reading
from utils.optional import AtFirstUse

if TYPE_CHECKING:
    import nibabel as nibabel
else:

    def _accept_float32(nibabel):  # quaternions of valid files in float32; nibabel's own threshold is that of float64
        nibabel.Nifti1Header.quaternion_threshold = np.float64(-1e-5)

    # with pydicom, which it imports, half a second of every start; predictions of photographs do without
    nibabel = AtFirstUse("nibabel", _accept_float32)

STORED = "stored"  # in place of an orientation: the axes stay as they are in the file
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
BLOCK = 2**20  # bytes of each read on the way to a checksum
GEOMETRY = (  # fields of a header
    *("pixdim", "xyzt_units", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def to_slices(array: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """Convert a NIfTI array (i, j, k) with affine (4, 4) to a volume (S, H, W); return it and its spacing (3,) in mm.

    Axes are swapped and reversed, never resampled, so that columns, rows and slices point, as closely as the scan's
    axes allow, to the three directions in `orientation`, such as "LPS" (left, back, head)."""
    turned = nibabel.orientations.apply_orientation(array, turn_to(affine, orientation))
    return turned.transpose(2, 1, 0), voxel_sizes(turned_affine(affine, orientation, array.shape))[::-1]


def turn_to(affine: np.ndarray, orientation: str) -> np.ndarray:
    """Return nibabel's transform of an array (i, j, k) with this affine to an orientation."""
    found, expected = nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(orientation)
    return nibabel.orientations.ornt_transform(found, expected)


def turned_affine(affine: np.ndarray, orientation: str, shape: Sequence[int]) -> np.ndarray:
    """Return the affine of (column, row, slice) after `to_slices`, for an array (i, j, k) of this shape."""
    return affine @ nibabel.orientations.inv_ornt_aff(turn_to(affine, orientation), shape)


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Return the lengths of the axes in mm."""
    return nibabel.affines.voxel_sizes(affine)


def own_orientation(affine: np.ndarray) -> str:
    """Return the `orientation` with which `to_slices` leaves the axes unchanged."""
    return "".join(nibabel.orientations.aff2axcodes(affine))


def from_slices(volume: np.ndarray, affine: np.ndarray, orientation: str) -> np.ndarray:
    """Invert `to_slices`: return a volume (S, H, W) as the array (i, j, k) that belongs to `affine`."""
    found, stored = nibabel.orientations.axcodes2ornt(orientation), nibabel.orientations.io_orientation(affine)
    transform = nibabel.orientations.ornt_transform(found, stored)
    return nibabel.orientations.apply_orientation(volume.transpose(2, 1, 0), transform)


def affine_of_slices(spacing: Sequence[float] | np.ndarray | None = None, z_spacing: float = 1) -> np.ndarray:
    """Return an affine (4, 4) for a volume (S, H, W) of which only the spacing is known; None means (z_spacing, 1, 1).

    Rows run to the patient's back and columns to the left, as in the files that the original writes with SimpleITK."""
    sz, sy, sx = (z_spacing, 1, 1) if spacing is None else (float(s) for s in spacing)
    return np.diag([-sx, -sy, sz, 1])  # NIfTI's axes point right, front, up


def checked_affine(affine: npt.ArrayLike, what: object) -> np.ndarray:
    """Return an affine as float64 (4, 4); raise ValueError, naming `what`, unless it spans three axes."""
    with contextlib.suppress(TypeError, ValueError):
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape == (4, 4) and np.isfinite(matrix).all():
            axes = matrix[:3, :3]
            lengths = np.linalg.norm(axes, axis=0)
            if lengths.all() and abs(np.linalg.det(axes / lengths)) > 1e-3 and np.allclose(matrix[3], (0, 0, 0, 1)):
                return matrix
    raise ValueError(f"{what} has the affine {np.asarray(affine).tolist()}; expected (4, 4) that spans three axes")


def check_same_place(affines: Sequence[np.ndarray], shape: Sequence[int], files: Sequence[object]) -> None:
    """Raise ValueError, naming the two files, if a corner of their arrays (i, j, k) is more than half a voxel off."""
    corners = [(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))]
    apart = np.linalg.norm(((affines[0] - affines[1]) @ np.transpose(corners))[:3], axis=0).max()
    if apart > voxel_sizes(affines[0]).min() / 2:
        raise ValueError(f"{files[0]} and {files[1]} are up to {apart:.1f} mm apart, by their affines")


def read_nifti(file: Path | Download, channel: int | None = None) -> StoredVolume:
    """Read a NIfTI file, or one `channel` of four dimensions, as stored or, if it has a slope, float32.

    A compressed file is read to its end, where its checksum is. Raises ValueError that names the file."""
    with reading(str(file)), opened_nifti(file) as (nifti, stream, size):
        dtype, shape = nifti.get_data_dtype(), nifti.shape
        if dtype.fields:
            raise ValueError(f"found colours {dtype.names}, expected grey values")
        check_numbers(shape, dtype, str(file), size)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3, 4) or (len(shape) == 4 and channel is None):
            raise ValueError(f"{file} has the shape {shape}; expected three dimensions, or --channel for a fourth")
        if len(shape) == 4 and channel not in range(shape[3]):
            raise ValueError(f"--channel {channel}: {file} has the channels 0..{shape[3] - 1}")
        # one channel only: all channels may not fit into memory
        array = np.asarray(nifti.dataobj[..., channel]) if len(shape) == 4 else scaled(nifti.dataobj)
        while stream.read(BLOCK):
            pass
        array = array.reshape(shape[:3] if len(shape) > 2 else (*shape, 1))
        if array.dtype != dtype and array.dtype.kind == "f":  # scaled in float64
            array = array.astype(np.float32, copy=False)
        affine, header = affine_of(nifti.header), geometry_of(nifti.header)
        known: dict[str, Any] = {"header": header, "slope": float(nifti.dataobj.slope)}
        if affine is not None:
            return StoredVolume(array, checked_affine(affine, file), **known)
        sizes = np.where(header["pixdim"][1:4] > 0, header["pixdim"][1:4], 1) * mm_of_unit(header)
        return StoredVolume(array, affine_of_slices(sizes[::-1]), measured=False, placed=False, **known)


def scaled(stored: nibabel.arrayproxy.ArrayProxy) -> np.ndarray:
    """Return the values with slope and intercept, as nibabel does in float64, rounded to float32 plane by plane."""
    values = np.asarray(stored.get_unscaled())
    if (stored.slope, stored.inter) == (1, 0):
        return values
    result = np.empty(values.shape, np.float32, order="F")
    for k in range(values.shape[-1]):
        result[..., k] = values[..., k] * np.float64(stored.slope) + stored.inter
    return result


@contextlib.contextmanager
def opened_nifti(file: Path | Download) -> Iterator[tuple[Any, BinaryIO, int]]:
    """Yield a nibabel image, whose values are not read yet, the stream that they come from, and the file's size."""
    with open(file, "rb") if isinstance(file, Path) else io.BytesIO(file.read_bytes()) as stored:
        size = stored.seek(0, io.SEEK_END)
        stored.seek(0)
        compressed = stored.read(2) == GZIP
        stored.seek(0)
        with gzip.open(stored) if compressed else contextlib.nullcontext(stored) as stream:
            length = stream.read(4)  # of the header
            stream.seek(0)
            second = 540 in (int.from_bytes(length, "little"), int.from_bytes(length, "big"))
            yield (
                (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_stream(stream),
                cast(BinaryIO, stream),
                size,
            )


def read_affine(file: Path | Download) -> np.ndarray | None:
    """Return the affine of a NIfTI file as `affine_of` does, without reading its values."""
    with reading(str(file)), opened_nifti(file) as (nifti, _, _):
        return affine_of(nifti.header)


def affine_of(header: nibabel.Nifti1Header) -> np.ndarray | None:
    """Return the affine in mm; None if the file does not store an orientation."""
    mm = mm_of_unit(header)
    return np.diag([mm, mm, mm, 1.0]) @ header.get_best_affine() if says_orientation(header) else None


def tilt(affine: np.ndarray) -> float:
    """Return the largest angle, in degrees, between an axis of the array and the patient's nearest axis."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(axes).max(0), 0, 1))).max())


def mm_of_unit(header: nibabel.Nifti1Header) -> float:
    """Return the header's unit of length in mm; an unknown unit counts as mm, as in other readers."""
    return {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)


def says_orientation(header: nibabel.Nifti1Header) -> bool:
    """Return whether a file stores the orientation of the patient."""
    return header["sform_code"] > 0 or header["qform_code"] > 0


def header_of(affine: np.ndarray) -> nibabel.Nifti1Header:
    """Return a header with an affine in mm, as sform and, if its axes are at right angles, also as qform."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_zooms(voxel_sizes(affine))
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    axes = affine[:3, :3] / voxel_sizes(affine)
    if np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4:
        header.set_qform(affine, code="scanner")
    return header


def geometry_of(header: nibabel.Nifti1Header) -> nibabel.Nifti1Header:
    """Return a header with the geometry fields of another, unchanged. Readers then place a mask where they place the
    image, whether they use sform or qform."""
    copy = nibabel.Nifti1Header()
    for field in GEOMETRY:
        copy[field] = header[field]
    copy["pixdim"][4:] = 1
    return copy


def write_nifti(
    folder: str | Path,
    case: str,
    image: np.ndarray,
    pred: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float] | np.ndarray | None = None,
    z_spacing: float = 1,
) -> list[Path]:
    """Write <case>_pred.nii.gz, <case>_img.nii.gz and <case>_gt.nii.gz, float32 as published; return their paths.

    image, pred, label: volumes (S, H, W). Without a known spacing the files get the published one, (z_spacing, 1, 1).
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    affine = affine_of_slices(spacing, z_spacing)
    paths = []
    for kind, volume in (("pred", pred), ("img", image), ("gt", label)):
        array = np.asarray(volume, dtype=np.float32).transpose(2, 1, 0)
        nifti = nibabel.Nifti1Image(array, affine, header_of(affine))
        paths.append(Path(folder, f"{case}_{kind}.nii.gz"))
        nibabel.save(nifti, paths[-1])
    return paths
