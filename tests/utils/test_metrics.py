import json
import re

import pytest
import torch

from tests.ranks import run_in_two_processes
from utils.distributed import gather_rows
from utils.metrics import (
    class_counts_per_image,
    confusion_counts_per_image,
    counts_of_image,
    scores,
    scores_of_image,
    summarize,
)


def test_counts_of_four_pixels():
    prob, mask = torch.tensor([[[0.5, 0.9], [0.2, 0.499]]]), torch.tensor([[[1.0, 0.2], [0.5, 0.0]]])
    assert confusion_counts_per_image(prob, mask).sum(0).tolist() == [1, 1, 1, 1]
    assert confusion_counts_per_image(prob, mask, threshold=0.9).sum(0).tolist() == [0, 1, 2, 1]
    assert confusion_counts_per_image(prob > 0.1, mask > 0.1).sum(0).dtype == torch.int64


def test_scores_of_counts():
    got = {name: value.item() for name, value in scores(torch.tensor([2, 1, 3, 4])).items()}
    assert got == pytest.approx(dict(miou=2 / 6, dsc=4 / 8, accuracy=0.6, sensitivity=2 / 5, specificity=4 / 5))


@pytest.mark.parametrize("counts", [[0, 0, 0, 9], [9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0]])
def test_one_class_does_not_crash_and_an_empty_denominator_gives_zero(counts):
    tp, fp, fn, tn = counts
    got = scores(torch.tensor(counts))
    assert got["dsc"] == got["miou"] == got["sensitivity"] == (tp > 0)
    assert got["specificity"] == (tn > 0)


@pytest.mark.parametrize("case", ["normal", "empty_gt", "empty_pred", "threshold_edge"])
def test_scores_equal_the_originals(shared, case):
    golden = json.loads((shared / "oracle/golden/losses_metrics.json").read_bytes())["isic_val_one_epoch"]
    log = golden[f"{case}_epoch30"]["log"]
    tn, fp, fn, tp = (int(n) for n in re.findall(r"\d+", log.split("confusion_matrix")[1]))
    got = scores(torch.tensor([tp, fp, fn, tn]))
    for name in ("miou", "f1_or_dsc", "accuracy", "specificity", "sensitivity"):
        assert got[name.removeprefix("f1_or_")].item() == float(re.search(rf"{name}: ([\d.]+)", log)[1]), name


def test_pooled_pixels_and_mean_over_images_are_told_apart():
    masks, probs = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    masks[0], probs[0] = 1, 1  # a large lesion, found: Dice 1
    masks[1, 0, 0, 0] = probs[1, 0, 3, 3] = 1  # a small one, missed: Dice 0
    summary = summarize(confusion_counts_per_image(probs, masks))
    assert summary["dsc"] == pytest.approx(32 / 34)
    assert summary["dsc_per_image"] == pytest.approx(0.5)
    assert summary["miou_per_image"] == pytest.approx(0.5)


def test_classes_are_counted_one_against_the_rest():
    labels = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 0, 1]]])
    pred = torch.tensor([[[0, 1, 2, 2]], [[0, 0, 1, 1]]])
    counts = class_counts_per_image(pred, labels, num_classes=4)
    assert counts.shape == (2, 4, 4)
    assert counts[0].tolist() == [[1, 0, 0, 3], [1, 0, 1, 2], [1, 1, 0, 2], [0, 0, 0, 4]]
    summary = summarize(counts)
    assert [c["dsc"] for c in summary["classes"]] == pytest.approx([6 / 7, 4 / 6, 2 / 3, 0])
    assert summary["dsc"] == pytest.approx(2 / 3), "neither the background nor class 3, which is nowhere, is counted"
    assert summary["dsc_per_image"] == pytest.approx(2 / 3)
    assert summarize(counts[:, [0, 3]])["dsc"] == 0


def test_counts_need_equal_shapes_and_a_set_needs_images():
    with pytest.raises(ValueError, match=r"mask.*\(2, 1, 4, 4\).*\(2, 4, 4\)"):
        confusion_counts_per_image(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"labels.*\(2, 4\).*\(2, 3\)"):
        class_counts_per_image(torch.zeros(2, 4), torch.zeros(2, 3), 2)
    with pytest.raises(ValueError):
        summarize(torch.zeros(0, 4, dtype=torch.int64))


def gather_uneven_lists(rank):
    rows = gather_rows([f"rank {rank} row {i}" for i in range(2 - rank)])
    assert rows == ["rank 0 row 0", "rank 0 row 1", "rank 1 row 0"]


def test_every_rank_sees_all_rows():
    assert gather_rows([1, 2]) == [1, 2]
    run_in_two_processes(gather_uneven_lists)


def test_counts_of_an_image_are_named():
    assert counts_of_image(torch.tensor([1, 2, 3, 4])) == {"tp": 1, "fp": 2, "fn": 3, "tn": 4}
    by_class = counts_of_image(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert by_class["tp_class0"] == 1 and by_class["tn_class1"] == 8 and len(by_class) == 8


def test_ignored_pixels_are_not_counted():
    labels, pred = torch.tensor([[[0, 1, 2, 255]]]), torch.tensor([[[0, 1, 1, 2]]])
    counts = class_counts_per_image(pred, labels, 3, ignore_label=255)
    assert torch.equal(counts, class_counts_per_image(pred[..., :3], labels[..., :3], 3))
    assert counts.sum(-1).eq(3).all()


EMPTY, FOUND, ALL = [0, 0, 0, 16], [4, 0, 0, 12], [16, 0, 0, 0]
FALSE_ALARM, MISSED = [0, 3, 0, 13], [0, 0, 3, 13]


@pytest.mark.parametrize(
    "counts, dice, sensitivity, specificity",
    [(EMPTY, 1, 1, 1), (FOUND, 1, 1, 1), (ALL, 1, 1, 1), (FALSE_ALARM, 0, 1, 13 / 16), (MISSED, 0, 0, 1)],
)
def test_a_right_empty_mask_scores_1_as_in_the_challenge(counts, dice, sensitivity, specificity):
    got = scores_of_image(torch.tensor(counts))
    assert got["dsc"] == got["miou"] == dice
    assert (got["sensitivity"], got["specificity"]) == (sensitivity, specificity)


@pytest.mark.parametrize("images", [[EMPTY, MISSED], [EMPTY, EMPTY], [FALSE_ALARM, FOUND, ALL, EMPTY], [MISSED]])
def test_one_class_and_two_have_the_same_means_over_images(images):
    one = torch.tensor(images)
    two = torch.stack([one[:, [3, 2, 1, 0]], one], dim=1)  # the background counts the other way round
    single, double = summarize(one), summarize(two)
    assert {n: v for n, v in single.items() if n.endswith("_per_image")} == pytest.approx(
        {n: v for n, v in double.items() if n.endswith("_per_image")}
    )
    expected = [scores_of_image(image)["dsc"] for image in one]
    assert single["dsc_per_image"] == pytest.approx(sum(expected) / len(expected))
    assert single["dsc"] == double["dsc"] and (single["dsc"] > 0) == any(image[0] for image in images)  # as published


def test_several_classes_are_a_mean_over_those_of_the_image():
    nothing = [EMPTY, EMPTY]
    counts = torch.tensor(
        [[ALL, *nothing], [FOUND, FOUND, EMPTY], [FOUND, MISSED, FOUND], [FOUND, FALSE_ALARM, MISSED]]
    )
    assert summarize(counts)["dsc_per_image"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
