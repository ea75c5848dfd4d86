"""NIfTI files: from an array with its affine to a volume in a known orientation, and back.

Volumes are (S, H, W): slices, rows, columns. A spacing is in millimetres, in the same order.
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform


def to_slices(array: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """A NIfTI array (i, j, k) with its affine (4, 4) to a volume (S, H, W) and its spacing in mm, in the same order.

    Axes are swapped and reversed, never resampled, so that columns, rows and slices point, as closely as the scan's own
    axes allow, to the three directions in `orientation`, such as "LPS" (left, back, head)."""
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    turned = affine @ inv_ornt_aff(transform, array.shape)
    return apply_orientation(array, transform).transpose(2, 1, 0), voxel_sizes(turned)[::-1]


def from_slices(volume: np.ndarray, affine: np.ndarray, orientation: str) -> np.ndarray:
    """The inverse of `to_slices`: a volume (S, H, W) as the array (i, j, k) that fits `affine`."""
    transform = ornt_transform(axcodes2ornt(orientation), io_orientation(affine))
    return apply_orientation(volume.transpose(2, 1, 0), transform)


def affine_of_slices(spacing: Sequence[float] | np.ndarray | None = None, z_spacing: float = 1) -> np.ndarray:
    """The affine (4, 4) of a volume (S, H, W) of which only the spacing is known, (z_spacing, 1, 1) where that is None.

    Rows run to the patient's back and columns to the left, as in the files that the original writes with SimpleITK.
    """
    sz, sy, sx = (z_spacing, 1, 1) if spacing is None else (float(s) for s in spacing)
    return np.diag([-sx, -sy, sz, 1])  # NIfTI's axes point right, front, up


def write_nifti(
    folder: str | Path,
    case: str,
    image: np.ndarray,
    pred: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float] | np.ndarray | None = None,
    z_spacing: float = 1,
) -> list[Path]:
    """Writes <case>_pred.nii.gz, <case>_img.nii.gz and <case>_gt.nii.gz, float32 as published, and returns their paths.

    image, pred, label: volumes (S, H, W). Without a known spacing the files get the published one, (z_spacing, 1, 1).
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    affine = affine_of_slices(spacing, z_spacing)
    paths = []
    for kind, volume in (("pred", pred), ("img", image), ("gt", label)):
        nifti = nibabel.Nifti1Image(np.asarray(volume, dtype=np.float32).transpose(2, 1, 0), affine)
        nifti.set_sform(affine, code="scanner")
        nifti.set_qform(affine, code="scanner")
        nifti.header.set_xyzt_units("mm")
        paths.append(Path(folder, f"{case}_{kind}.nii.gz"))
        nibabel.save(nifti, paths[-1])
    return paths
