"""NIfTI: between stored arrays with an affine and volumes (S, H, W) in a known orientation.

Volumes are (S, H, W): slices, rows, columns. A spacing is in millimetres in the same order.
"""

from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform


def to_slices(array, affine, orientation):
    """A NIfTI array (i, j, k) with its affine (4, 4) to a volume (S, H, W) and its spacing in mm, in the same order.

    Axes are swapped and reversed, never resampled, so that columns, rows and slices point as close as the scan's own
    axes allow to the three directions in `orientation`, such as "LPS" (left, to the back, to the head)."""
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    turned = affine @ inv_ornt_aff(transform, array.shape)
    return apply_orientation(array, transform).transpose(2, 1, 0), voxel_sizes(turned)[::-1]


def from_slices(volume, affine, orientation):
    """The opposite of `to_slices`: a volume (S, H, W) as the array that fits `affine`."""
    transform = ornt_transform(axcodes2ornt(orientation), io_orientation(affine))
    return apply_orientation(volume.transpose(2, 1, 0), transform)


def affine_of_slices(spacing=None, z_spacing=1):
    """NIfTI's affine of a volume (S, H, W) that is known by its spacing only, (z_spacing, 1, 1) where that is None.

    Rows run to the back and columns to the left of the patient, as SimpleITK, which the original used, lays out arrays.
    """
    sz, sy, sx = (z_spacing, 1, 1) if spacing is None else (float(s) for s in spacing)
    return np.diag([-sx, -sy, sz, 1])  # NIfTI's axes point right, front, up


def write_nifti(folder, case, image, pred, label, spacing=None, z_spacing=1):
    """Writes <case>_pred.nii.gz, <case>_img.nii.gz and <case>_gt.nii.gz, float32 as published, and returns their paths.

    Without a known spacing the files get the published one, (z_spacing, 1, 1); see `affine_of_slices`.
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
