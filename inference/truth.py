"""Compare predictions with experts' masks of images and labels of volumes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.image_reading import MASK_SUFFIX
from datasets.isic import list_images
from datasets.masks import VOID, MaskReader, parse_mask_values
from datasets.nifti import check_same_place, turned_affine
from datasets.volume_sources import CHANNEL, case_name
from datasets.volume_writing import whole_numbers
from inference.inputs import Input, format_of
from inference.prediction import Prediction
from inference.volume_inputs import Volume, read_volume
from utils.files import files_below, first_few, normal_name
from utils.volume import score_structure

LABEL_FORMATS = ("nifti", "itk")  # of files with the labels of a volume


class Truth:
    """The experts' masks of images, or labels of volumes, that belong to the inputs.

    path    a folder, whose file names match those of the inputs, or the file for a single input. Masks are as in
            training, named after the image: STEM or STEM_segmentation. Labels are NIfTI, MetaImage or NRRD files
            with the numbers of the network's masks; their names are paired as by datasets.prepare_volumes
    config  of the network's training

    Raises ValueError for inputs without a mask or with several."""

    def __init__(self, path: str | Path, inputs: Sequence[Input], config: Any):
        self.num_classes = config.num_classes
        self.ignore_label = getattr(config, "ignore_label", None)
        path = Path(path)
        self.files: dict[Input, Path] = {}
        masks = {} if path.is_file() or all(item.is_volume for item in inputs) else list_images(path)
        labels = labels_by_case(path) if any(item.is_volume for item in inputs) else {}
        for item in inputs:
            if path.is_file():
                found = [path] * (len(inputs) == 1)
            elif item.is_volume:
                case = case_name(Path(f"{item.stem}.nii"))
                match = None if case in labels else re.fullmatch(CHANNEL, case)
                found = [file for file in labels.get(match[1] if match else case, []) if file != item.path]
            else:
                found = [file for end in ("", MASK_SUFFIX) for file in masks.get(normal_name(item.stem) + end, [])]
            if len(found) != 1:
                what = first_few(file.name for file in found) or "no mask"
                raise ValueError(f"--truth {path}: found {what} for {item.path}, expected one mask of its name")
            self.files[item] = found[0]
        mask_values = parse_mask_values(getattr(config, "mask_values", ()), config.num_classes)
        images = [file for item, file in self.files.items() if not item.is_volume]
        self.masks = MaskReader(images, config.num_classes, mask_values, self.ignore_label)

    def read(self, item: Input, result: Prediction) -> np.ndarray:
        """Read an input's mask as class numbers in the shape of `result.classes`, VOID where the mask has none.

        Raises ValueError unless it has the prediction's size, labels and, of a volume, place in the patient."""
        if isinstance(result.source, Volume):
            return self._read_labels(item, result, result.source)
        mask = self.masks.read(self.files[item])[0].numpy()
        if mask.shape != result.classes.shape:
            sizes = ["{1}x{0}".format(*shape) for shape in (mask.shape, result.classes.shape)]
            raise ValueError(f"{self.files[item]}: found {sizes[0]} pixels, expected {sizes[1]} as in {item.path}")
        if self.num_classes == 1:
            return (mask >= 128).astype(np.uint8)
        return mask if self.ignore_label is None else np.where(mask == self.ignore_label, VOID, mask)

    def _read_labels(self, item: Input, result: Prediction, volume: Volume) -> np.ndarray:
        file = self.files[item]
        kind = str(format_of(file))
        if kind not in LABEL_FORMATS:
            raise ValueError(f"{file}: found no labels, expected a NIfTI, MetaImage or NRRD file")
        truth = read_volume(Input(file, kind), volume.orientation)
        found, expected = truth.slices.shape, volume.slices.shape
        if found != expected:
            raise ValueError(f"{file}: found {found} slices, rows and columns, expected {expected} as in {item.path}")
        check_same_place([affine_in_memory(one) for one in (volume, truth)], expected[::-1], (item.path, file))
        labels = whole_numbers(truth.slices, file)
        ignored = [] if self.ignore_label is None else [self.ignore_label]
        unknown = first_few(np.setdiff1d(labels, [*result.labels, *ignored]))
        if unknown:
            raise ValueError(f"{file}: found the labels {unknown}, expected those of the network: {result.labels}")
        classes = np.zeros(labels.shape, np.uint8)
        for number, label in enumerate(result.labels):
            classes[labels == label] = number
        classes[np.isin(labels, ignored)] = VOID
        return classes


def labels_by_case(folder: Path) -> dict[str, list[Path]]:
    """Return {case: its files of labels} in a folder and its subfolders."""
    files: dict[str, list[Path]] = {}
    for path in files_below(folder):
        if path.is_file() and path.name[0] != "." and format_of(path) in LABEL_FORMATS:
            files.setdefault(case_name(path), []).append(path)
    return files


def affine_in_memory(volume: Volume) -> np.ndarray:
    """Return the affine (4, 4) of (column, row, slice) as they lie in `volume.slices`."""
    return turned_affine(volume.affine, volume.orientation, volume.as_stored(volume.slices).shape)


def dice(prediction: np.ndarray, truth: np.ndarray, number: int) -> float | None:
    """Return the Dice score of one class in two maps of class numbers, without VOID in the truth; None if neither has
    the class."""
    predicted = (prediction == number) & (truth != VOID)
    score = score_structure(predicted, truth == number, distances=False)["dice_strict"]
    return None if np.isnan(score) else score
