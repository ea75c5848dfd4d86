import json
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

from utils.volume import (
    SCORE_NAMES,
    describe_hd95,
    dice,
    dice_of_structures,
    hd95,
    is_missed,
    middle,
    pad_slices,
    predict_volume,
    score_case,
    score_structure,
    summarize_cases,
    zoom_cubic,
    zoom_nearest,
)


def blob(seed, shape=(12, 30, 26), level=0.15):
    """An irregular object, of several parts, touching the border of its volume."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return gaussian_filter(noise, 2) > level * gaussian_filter(noise, 2).max()


def single_voxel(shape=(12, 30, 26)):
    mask = np.zeros(shape, bool)
    mask[3, 5, 7] = True
    return mask


PAIRS = {
    "overlapping": (blob(0), blob(1)),
    "touching the border": (blob(0, level=-0.5), blob(1, level=-0.5)),
    "small in large": (single_voxel(), blob(2)),
    "far apart": (single_voxel(), single_voxel()[::-1, ::-1, ::-1]),
    "equal": (blob(3), blob(3)),
    "everything": (np.ones((4, 5, 6), bool), blob(4, (4, 5, 6))),
    "one slice": (blob(5)[:1], blob(6)[:1]),
    "two dimensions": (blob(7)[4], blob(8)[4]),
    "not contiguous": (blob(9)[::2, ::-1, 1::2], blob(10)[::2, ::-1, 1::2]),
}


@pytest.mark.parametrize("spacing", [None, (3.0, 0.7, 0.7)])
@pytest.mark.parametrize("pair", PAIRS)
def test_dice_and_hd95_equal_medpys(pair, spacing):
    binary = pytest.importorskip("medpy.metric.binary")
    pred, label = PAIRS[pair]
    spacing = spacing and spacing[-pred.ndim :]
    assert dice(pred, label) == pytest.approx(binary.dc(pred, label), rel=1e-12)
    assert hd95(pred, label, spacing) == pytest.approx(binary.hd95(pred, label, spacing), rel=1e-9, abs=1e-9)


def test_hd95_by_hand():
    """Two bars of three voxels, two apart: every surface distance is 2 voxels of 1.5 mm."""
    pred, label = np.zeros((2, 1, 5, 5), bool)
    pred[0, 1, 1:4] = label[0, 3, 1:4] = True
    assert hd95(pred, label) == 2
    assert hd95(pred, label, (5, 1.5, 1)) == 3
    with pytest.raises(ValueError, match="HD95.*label"):
        hd95(pred, np.zeros_like(pred))


def pair(scores, protocol):
    return scores[f"dice_{protocol}"], scores[f"hd95_{protocol}"]


def test_protocols_differ_where_something_is_empty():
    object_, empty = np.ones((4, 6, 12), bool), np.zeros((4, 6, 12), bool)
    assert pair(score_structure(object_, empty), "transunet") == (1, 0)
    assert pair(score_structure(empty, object_), "transunet") == (0, 0)
    assert pair(score_structure(empty, empty), "transunet") == (0, 0)
    diagonal = (4**2 + 6**2 + 12**2) ** 0.5
    for masks in ((object_, empty), (empty, object_)):
        assert pair(score_structure(*masks), "strict") == (0, pytest.approx(diagonal))
        assert pair(score_structure(*masks, (2, 2, 2)), "strict") == (0, pytest.approx(2 * diagonal))
    assert np.isnan(pair(score_structure(empty, empty), "strict")).all()
    with pytest.raises(ValueError, match=r"\(4, 6, 12\).*\(3, 6, 12\)"):
        score_case(empty, empty[1:], num_classes=2)


def test_names_of_scores_are_in_the_order_of_the_tables_columns():
    assert SCORE_NAMES == ("dice_transunet", "hd95_transunet", "dice_strict", "hd95_strict")


def test_case_and_set_are_scored_by_both_protocols():
    label = np.zeros((4, 8, 8), int)
    label[1:3, 1:4, 1:4], label[1:3, 5:7, 5:7] = 1, 2
    pred = np.where(label == 2, 3, label)  # class 1 right, class 2 taken for 3, class 4 nowhere
    diagonal = np.linalg.norm(label.shape)
    scored = score_case(pred, label, num_classes=5)
    np.testing.assert_array_equal(scored["dice_transunet"], [1, 0, 1, 0])
    np.testing.assert_array_equal(scored["hd95_transunet"], [0, 0, 0, 0])
    np.testing.assert_array_equal(scored["dice_strict"], [1, 0, 0, np.nan])
    np.testing.assert_array_equal(scored["hd95_strict"], [0, diagonal, diagonal, np.nan])

    summary = summarize_cases([scored, score_case(label, label, num_classes=5)])
    assert [c["dice_transunet"] for c in summary["classes"]] == [1, 0.5, 0.5, 0]
    assert summary["dice_transunet"] == 0.5
    assert dice_of_structures(summary, "abcd") == {
        "dice_transunet a": 1,
        "dice_transunet b": 0.5,
        "dice_transunet c": 0.5,
        "dice_transunet d": 0,
    }
    assert [c["dice_strict"] for c in summary["classes"]] == pytest.approx([1, 0.5, 0, np.nan], nan_ok=True)
    assert summary["dice_strict"] == pytest.approx(0.5)
    assert summary["hd95_strict"] == pytest.approx((0 + diagonal / 2 + diagonal) / 3)
    with pytest.raises(ValueError):
        summarize_cases([])


def test_without_distances_hd95_is_left_out_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    pred, label = rng.integers(0, 4, (2, 3, 6, 6))  # class 4 is nowhere
    label[label == 3] = 0
    every, dice_only = (score_case(pred, label, num_classes=5, distances=distances) for distances in (True, False))
    assert list(dice_only) == ["dice_transunet", "dice_strict"]
    for name, values in dice_only.items():
        np.testing.assert_array_equal(values, every[name])
    assert [*summarize_cases([dice_only])] == ["dice_transunet", "dice_strict", "classes"]


def test_a_known_spacing_counts_in_the_strict_protocol_only():
    pred, label = np.zeros((2, 3, 6, 6), int)
    pred[1, 1, 1], label[1, 4, 1] = 1, 1
    scored = score_case(pred, label, num_classes=2, spacing=np.array([5, 0.5, 1]))
    assert scored["hd95_transunet"] == [3]
    assert scored["hd95_strict"] == [1.5]


# ---- zoom


@pytest.mark.parametrize("size, target", [((40, 48), (32, 32)), ((20, 28), (32, 32)), ((512, 512), (224, 224))])
def test_zooms_equal_scipys_slice_by_slice(size, target):
    rng = np.random.default_rng(0)
    factors = [t / s for t, s in zip(target, size, strict=True)]
    images = rng.random((2, *size)).astype(np.float32)
    expected = np.stack([zoom(image, factors, order=3) for image in images])
    got = zoom_cubic(images, target)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-7)
    labels = rng.integers(0, 9, (2, *size))
    np.testing.assert_array_equal(
        zoom_nearest(labels, target), np.stack([zoom(image, factors, order=0) for image in labels])
    )


@pytest.mark.parametrize("n, m", [(32, 224), (54, 50), (99, 96), (7, 15)])
def test_zooms_have_scipys_border(n, m):
    """For some sizes, the first three here, scipy's last sample rounds past the end of the image and is 0."""
    ramp = np.arange(1.0, n + 1)[None, :, None] * np.ones(n)
    assert (zoom_nearest(ramp, (m, m))[0, -1] == 0).all() == (n != 7)
    for order, zoom_slices in ((3, zoom_cubic), (0, zoom_nearest)):
        np.testing.assert_allclose(zoom_slices(ramp, (m, m))[0], zoom(ramp[0], m / n, order=order), atol=1e-9)


