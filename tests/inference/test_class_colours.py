"""Predictions carry the names and colours of the training."""

import numpy as np
import pytest
import torch
from PIL import Image

from configs.config_setting import ISICConfig
from datasets.masks import parse_mask_values, read_mask
from inference.image_files import Picture
from inference.prediction import Prediction
from inference.trained import mask_values


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


@pytest.mark.parametrize("values", [("0", "128", "255"), ("255", "7", "0"), ("#0000ff", "#ff0000", "#00ff00")])
def test_masks_hold_the_values_of_the_masks_in_training(tmp_path, values):
    classes = np.array([[0, 1], [2, 2]], np.uint8)
    picture = Picture(torch.zeros(3, 2, 2, dtype=torch.uint8))
    config = ISICConfig(num_classes=3, mask_values=values)
    result = Prediction(classes, None, config.structures, picture, None, mask_values=mask_values(config))
    result.save(tmp_path, "a")
    parsed = parse_mask_values(values, 3)
    with Image.open(tmp_path / "masks" / "a.png") as stored:
        found = np.asarray(stored.convert("RGB"))
        expected = np.array([value if isinstance(value, tuple) else (value,) * 3 for value in parsed])
        np.testing.assert_array_equal(found, expected[classes])
        if isinstance(parsed[0], int):
            np.testing.assert_array_equal(np.asarray(stored), result.mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "masks" / "a.png", 3, parsed)[0], classes)
    labels = parsed[1:] if isinstance(parsed[0], int) else (1, 2)
    assert tuple(row["class"] for row in result.structures()) == labels


def test_binary_masks_stay_0_and_255(tmp_path):
    values = mask_values(ISICConfig(mask_values=("255", "0")))
    picture = Picture(torch.zeros(3, 1, 2, dtype=torch.uint8))
    Prediction(np.array([[0, 1]], np.uint8), None, ["a"], picture, None, mask_values=values).save(tmp_path, "a")
    with Image.open(tmp_path / "masks" / "a.png") as stored:
        assert np.asarray(stored).tolist() == [[0, 255]]
