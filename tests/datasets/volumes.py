"""Small volumes with labels, in files as datasets.prepare_volumes finds them."""

import json

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from datasets.prepare_volumes import PrepareVolumes

SHAPE = (5, 6, 4)  # columns, rows, slices
DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def arrays(seed=0, low=0, high=400, labels=3):
    """Values and labels (i, j, k)."""
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, SHAPE).astype(np.int16), rng.integers(0, labels, SHAPE).astype(np.uint8)


def affine(spacing=(0.7, 0.8, 3.0)):
    """Columns to the left, rows to the back, slices to the head."""
    return np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])


def turned(array, codes, spacing=(0.7, 0.8, 3.0)):
    """The same scan in a file whose axes point to other directions, such as "RAS" or "PIR"."""
    image = nibabel.Nifti1Image(array, affine(spacing))
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def make_pairs(folder, cases=("pat1_a", "pat1_b", "pat2_a", "pat3_a"), **values):
    for seed, case in enumerate(cases):
        for kind, array in zip(("images", "labels"), arrays(seed, **values), strict=True):
            save(turned(array, "RAS" if seed % 2 else "LPS"), folder / kind / f"{case}.nii.gz")
    return folder


def options(folder, **changes):
    labels = str(folder / "labels") if (folder / "labels").is_dir() else None
    values = {"images": str(folder / "images"), "labels": labels, "out": str(folder / "out")} | changes
    return PrepareVolumes(**values)


def make_data_set(folder, labels, channels, several=False):
    """The folders of nnU-Net or MSD with three cases."""
    for seed in range(3):
        image, label = arrays(seed, -1000, 400)
        save(turned(image, "LPS"), folder / "imagesTr" / f"heart_{seed:03d}_0000.nii.gz")
        if several:
            save(turned(image * 2, "LPS"), folder / "imagesTr" / f"heart_{seed:03d}_0001.nii.gz")
        save(turned(label, "LPS"), folder / "labelsTr" / f"heart_{seed:03d}.nii.gz")
    (folder / "imagesTr" / "._heart_000_0000.nii.gz").write_text("made by a Mac")
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": channels}))
    return folder