# ---- a network on a volume


def test_a_class_that_was_missed_is_told_from_one_that_is_nowhere():
    some, none = np.zeros((4, 8, 8), bool), np.zeros((4, 8, 8), bool)
    some[1:3, 2:6, 2:6] = True
    moved = np.roll(some, 1, axis=2)
    cases = {"found": (moved, some), "missed": (none, some), "nowhere": (none, none), "invented": (some, none)}
    scores = {}
    for name, (pred, label) in cases.items():
        scores[name] = {key: values[0] for key, values in score_case(pred * 1, label * 1, 2).items()}
    assert [name for name in cases if is_missed(scores[name])] == ["missed"]
    assert scores["missed"]["hd95_transunet"] == 0  # as published
    assert describe_hd95([scores["found"]]) == "1.00"
    assert describe_hd95([scores["missed"], scores["nowhere"]]) == "missed"
    assert describe_hd95([scores[name] for name in cases]) == "1.00, missed in 1 of 2"
    assert describe_hd95([scores["nowhere"], scores["invented"]]) == ""


def small_network(classes=5):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, padding=2), torch.nn.Tanh(), torch.nn.Conv2d(8, classes, 1))


def published_prediction(model, image, patch_size):
    """The definition: slice by slice."""
    slices = []
    for x in image:
        factors = [p / s for p, s in zip(patch_size, x.shape, strict=True)]
        with torch.no_grad():
            logits = model(torch.from_numpy(zoom(x, factors, order=3))[None, None])
        slices.append(zoom(logits.softmax(1).argmax(1)[0].numpy(), [1 / f for f in factors], order=0))
    return np.stack(slices)


