"""NIfTI files: convert an array with its affine to a volume in a known orientation, and back.

Volumes are (S, H, W): slices, rows, columns. A spacing is in millimetres, in the same order.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

STORED = "stored"  # in place of an orientation: the axes stay as they are in the file
GEOMETRY = (  # fields of a header
    *("pixdim", "xyzt_units", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def to_slices(array: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """Convert a NIfTI array (i, j, k) with affine (4, 4) to a volume (S, H, W); return it and its spacing (3,) in mm.

    Axes are swapped and reversed, never resampled, so that columns, rows and slices point, as closely as the scan's
    axes allow, to the three directions in `orientation`, such as "LPS" (left, back, head)."""
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    turned = affine @ inv_ornt_aff(transform, array.shape)
    return apply_orientation(array, transform).transpose(2, 1, 0), voxel_sizes(turned)[::-1]


def own_orientation(affine: np.ndarray) -> str:
    """Return the `orientation` with which `to_slices` leaves the axes unchanged."""
    return "".join(aff2axcodes(affine))


def from_slices(volume: np.ndarray, affine: np.ndarray, orientation: str) -> np.ndarray:
    """Invert `to_slices`: return a volume (S, H, W) as the array (i, j, k) that belongs to `affine`."""
    transform = ornt_transform(axcodes2ornt(orientation), io_orientation(affine))
    return apply_orientation(volume.transpose(2, 1, 0), transform)


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
