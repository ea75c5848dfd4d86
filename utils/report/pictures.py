"""Pictures of a run's predictions, from the files of its folder, as addresses that hold them."""

import math
from pathlib import Path

import nibabel
import numpy as np

from utils.files import open_image, reading
from utils.plots import draw_class_outlines
from utils.report.page import data_uri
from utils.report.records import Record

MAX_VOXELS = 2**28  # of a volume: 1024 slices of 512 x 512


def overlay_of(run: Record, name: str) -> list[str]:
    """The overlay that the test saved of an image; of several classes with the outlines of the truth drawn into it.
    [] where it is not there."""
    overlay, truth = (run.file("predictions", f"{name}_{kind}.png") for kind in ("overlay", "truth"))
    if overlay is None:
        return []
    with open_image(overlay) as file:
        pixels = np.array(file.convert("RGB"))
    if truth is not None:
        with open_image(truth) as file:
            labels = np.array(file)
        check_labels(labels, pixels.shape[:2], run.num_classes, truth)
        pixels = draw_class_outlines(pixels.transpose(2, 0, 1), labels, run.class_colours)
    with reading(overlay):
        return [data_uri(pixels)]


def slices_of(run: Record, case: str, parts: tuple[float, ...]) -> list[tuple[int, list[str]]]:
    """[(number of a slice, [truth, prediction])] at these `parts` of those with labels, from the NIfTI files of the
    test; [] where they are not there."""
    paths = [run.file("predictions", f"{case}_{kind}.nii.gz") for kind in ("img", "gt", "pred")]
    found = [path for path in paths if path is not None]
    if len(found) < len(paths):
        return []
    image, truth, prediction = (read_volume(path) for path in found)
    for labels, path in ((truth, found[1]), (prediction, found[2])):
        check_labels(labels, image.shape, run.num_classes, path)
    labelled = np.flatnonzero((truth > 0).any((1, 2)))
    shown = []
    for part in parts:
        number = int(labelled[int(part * (len(labelled) - 1))]) if len(labelled) else int(part * (len(image) - 1))
        pixels = np.nan_to_num(image[number], posinf=0, neginf=0)
        drawn = [draw_class_outlines(pixels, labels[number], run.class_colours) for labels in (truth, prediction)]
        with reading(found[0]):
            shown.append((number, [data_uri(picture) for picture in drawn]))
    return shown


def read_volume(path: Path) -> np.ndarray:
    """A NIfTI file (S, H, W). Raises ValueError for what is no volume of numbers, or too large."""
    with reading(path):
        file = nibabel.Nifti1Image.from_filename(path)
        if len(file.shape) != 3 or not 0 < math.prod(file.shape) <= MAX_VOXELS:
            raise ValueError(f"its shape is {file.shape}, expected three axes and at most {MAX_VOXELS} voxels")
        if file.get_data_dtype().kind not in "biuf":
            raise ValueError(f"its values are {file.get_data_dtype()}, expected numbers")
        return np.asarray(file.dataobj).transpose(2, 1, 0)


def check_labels(labels: np.ndarray, shape: tuple[int, ...], num_classes: int, path: Path) -> None:
    """Raises ValueError unless these are class numbers of this shape."""
    if labels.shape != tuple(shape):
        raise ValueError(f"{path}: found labels of shape {labels.shape}, expected {tuple(shape)} as its image")
    highest = max(1, num_classes - 1)
    whole = labels.dtype.kind in "biu" or np.array_equal(labels, np.round(labels))
    if not whole or labels.min() < 0 or labels.max() > highest:
        raise ValueError(f"{path}: found values {labels.min()} to {labels.max()}, expected classes 0 to {highest}")
