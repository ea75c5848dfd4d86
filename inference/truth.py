"""Compare predictions of images with experts' masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.image_reading import MASK_SUFFIX
from datasets.isic import list_images
from datasets.masks import parse_mask_values, read_mask
from inference.inputs import Input
from inference.prediction import Prediction
from utils.files import first_few


class Truth:
    """The masks of a folder that belong to the inputs: files of the same stem, or STEM_segmentation as in ISIC.

    folder  of masks as in training: two values, or those of the config's classes
    config  of the network's training

    Raises ValueError for a network of volumes, and for inputs without a mask or with several."""

    def __init__(self, folder: str | Path, inputs: Sequence[Input], config: Any):
        if config.of_volumes:
            raise ValueError(f"--truth {folder}: found a network for volumes, expected one for images")
        self.num_classes = config.num_classes
        self.mask_values = parse_mask_values(getattr(config, "mask_values", ()), config.num_classes)
        files = list_images(folder)
        self.files: dict[Input, Path] = {}
        for item in inputs:
            found = [*files.get(item.stem, []), *files.get(item.stem + MASK_SUFFIX, [])]
            if len(found) != 1:
                what = first_few(path.name for path in found) or "no mask"
                raise ValueError(f"--truth {folder}: found {what} for {item.path}, expected one mask of its name")
            self.files[item] = found[0]

    def read(self, item: Input, result: Prediction) -> np.ndarray:
        """Read the class numbers (H, W) of an input's mask. Raises ValueError unless it has the prediction's size."""
        mask = read_mask(self.files[item], self.num_classes, self.mask_values)[0].numpy()
        if mask.shape != result.mask.shape:
            sizes = ["{1}x{0}".format(*shape) for shape in (mask.shape, result.mask.shape)]
            raise ValueError(f"{self.files[item]}: found {sizes[0]} pixels, expected {sizes[1]} as in {item.path}")
        return (mask >= 128).astype(np.uint8) if self.num_classes == 1 else mask


def dice(prediction: np.ndarray, truth: np.ndarray, number: int) -> float | None:
    """Return the Dice score of one class in two maps of class numbers; None if neither has the class."""
    predicted, expected = prediction == number, truth == number
    total = np.count_nonzero(predicted) + np.count_nonzero(expected)
    return float(2 * np.count_nonzero(predicted & expected) / total) if total else None