@pytest.mark.parametrize("shape", [(5, 40, 48), (5, 20, 28), (5, 32, 32)])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_of_slices_equal_one_by_one(shape, batch_size):
    image, model = np.random.default_rng(1).random(shape).astype(np.float32), small_network()
    before = image.copy()
    pred = predict_volume(model, image, (32, 32), batch_size=batch_size)
    assert pred.dtype == np.uint8
    np.testing.assert_array_equal(pred, published_prediction(model, image, (32, 32)))
    np.testing.assert_array_equal(image, before)


def test_an_image_is_predicted_at_its_own_size():
    image, model, seen = np.random.default_rng(2).random((40, 48)).astype(np.float32), small_network(), []
    pred = predict_volume(lambda x: seen.append(x.shape) or model(x), image, (32, 32))
    assert seen == [(1, 1, 40, 48)]
    np.testing.assert_array_equal(pred, model(torch.from_numpy(image)[None, None]).argmax(1)[0])


def test_logits_can_be_resized_before_the_argmax():
    """Labels zoomed back have blocks; a ramp of logits has its border where the two classes really meet."""

    def model(x):
        ramp = torch.linspace(-1, 1, 4).expand(len(x), 1, 4, 4)
        return torch.cat([-ramp + 0.4, ramp - 0.4], dim=1)

    image = np.zeros((2, 16, 16), np.float32)
    by_labels, by_logits = (predict_volume(model, image, (4, 4), volume_resize=way) for way in ("labels", "logits"))
    assert (by_labels.sum(-1) == 3).all()
    assert (by_logits.sum(-1) == (np.linspace(-1, 1, 16) > 0.4).sum()).all()


def channel(number):
    """A network whose logits are one of its channels, for class 1 against class 0."""
    return lambda x: torch.stack([0.5 - x[:, number], x[:, number] - 0.5], 1)


