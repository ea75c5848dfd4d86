import random

import numpy as np
import torch

from datasets.augmentation import StrongAugmentation, change_gamma, lower_resolution
from datasets.transforms import RandomGenerator
from utils.volume import zoom_nearest


class Never(random.Random):
    """Decisions that leave everything as it is."""

    def random(self):
        return 1.0


def disc(height=40, width=50):
    y, x = np.mgrid[:height, :width]
    label = ((y - 18) ** 2 + (x - 30) ** 2 < 81).astype(np.uint8)
    return np.float32(0.2) + np.float32(0.6) * label, label


def test_without_draws_it_is_the_zoom_of_a_test_slice():
    """The same corners and about the same values: a network is tested on what it has learned from."""
    image, label = disc()
    changed, target = StrongAugmentation(64)(image, label, Never(), np.random.RandomState(0))
    zoomed, expected = RandomGenerator(64)(image, label)
    assert changed.dtype == torch.float32 and changed.shape == (1, 64, 64) and target.dtype == torch.int64
    assert (changed - zoomed).abs().mean() < 0.01
    assert (target != expected).float().mean() < 0.02
    assert (target.numpy() != zoom_nearest(label[None], (64, 64))[0]).mean() < 0.02


def test_image_and_label_stay_together():
    """Bright where the label is, whatever was drawn, up to the pixels of the edge."""
    image, label = disc()
    augmentation, moved = StrongAugmentation(48), 0
    for seed in range(60):
        changed, target = augmentation(image, label, random.Random(seed), np.random.RandomState(seed))
        inside = target == 1
        assert changed.isfinite().all() and set(target.unique().tolist()) <= {0, 1}
        if inside.any():
            assert changed[0][inside].mean() > changed[0][~inside].mean() + 0.2
        moved += not torch.equal(target, StrongAugmentation(48)(image, label, Never(), np.random.RandomState(0))[1])
    assert moved > 40


def test_the_same_draws_give_the_same_slice():
    image, label = disc()
    first, second = (StrongAugmentation(32)(image, label, random.Random(7), np.random.RandomState(7)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    other = StrongAugmentation(32)(image, label, random.Random(8), np.random.RandomState(8))
    assert not torch.equal(first[0], other[0])


def test_gamma_keeps_mean_and_deviation_and_order():
    image = np.random.RandomState(0).rand(20, 20)
    for inverted in (False, True):
        changed = change_gamma(image, 1.4, inverted)
        np.testing.assert_allclose((changed.mean(), changed.std()), (image.mean(), image.std()))
        np.testing.assert_array_equal(changed.argsort(axis=None), image.argsort(axis=None))
    constant = np.ones((4, 4))
    assert change_gamma(constant, 1.4, False) is constant


def test_a_lower_resolution_keeps_size_and_mean():
    image = np.random.RandomState(0).rand(30, 20).astype(np.float32)
    lower = lower_resolution(image, 0.5)
    assert lower.shape == image.shape and abs(lower.mean() - image.mean()) < 0.02
    assert lower.std() < image.std()


def test_a_slice_of_one_row():
    image, label = np.ones((1, 9), np.float32), np.ones((1, 9), np.uint8)
    changed, target = StrongAugmentation(8)(image, label, random.Random(3), np.random.RandomState(3))
    assert changed.shape == (1, 8, 8) and target.shape == (8, 8)
