"""Experts' masks beside predictions of images: how well they agree."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.base import BaseConfig
from datasets.isic import MASK_SUFFIX, list_images, parse_mask_values, read_mask
from inference.inputs import Input
from inference.prediction import Prediction
from utils.files import some


class Truth:
    """The masks of a folder for some inputs: files of the same stem, or STEM_segmentation as in ISIC.

    folder  of masks as in training: two values, or those of the config's classes
    config  the one that the network was trained under

    Raises ValueError for a network of volumes, and inputs without a mask or with several."""

    def __init__(self, folder: str | Path, inputs: Sequence[Input], config: BaseConfig):
        if config.of_volumes:
            raise ValueError(f"--truth {folder}: found a network for volumes, expected one for images")
        self.num_classes = config.num_classes
        self.mask_values = parse_mask_values(getattr(config, "mask_values", ()), config.num_classes)
        files = list_images(folder)
        self.files: dict[Input, Path] = {}
        for item in inputs:
            found = [*files.get(item.stem, []), *files.get(item.stem + MASK_SUFFIX, [])]
            if len(found) != 1:
                what = some(path.name for path in found) or "no mask"
                raise ValueError(f"--truth {folder}: found {what} for {item.path}, expected one mask of its name")
            self.files[item] = found[0]

    def read(self, item: Input, result: Prediction) -> np.ndarray:
        """Class numbers (H, W) of an input's mask. Raises ValueError if it has another size than the prediction."""
        mask = read_mask(self.files[item], self.num_classes, self.mask_values)[0].numpy()
        if mask.shape != result.mask.shape:
            sizes = ["{1}x{0}".format(*shape) for shape in (mask.shape, result.mask.shape)]
            raise ValueError(f"{self.files[item]} is {sizes[0]} but {item.path} is {sizes[1]} (width x height)")
        return (mask >= 128).astype(np.uint8) if self.num_classes == 1 else mask


def dice(prediction: np.ndarray, truth: np.ndarray, number: int) -> float | None:
    """Dice score of one class of two maps of class numbers; None where neither has it."""
    here, there = prediction == number, truth == number
    total = np.count_nonzero(here) + np.count_nonzero(there)
    return float(2 * np.count_nonzero(here & there) / total) if total else None
