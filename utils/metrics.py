"""Scores of segmentations: pixels are counted first, divided last.

Counts are int64 tensors (..., 4) of true positives, false positives, false negatives and true negatives. The original's
scores pool the pixels of the whole set; a zero denominator gives 0. Means over images have the suffix `_per_image`. For
a single image a zero denominator gives 1, as in the ISIC challenges (github.com/ImageMarkup/isic-challenge-scoring): an
empty mask that is predicted empty has no mistake. If such images were left out, each run would
average over different images.
"""

from collections.abc import Sequence
from typing import Any

import torch

from utils.errors import check_same_shape


def confusion_counts_per_image(prob: torch.Tensor, mask: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Return the counts of each image, (B, 4), from probabilities and masks of equal shape (B, ...).

    Foreground is prob >= threshold and mask >= 0.5. Boolean tensors are used as they are.
    """
    check_same_shape(prob, mask)
    pred, true = (prob >= threshold).flatten(1), (mask >= 0.5).flatten(1)
    tp, n_pred, n_true = (pred & true).sum(1), pred.sum(1), true.sum(1)
    fp, fn = n_pred - tp, n_true - tp
    return torch.stack([tp, fp, fn, pred.shape[1] - tp - fp - fn], dim=1)


def class_counts_per_image(
    pred: torch.Tensor, labels: torch.Tensor, num_classes: int, ignore_label: int | None = None
) -> torch.Tensor:
    """Return the counts of each class against all others, (B, num_classes, 4), from two (B, ...) of class numbers.

    ignore_label  pixels of this label are not counted"""
    check_same_shape(pred, labels, "labels")
    counted = labels != ignore_label if ignore_label is not None else torch.ones_like(labels, dtype=torch.bool)
    counts = [confusion_counts_per_image((pred == c) & counted, labels == c) for c in range(num_classes)]
    left_out = (~counted).flatten(1).sum(1)
    return torch.stack(counts, dim=1) - torch.stack([torch.zeros_like(left_out)] * 3 + [left_out], dim=1)[:, None]


def scores(counts: torch.Tensor, undefined: float = 0.0) -> dict[str, torch.Tensor]:
    """Return the scores of counts (..., 4) as float64 tensors (...) on the CPU. A new metric is a new entry.

    miou is the IoU of the foreground, dsc the Dice score (F1), named as in the paper's tables. A zero denominator gives
    `undefined`: 0, as in the original, and 1 for single images.
    """
    tp, fp, fn, tn = counts.cpu().double().unbind(-1)

    def ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return torch.where(whole > 0, part / whole.clamp(min=1), undefined)

    return {
        "miou": ratio(tp, tp + fp + fn),
        "dsc": ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
    }


def scores_of_image(counts: torch.Tensor) -> dict[str, float]:
    """Return the scores of one image as floats, from counts (4,) or (classes, 4): `dsc`, ... or `dsc_class0`, ..."""
    named = scores(counts, undefined=1.0)
    if counts.ndim == 1:
        return {name: value.item() for name, value in named.items()}
    return {f"{name}_class{c}": value for name, values in named.items() for c, value in enumerate(values.tolist())}


def counts_of_image(counts: torch.Tensor) -> dict[str, int]:
    """Return the counts of one image as integers, from (4,) or (classes, 4): `tp`, ... or `tp_class0`, ..."""
    if counts.ndim == 1:
        return dict(zip(("tp", "fp", "fn", "tn"), counts.tolist(), strict=True))
    return {f"{name}_class{c}": n for c, row in enumerate(counts) for name, n in counts_of_image(row).items()}


def summarize(counts: torch.Tensor) -> dict[str, Any]:
    """Return the scores of a set as floats, from the counts of its images.

    counts (images, 4): `miou`, `dsc`, ... over all pixels, and `miou_per_image`, ... as means over the images.
    counts (images, classes, 4): the same, each a mean over the classes 1, 2, ... without those that neither prediction
    nor labels contain. An image without any of these classes scores 1. With two classes, `_per_image` is as for
    one. `classes` is a list with the pooled scores of every class, also of class 0, the background.
    """
    if len(counts) == 0:
        raise ValueError("no scores without an image")
    pooled = counts.sum(0)
    if counts.ndim == 2:
        summary = {name: value.item() for name, value in scores(pooled).items()}
        return summary | {f"{name}_per_image": values.mean().item() for name, values in scores(counts, 1.0).items()}
    summary = {name: value.item() for name, value in _mean_over_classes(pooled, 0.0).items()}
    summary |= {f"{name}_per_image": values.mean().item() for name, values in _mean_over_classes(counts, 1.0).items()}
    by_class = scores(pooled)
    classes = [{name: values[c].item() for name, values in by_class.items()} for c in range(len(pooled))]
    return {**summary, "classes": classes}


def plain_scores(scores: dict) -> dict[str, float]:
    """Return the scores that are numbers, without the lists of single classes."""
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def dice_of_classes(summary: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return {"dsc <name>": Dice} of the classes 1, 2, ... in a result of `summarize`; {} for binary masks."""
    classes = zip(names, summary.get("classes", [])[1:], strict=False)
    return {f"dsc {name}": values["dsc"] for name, values in classes}


def _mean_over_classes(counts: torch.Tensor, undefined: float) -> dict[str, torch.Tensor]:
    """Return the mean scores (...) of counts (..., classes, 4) over the classes that occur, without the background;
    `undefined` if none does."""
    foreground = counts[..., 1:, :].cpu()
    occurs = foreground[..., :3].sum(-1) > 0
    number = occurs.sum(-1)
    return {
        name: torch.where(number > 0, (values * occurs).sum(-1) / number.clamp(min=1), undefined)
        for name, values in scores(foreground, undefined).items()
    }
