"""Predictions carry the names and colours of the training."""

import numpy as np
import torch
from PIL import Image

from inference.image_files import Picture
from inference.prediction import Prediction


def test_masks_and_overlays_have_the_colours_of_the_training(tmp_path):
    mask = np.array([[0, 1], [2, 2]], np.uint8)
    picture = Picture(torch.zeros(3, 2, 2, dtype=torch.uint8))
    given = ("#0a141e", "#ffffff")
    Prediction(mask, None, ["core", "edema"], picture, None, given).save(tmp_path, "a")
    with Image.open(tmp_path / "masks" / "a.png") as stored:
        assert stored.getpalette("RGB")[:9] == [0, 0, 0, 10, 20, 30, 255, 255, 255]
        assert np.array_equal(np.asarray(stored), mask)
    with Image.open(tmp_path / "overlays" / "a.png") as stored:
        overlay = np.asarray(stored)
    assert len({tuple(overlay[0, 1]), tuple(overlay[1, 1]), tuple(overlay[0, 0])}) == 3
    assert overlay[1, 1].min() > overlay[0, 1].max()
