"""Pictures of a run's predictions, from the files of its folder, as addresses that hold them."""

from pathlib import Path

import numpy as np

from utils.files import open_image, reading
from utils.plots import draw_class_outlines
from utils.report.page import data_uri
from utils.report.records import Record


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


def pictures_of_case(run: Record, case: str) -> list[str]:
    """The pictures that the test saved of a case: three planes, and its slices. [] where they are not there."""
    shown = []
    for kind in ("planes", "slices"):
        path = case_picture(run, case, kind)
        if path is not None:
            with open_image(path) as file:
                shown.append(data_uri(np.array(file.convert("RGB"))))
    return shown


def case_picture(run: Record, case: str, kind: str) -> Path | None:
    """The file of a case's picture, None if it is not there."""
    return run.file("predictions", f"{case}_{kind}.png")


def check_labels(labels: np.ndarray, shape: tuple[int, ...], num_classes: int, path: Path) -> None:
    """Raises ValueError unless these are class numbers of this shape."""
    if labels.shape != tuple(shape):
        raise ValueError(f"{path}: found labels of shape {labels.shape}, expected {tuple(shape)} as its image")
    highest = max(1, num_classes - 1)
    whole = labels.dtype.kind in "biu" or np.array_equal(labels, np.round(labels))
    if not whole or labels.min() < 0 or labels.max() > highest:
        raise ValueError(f"{path}: found values {labels.min()} to {labels.max()}, expected classes 0 to {highest}")
