import importlib
import json
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms import ISICTransform, RandomGenerator, grey, minmax, resize, rotate, run_angle


class Draws:
    """A generator that returns given numbers."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)

    def uniform(self, low, high):
        return low + (high - low) * self.values.pop(0)


def make_pair(height=20, width=30, seed=0):
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    mask = torch.from_numpy(rng.integers(0, 2, (1, height, width), dtype=np.uint8) * 255)
    return image, mask


@pytest.fixture(scope="module")
def torchvision_functional():
    importlib.import_module("models.torchvision_compat")
    return importlib.import_module("torchvision.transforms.functional")


# ---- ISIC


def test_minmax_stretches_all_channels_jointly():
    image = torch.tensor([[[50, 60]], [[70, 80]], [[90, 150]]], dtype=torch.uint8)
    expected = (image.double() - 50) / 100 * 255
    assert torch.equal(minmax(image), expected)


def test_constant_image_becomes_zero():
    image, mask = ISICTransform(4)(
        torch.full((3, 4, 4), 77, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.uint8)
    )
    assert torch.equal(image, torch.zeros(3, 4, 4)) and torch.equal(mask, torch.zeros(1, 4, 4))


def test_imagenet_normalisation():
    image, mask = make_pair(8, 8)
    normalized, _ = ISICTransform(8, normalization="imagenet")(image, mask)
    expected = (image[1].float() / 255 - 0.456) / 0.224
    torch.testing.assert_close(normalized[1], expected)


@pytest.mark.parametrize("size", [(16, 16), (15, 20), (21, 13), (40, 64)])
@pytest.mark.parametrize("angle", [0, 17.3, 45, 90, 180, 211.7, 359.99])
def test_rotation_is_torchvisions(torchvision_functional, size, angle):
    image = torch.rand(4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(image, angle), torchvision_functional.rotate(image, angle))


def test_quarter_turn_is_counter_clockwise():
    image = torch.rand(3, 8, 8, dtype=torch.float64)
    assert torch.equal(rotate(image, 90), image.rot90(1, (1, 2)))


@pytest.mark.parametrize("antialias", [False, True])
def test_resize_is_torchvisions(torchvision_functional, antialias):
    image = torch.rand(2, 30, 50, dtype=torch.float64)
    assert torch.equal(
        resize(image, 16, antialias=antialias), torchvision_functional.resize(image, [16, 16], antialias=antialias)
    )


def test_three_draws_decide_flips_and_rotation_in_this_order():
    image, mask = make_pair(16, 16)
    transform = ISICTransform(16, angle=90)
    plain, plain_mask = transform(image, mask)
    for draws, change in (
        ((0.4, 0.6, 0.6), lambda x: x.flip(2)),
        ((0.6, 0.4, 0.6), lambda x: x.flip(1)),
        ((0.6, 0.6, 0.4), lambda x: x.rot90(1, (1, 2))),
        ((0.5, 0.5, 0.5), lambda x: x),  # a draw of exactly one half changes nothing
        ((0.0, 0.0, 0.0), lambda x: x.flip(2).flip(1).rot90(1, (1, 2))),
    ):
        changed, changed_mask = transform(image, mask, Draws(*draws))
        assert torch.equal(changed, change(plain)) and torch.equal(changed_mask, change(plain_mask))


def test_angle_of_a_sample_is_the_fourth_draw():
    image, mask = make_pair(16, 16)
    turned = ISICTransform(16, angle=None)(image, mask, Draws(0.9, 0.9, 0.1, 0.25))
    assert torch.equal(turned[0], ISICTransform(16, angle=90)(image, mask, Draws(0.9, 0.9, 0.1))[0])


def test_angle_of_a_run_comes_from_its_seed():
    assert run_angle(42) == run_angle(42) != run_angle(43)
    assert all(0 <= run_angle(seed) <= 360 for seed in range(20))


def test_masks_soft_or_hard():
    image, mask = make_pair(20, 30)
    soft = ISICTransform(16)(image, mask)[1]
    hard = ISICTransform(16, mask_resize="nearest")(image, mask)[1]
    assert soft.dtype == torch.float32 and soft.shape == (1, 16, 16)
    assert len(soft.unique()) > 2 and soft.min() >= 0 and soft.max() <= 1
    assert set(hard.unique().tolist()) == {0.0, 1.0}


def test_class_ids_are_never_blended():
    image, _ = make_pair(20, 30)
    ids = torch.zeros(1, 20, 30, dtype=torch.uint8)
    ids[:, 5:, 10:] = 4
    target = ISICTransform(16, binary=False, angle=33.0)(image, ids, Draws(0, 0, 0))[1]
    assert target.dtype == torch.int64 and target.shape == (16, 16)
    assert target.unique().tolist() == [0, 4]


# ---- ISIC against the original


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "oracle" / "golden"
    images, masks = folder / "pipe" / "train" / "images" / "a.png", folder / "pipe" / "train" / "masks" / "a.png"
    image = torch.from_numpy(np.array(Image.open(images).convert("RGB"))).permute(2, 0, 1)
    mask = torch.from_numpy(np.array(Image.open(masks).convert("L")))[None]
    return image, mask, json.loads((folder / "pipeline.json").read_bytes()), np.load(folder / "pipeline.npz")


def float32_as(golden_array):
    return torch.from_numpy(golden_array.astype(np.float32))


def test_normalisation_is_the_originals(golden):
    image, _, facts, _ = golden
    expected = facts["after_normalize_totensor"]["image"]
    stretched = minmax(image).flatten()
    picks = np.unique(np.linspace(0, len(stretched) - 1, 8).astype(int))
    assert torch.allclose(stretched[picks], torch.tensor(expected["values"], dtype=torch.float64), rtol=0, atol=1e-12)
    assert abs(stretched.mean() - expected["mean"]) < 1e-9


@pytest.mark.parametrize("angle", ["0.0", "30.0", "90.0", "123.456", "270.0"])
def test_rotation_is_the_originals(golden, angle):
    image, mask, _, arrays = golden
    rotated = rotate(minmax(image), float(angle))[:, ::8, ::8].numpy()
    assert np.abs(rotated - arrays[f"rotate_{angle}"]).max() < 1e-12
    bits = np.packbits(rotate(mask.double(), float(angle)).numpy() > 0)
    assert np.array_equal(bits, arrays[f"rotate_mask_{angle}"])


@pytest.mark.parametrize("case", ["h1_v0_r0_0.0", "h0_v1_r0_0.0", "h1_v1_r1_30.0", "h0_v0_r1_123.456"])
def test_training_chain_is_the_originals(golden, case):
    image, mask, facts, arrays = golden
    flip, upside_down, turn, angle = case.split("_")
    draws = Draws(*(0.0 if text[1] == "1" else 0.9 for text in (flip, upside_down, turn)))
    result, target = ISICTransform(256, angle=float(angle))(image, mask, draws)
    assert torch.equal(result[:, ::8, ::8], float32_as(arrays[f"train_{case}"]))
    assert abs(target.double().mean() - facts["train_chain"][case]["mask"]["mean"]) < 1e-8


def test_seeded_draws_are_the_originals(golden):
    for run in golden[2]["train_transformer_seeded"]["runs"]:
        rng = random.Random(run["seed"])
        ISICTransform(8, angle=0.0)(*make_pair(8, 8), rng)
        expected = random.Random(run["seed"])
        assert [expected.random() for _ in range(3)] == run["draws"]
        assert rng.getstate() == expected.getstate()


def test_validation_item_is_the_originals(golden):
    image, mask, facts, arrays = golden
    result, target = ISICTransform(256, antialias=True)(image, mask)
    assert torch.equal(result[:, ::8, ::8], float32_as(arrays["val_image_stride8"]))
    assert torch.equal(target[:, ::8, ::8], float32_as(arrays["val_mask_stride8"]))
    assert abs(target.double().mean() - facts["val_item"]["mask"]["mean"]) < 1e-8


# ---- Synapse


def make_slice(size=24):
    rng = np.random.default_rng(0)
    return rng.random((size, size), dtype=np.float32), rng.integers(0, 9, (size, size), dtype=np.uint8)


def test_slice_without_generators_is_only_zoomed():
    image, label = make_slice()
    same_image, same_label = RandomGenerator(24)(image, label)
    assert np.array_equal(same_image[0].numpy(), image) and np.array_equal(same_label.numpy(), label)
    small_image, small_label = RandomGenerator(16)(image, label)
    assert small_image.shape == (1, 16, 16) and small_image.dtype == torch.float32
    assert small_label.shape == (16, 16) and small_label.dtype == torch.int64
    assert small_image[0, 0, 0] == pytest.approx(image[0, 0], abs=1e-6)  # corners stay corners
    assert small_label[-1, -1] == label[-1, -1]


def test_random_generator_turns_and_flips_both():
    image, label = make_slice()
    turned_image, turned_label = RandomGenerator(24)(image, label, Draws(0.9), np.random.RandomState(5))
    np_rng = np.random.RandomState(5)
    turns, axis = np_rng.randint(0, 4), np_rng.randint(0, 2)
    assert np.array_equal(turned_image[0].numpy(), np.flip(np.rot90(image, turns), axis))
    assert np.array_equal(turned_label.numpy(), np.flip(np.rot90(label, turns), axis))


@pytest.mark.parametrize("seed", range(10))
def test_random_generator_is_the_originals(shared, golden, monkeypatch, seed):
    monkeypatch.setattr(sys, "path", [str(shared / "oracle"), *sys.path])
    detgen = pytest.importorskip("detgen")
    _, _, facts, arrays = golden
    image = (detgen.image("syn", 64, 64, 1, 4096)[0] / 4096).astype(np.float32)
    label = detgen.labels("syn", 64, 64)
    result, target = RandomGenerator(56)(image, label, random.Random(seed), np.random.RandomState(seed))
    assert np.array_equal(result[0, ::4, ::4].numpy(), arrays[f"rg_img_{seed}"])
    assert np.array_equal(target[::2, ::2].numpy(), arrays[f"rg_lab_{seed}"])
    assert (
        torch.bincount(target.flatten(), minlength=9).tolist() == facts["RandomGenerator_56"][str(seed)]["label_counts"]
    )


# ---- one channel


def test_grey_is_what_pillow_makes_of_colours():
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(grey(image)[0].numpy(), expected)
    assert torch.equal(grey(image[:1].expand(3, -1, -1)), image[:1])


@pytest.mark.parametrize("normalization", ["minmax", "imagenet"])
def test_a_transform_for_one_channel_gives_one(normalization):
    image = torch.randint(0, 256, (1, 20, 24), dtype=torch.uint8).expand(3, -1, -1)
    mask = torch.zeros(1, 20, 24, dtype=torch.uint8)
    transform = ISICTransform(16, normalization=normalization, channels=1)
    result, target = transform(image, mask)
    assert result.shape == (1, 16, 16) and target.shape == (1, 16, 16)
    if normalization == "minmax":  # over all channels, which are equal
        torch.testing.assert_close(result, ISICTransform(16)(image, mask)[0][:1])


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="--input-channels 2"):
        ISICTransform(16, channels=2)
