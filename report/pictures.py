"""Pictures of a run's predictions, from the files in its folder, as addresses that contain them."""

from pathlib import Path

import numpy as np

from report.page import data_uri
from report.records import Record
from utils.files import open_image, reading
from utils.plots import draw_class_outlines


def overlay_pictures(run: Record, name: str) -> list[str]:
    """Return the overlay that the test saved of an image, for several classes with the true outlines; [] without it."""
    overlay, truth = (run.file("predictions", f"{name}_{kind}.png") for kind in ("overlay", "truth"))
    if overlay is None:
        return []
    pixels = read_rgb(overlay)
    if truth is not None:
        with open_image(truth) as file:
            labels = np.array(file)
        highest, shape = max(1, run.num_classes - 1), pixels.shape[:2]
        if labels.shape != shape:
            raise ValueError(f"{truth}: found labels of shape {labels.shape}, expected {shape} as its image")
        if labels.min() < 0 or labels.max() > highest or not np.array_equal(labels, np.round(labels)):
            raise ValueError(f"{truth}: found {labels.min()} to {labels.max()}, expected classes 0 to {highest}")
        pixels = draw_class_outlines(pixels.transpose(2, 0, 1), labels, run.checked_config.structure_colours)
    with reading(overlay):
        return [data_uri(pixels)]


def case_file(run: Record, case: str, kind: str) -> Path | None:
    """Return the file of a case's picture, None if it is missing."""
    return run.file("predictions", f"{case}_{kind}.png")


def read_rgb(path: Path) -> np.ndarray:
    with open_image(path) as file:
        return np.array(file.convert("RGB"))
