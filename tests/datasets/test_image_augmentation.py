"""Strong augmentation of photographs: its parameters, shape, colours, and that nothing but the sample decides them."""

import random

import pytest
import torch

from datasets.demo import make_demo_isic
from datasets.image_augmentation import RANGES, StrongTransform, change_colours, draw_parameters
from datasets.loaders import build_isic_loader
from datasets.transforms import ISICTransform
from tests.tiny import isic_config
from utils.runs.batches import Batches

IDENTITY = dict(mirror=1, scale=1, aspect=1, brightness=1, contrast=1, saturation=1, red=1, green=1, blue=1, gamma=1)


def parameters(**changes):
    values = IDENTITY | changes
    return torch.tensor([[values.get(name, 0.0) for name in RANGES]])


def disc(size, x, y, radius=6):
    places = torch.arange(size) + 0.5
    return ((places - x) ** 2 + (places[:, None] - y) ** 2 < radius**2)[None]


def centroid(values):
    """(x, y) of the centre of mass of (H, W)."""
    places = torch.arange(len(values)) + 0.5
    return [float((values.sum(axis) * places).sum() / values.sum()) for axis in (0, 1)]


def test_parameters_keep_to_their_ranges_and_fill_them():
    drawn = torch.stack([draw_parameters(random.Random(f"42/1/{index}")) for index in range(2000)])
    for values, (low, high) in zip(drawn.T, RANGES.values(), strict=True):
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
    published = dict(scale=(0.7, 1.3), brightness=(0.8, 1.2), contrast=(0.75, 1.3), gamma=(0.8, 1.25))
    assert published.items() <= RANGES.items()


@pytest.mark.parametrize("changes", [{}, dict(normalization="imagenet"), dict(channels=1), dict(binary=False)])
def test_without_a_change_a_sample_is_that_of_validation(changes):
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
    mask = torch.randint(0, 2, (1, 24, 24), dtype=torch.uint8) * (255 if changes.get("binary", True) else 1)
    transform = StrongTransform(24, **changes)
    resized, target, _ = transform(image, mask, random.Random(0))
    found = transform.finish(resized[None], target[None], parameters())
    image, target = ISICTransform(24, **changes)(image, mask)
    scale = 255 if transform.normalization == "minmax" else 1
    # the published brightness of one channel is rounded to a whole number
    torch.testing.assert_close(found[0][0], image, atol=scale * (0.01 if transform.channels == 1 else 1e-4), rtol=0)
    assert torch.equal(found[1][0], target) and found[1].dtype == target.dtype


@pytest.mark.parametrize(
    "changes, place",
    [
        (dict(mirror=-1), (44, 16)),
        (dict(angle=torch.pi / 2), (16, 44)),
        (dict(shift_x=0.125, shift_y=-0.125), (12, 24)),
        (dict(scale=1.25), (17, 12)),
        (dict(scale=0.8), (22.4, 19.2)),
    ],
)
def test_the_mask_follows_the_image(changes, place):
    lesion = disc(64, 20, 16)
    image, mask = lesion.expand(3, -1, -1).byte() * 255, lesion.byte() * 255
    transform = StrongTransform(64)
    resized, target, _ = transform(image, mask, random.Random(0))
    images, targets = transform.finish(resized[None], target[None], parameters(**changes))
    assert centroid(images[0, 0]) == pytest.approx(place, abs=0.5)
    assert centroid(targets[0, 0]) == pytest.approx(place, abs=0.5)
    assert set(targets.unique().tolist()) == {0.0, 1.0}


def test_borders_are_reflected():
    ramp = torch.arange(8, dtype=torch.uint8).expand(3, 8, 8) * 30
    transform = StrongTransform(8)
    images, _ = transform.finish(ramp[None], torch.zeros(1, 1, 8, 8), parameters(shift_x=0.25))
    assert images[0, 0, 0].round().tolist() == pytest.approx([0, 51, 102, 153, 204, 255, 255, 204], abs=1)


def test_colours():
    image = torch.tensor((0.2, 0.5, 0.9)).view(1, 3, 1, 1)
    changed = {
        name: change_colours(image, drawn_colours(**{name: value})).flatten().tolist()
        for name, value in dict(brightness=1.2, saturation=0.0, red=1.1, gamma=2.0).items()
    }
    grey = 0.299 * 0.2 + 0.587 * 0.5 + 0.114 * 0.9
    expected = dict(brightness=[0.24, 0.6, 1], saturation=[grey] * 3, red=[0.22, 0.5, 0.9], gamma=[0.04, 0.25, 0.81])
    assert all(changed[name] == pytest.approx(expected[name]) for name in expected)
    pair = torch.tensor((0.25, 0.75)).expand(1, 3, 1, 2)
    contrast = change_colours(pair, drawn_colours(contrast=0.5))
    torch.testing.assert_close(contrast, torch.tensor((0.375, 0.625)).expand(1, 3, 1, 2))


def drawn_colours(**changes):
    return dict(zip(RANGES, parameters(**changes).T[:, :, None, None], strict=True))


def test_seed_epoch_and_sample_decide(tmp_path):
    folder = make_demo_isic(tmp_path / "isic", size=40, train=9, val=2)

    def epoch(number, **changes):
        loader = build_isic_loader(isic_config(folder, augmentation="strong", **changes), "train")
        batches, found = Batches(loader, number), {}
        for images, targets, names, *drawn in batches:
            finished = batches.finish(images, targets, *drawn)
            found |= {name: pair for name, *pair in zip(names, *finished, strict=True)}
            batches.record(0.0)
        return found

    first = epoch(1)
    for found in (epoch(1), epoch(1, num_workers=2), epoch(1, batch_size=3)):
        for name, (image, target) in first.items():
            torch.testing.assert_close(found[name][0], image)
            assert torch.equal(found[name][1], target)
    for other in (epoch(2), epoch(1, seed=43)):
        assert not any(torch.equal(other[name][0], image) for name, (image, _) in first.items())
    image, target, _ = next(iter(build_isic_loader(isic_config(folder, augmentation="strong"), "val")))
    expected = next(iter(build_isic_loader(isic_config(folder), "val")))
    assert torch.equal(image, expected[0]) and torch.equal(target, expected[1])