@pytest.mark.parametrize("fit", ["zoom", "pad"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_channels_are_the_neighbours_across_batches_and_at_the_ends(fit, batch_size):
    image = np.random.default_rng(3).integers(0, 2, (5, 32, 32)).astype(np.float32)
    for number, source in enumerate(([0, 0, 0, 1, 2], [0, 0, 1, 2, 3], range(5), [1, 2, 3, 4, 4], [2, 3, 4, 4, 4])):
        pred = predict_volume(channel(number), image, (32, 32), "cpu", batch_size, context=2, fit=fit)
        np.testing.assert_array_equal(pred, image[list(source)])


@pytest.mark.parametrize("shape", [(35, 51), (64, 64), (33, 90), (101, 70)])
def test_padded_slices_keep_their_pixels(shape):
    """A network sees at least the patch, larger slices at their own size; the mask lies where the slice was."""
    image, seen = np.random.default_rng(4).integers(0, 2, (3, *shape)).astype(np.float32), []
    network = channel(0)
    pred = predict_volume(lambda x: seen.append(x) or network(x), image, (64, 64), fit="pad")
    np.testing.assert_array_equal(pred, image)
    assert seen[0].shape == (3, 1, max(64, shape[0]), max(64, shape[1])) and seen[0].sum() == image.sum()
    np.testing.assert_array_equal(middle(pad_slices(image, (64, 64)), shape), image)


# ---- the original's numbers


@pytest.fixture
def golden(shared, monkeypatch):
    """The original's results on its three volumes, the volumes, and what it predicted."""
    monkeypatch.syspath_prepend(str(shared / "oracle"))
    import detgen

    numbers = json.loads((shared / "oracle/golden/losses_metrics.json").read_text(encoding="utf-8"))
    predicted = np.load(shared / "oracle/golden/test_single_volume.npz")
    volumes = {}
    for name in ("resized", "same_size", "upsized"):
        depth, h, w = numbers["test_single_volume"][name]["volume"]
        slices = [f"tsv_{name}/{i}" for i in range(depth)]
        image = np.stack([detgen.image(s, h, w, 1, 4096)[0] / 4096 for s in slices]).astype(np.float32)
        label = np.stack([detgen.labels(s, h, w) for s in slices])
        volumes[name] = image, label, predicted[f"pred_{name}"]
    yield numbers, volumes, detgen
    sys.modules.pop("detgen")


def test_scores_equal_the_originals(golden):
    numbers, volumes, _ = golden
    cases = []
    for name, (_, label, pred) in volumes.items():
        case = score_case(pred, label, num_classes=9)
        got = np.stack([case["dice_transunet"], case["hd95_transunet"]], axis=1)
        np.testing.assert_allclose(got, numbers["test_single_volume"][name]["metric_list"], rtol=1e-12)
        np.testing.assert_allclose(got.mean(0), numbers["test_single_volume"][name]["mean_dice_hd95"], rtol=1e-12)
        cases.append(case)
    summary = summarize_cases(cases)
    expected = numbers["synapse_val_one_epoch"]["mean_dice_hd95"]
    assert [summary["dice_transunet"], summary["hd95_transunet"]] == pytest.approx(expected, rel=1e-12)


def test_cases_equal_the_originals(golden):
    numbers, _, detgen = golden
    a, b = (np.stack([detgen.mask(f"{name}/{i // 3}", 20, 24) for i in range(6)]) for name in ("pcA", "pcB"))
    empty, voxel, other_voxel = np.zeros((3, *a.shape))
    voxel[2, 5, 7] = other_voxel[4, 15, 20] = 1
    pairs = {
        "a_vs_b": (a, b),
        "a_vs_a": (a, a),
        "a_vs_shift2": (a, np.roll(a, 2, axis=2)),
        "empty_pred": (empty, b),
        "empty_gt": (a, empty),
        "both_empty": (empty, empty),
        "voxel_vs_voxel": (voxel, other_voxel),
        "voxel_same": (voxel, voxel),
        "voxel_vs_a": (voxel, a),
        "full_vs_a": (np.ones_like(a), a),
    }
    for name, masks in pairs.items():
        got = pair(score_structure(*(mask > 0 for mask in masks)), "transunet")
        for dtype in ("bool", "uint8"):
            assert got == pytest.approx(numbers["calculate_metric_percase"]["dice_hd95"][f"{name}_{dtype}"], rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_way_through_the_network_equals_the_originals(golden, batch_size):
    """A network that answers what the original's did sees its input slices and gives its prediction."""
    numbers, volumes, detgen = golden
    for name, (image, label, pred) in volumes.items():
        # Where each of the patch's 32 rows and columns comes back in the prediction; shrinking loses some.
        rows, columns = (zoom(np.arange(32), n / 32, order=0) for n in pred.shape[1:])
        answers = np.zeros((len(pred), 32, 32), int)
        answers[np.ix_(range(len(pred)), rows, columns)] = pred
        answers = iter(torch.nn.functional.one_hot(torch.from_numpy(answers), 9).movedim(-1, 1).float())
        seen = []

        def network(x, answers=answers, seen=seen):
            seen.append(x)
            return torch.stack([next(answers) for _ in x])

        got = predict_volume(network, image, (32, 32), batch_size=batch_size)
        scored = score_case(got, label, num_classes=9)
        np.testing.assert_array_equal(got, pred)
        expected = numbers["test_single_volume"][name]
        np.testing.assert_allclose(scored["dice_transunet"], [d for d, _ in expected["metric_list"]], rtol=1e-12)
        checksum = detgen.checksum(seen[0][0].numpy())
        assert checksum["values"] == expected["first_zoomed_slice"]["values"]
        assert checksum["norm"] == pytest.approx(expected["first_zoomed_slice"]["norm"], rel=1e-12)
