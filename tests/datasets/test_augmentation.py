import random

import numpy as np
import pytest
import torch

from datasets.augmentation import CHANGES, StrongAugmentation, change_gamma, draw_gamma, lower_resolution
from datasets.transforms import RandomGenerator
from utils.volume import pad_slices, zoom_nearest


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
    image = np.random.RandomState(0).rand(2, 30, 20).astype(np.float32)
    lower = lower_resolution(image, 0.5)
    assert lower.shape == image.shape and abs(lower.mean() - image.mean()) < 0.02
    assert lower.std() < image.std()


@pytest.mark.parametrize("fit", ["zoom", "pad"])
def test_a_slice_of_one_row(fit):
    image, label = np.ones((1, 9), np.float32), np.ones((1, 9), np.uint8)
    changed, target = StrongAugmentation(8, fit)(image, label, Never(), np.random.RandomState(3))
    assert changed.shape == (1, 8, 8) and target.shape == (8, 8)
    assert target.any(1).sum() == (8 if fit == "zoom" else 1)


# ---- nnU-Net's numbers


def count(draw, seeds=6000):
    """How often a draw is true."""
    return np.mean([draw(random.Random(seed), np.random.RandomState(seed)) for seed in range(seeds)])


def test_values_are_changed_as_often_as_by_nnunet(monkeypatch):
    """Measured there, on one channel: the transforms' own probabilities times that of a channel (0.5 for two)."""
    nnunet = {"noise": 0.1, "blur": 0.1, "brightness": 0.15, "contrast": 0.15, "lower resolution": 0.125}
    nnunet |= {"gamma of the inverted image": 0.1, "gamma": 0.3}
    seen = []
    for name, (probability, _) in list(CHANGES.items()):
        monkeypatch.setitem(CHANGES, name, (probability, lambda image, rng, name=name: seen.append(name) or image))
    image, label = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8)
    count(lambda rng, np_rng: StrongAugmentation(2)(image, label, rng, np_rng) is None)
    assert list(CHANGES) == list(nnunet)
    for name, probability in nnunet.items():
        assert seen.count(name) / 6000 == pytest.approx(probability, abs=0.015), name


def test_shapes_are_changed_as_often_as_by_nnunet():
    """Rotated 1/5 by any angle, scaled 1/5 by factors of the source's coordinates, mirrored 1/2 along each axis."""

    def step(rng, np_rng):  # from one output pixel to the next, in source pixels
        grid = StrongAugmentation(4, "pad").draw_grid((4, 4), rng, np_rng)[0] * 2
        return (grid[0, 1] - grid[0, 0]).numpy(), (grid[1, 0] - grid[0, 0]).numpy()

    steps = np.array([step(random.Random(seed), np.random.RandomState(seed)) for seed in range(6000)])
    turned, lengths = abs(steps[:, 0, 1]) > 1e-3, np.linalg.norm(steps[:, 0], axis=1)
    scaled = lengths[abs(lengths - 1) > 1e-3]
    assert turned.mean() == pytest.approx(0.2, abs=0.015)
    assert len(scaled) / 6000 == pytest.approx(0.2, abs=0.015)
    assert 0.7 <= scaled.min() < 0.71 and 1.39 < scaled.max() <= 1.4 + 1e-6
    for axis in range(2):
        assert (steps[~turned, axis, axis] < 0).mean() == pytest.approx(0.5, abs=0.03)


def test_gamma_is_below_one_half_of_the_time():
    gammas = np.array([draw_gamma(np.random.RandomState(seed)) for seed in range(2000)])
    assert 0.7 <= gammas.min() and gammas.max() <= 1.5
    assert (gammas < 1).mean() == pytest.approx(0.5, abs=0.04)


# ---- several channels, slices at their own pixels


@pytest.mark.parametrize("fit", ["zoom", "pad"])
@pytest.mark.parametrize("augmentation", [StrongAugmentation, RandomGenerator])
def test_channels_change_alike(augmentation, fit, monkeypatch):
    monkeypatch.delitem(CHANGES, "noise")  # which is each channel's own
    image, label = disc()
    for seed in range(30):
        draws = random.Random(seed), np.random.RandomState(seed)
        changed, target = augmentation(48, fit)(np.stack([image] * 3), label, *draws)
        assert changed.shape == (3, 48, 48) and target.shape == (48, 48)
        assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])


@pytest.mark.parametrize("augmentation", [StrongAugmentation, RandomGenerator])
@pytest.mark.parametrize("shape", [(40, 51), (35, 64), (64, 64)])
def test_a_padded_slice_is_the_slice_in_the_middle_of_zeros(augmentation, shape):
    """As in validation and prediction, also where the zeros can't be as many on both sides."""
    image, label = disc(*shape)
    draws = (Never(), np.random.RandomState(0)) if augmentation is StrongAugmentation else ()
    padded, target = augmentation(64, "pad")(image, label, *draws)
    np.testing.assert_allclose(padded[0], pad_slices(image, (64, 64)), atol=1e-4)
    np.testing.assert_array_equal(target, pad_slices(label, (64, 64)))


class Still(random.Random):
    """Decisions by which RandomGenerator turns and flips nothing."""

    def random(self):
        return 0.4


@pytest.mark.parametrize(("augmentation", "decisions"), [(StrongAugmentation, Never), (RandomGenerator, Still)])
def test_of_a_larger_slice_a_random_window_is_taken(augmentation, decisions):
    image = np.arange(30 * 40, dtype=np.float32).reshape(30, 40) / 1200
    label, corners = np.arange(30 * 40).reshape(30, 40) % 251, set()
    for seed in range(200):
        window, target = augmentation(32, "pad")(image, label, decisions(), np.random.RandomState(seed))
        y, x = 0, round(1200 * window[0, 1, 0].item())  # one row of zeros above the slice, one below
        np.testing.assert_allclose(window[0, 1:31], image[y:, x : x + 32], atol=1e-4)
        np.testing.assert_array_equal(target[1:31], label[y:, x : x + 32])
        assert not window[0, [0, 31]].abs().gt(1e-4).any()
        corners.add(x)
    assert corners == set(range(9))
