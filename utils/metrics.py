"""Scores of segmentations: pixels are counted first, divided last.

Counts are int64 tensors (..., 4) of true positives, false positives, false negatives and true negatives. The original's
scores pool the pixels of the whole set; the mean over images stands beside them under the suffix `_per_image`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from utils.errors import check_same_shape


def confusion_counts_per_image(prob: torch.Tensor, mask: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Counts of each image, (B, 4), of probabilities and masks of equal shape (B, ...).

    A pixel is foreground where prob >= threshold, and in the mask where it is >= 0.5. Boolean input is taken as it is.
    """
    check_same_shape(prob, mask)
    pred, true = (prob >= threshold).flatten(1), (mask >= 0.5).flatten(1)
    tp, n_pred, n_true = (pred & true).sum(1), pred.sum(1), true.sum(1)
    fp, fn = n_pred - tp, n_true - tp
    return torch.stack([tp, fp, fn, pred.shape[1] - tp - fp - fn], dim=1)


def confusion_counts(prob: torch.Tensor, mask: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Counts of all pixels together, (4,)."""
    return confusion_counts_per_image(prob, mask, threshold).sum(0)


def class_counts_per_image(pred: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts of each class against all others in each image: class numbers (B, ...) twice -> (B, num_classes, 4)."""
    check_same_shape(pred, labels, "labels")
    counts = [confusion_counts_per_image(pred == c, labels == c) for c in range(num_classes)]
    return torch.stack(counts, dim=1)


def scores(counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores of counts (..., 4), float64 tensors (...) on the CPU. A zero denominator gives 0, as in the original.

    miou is the IoU of the foreground, dsc the Dice score (F1), as the paper's tables name them.
    """
    tp, fp, fn, tn = counts.cpu().double().unbind(-1)

    def ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return torch.where(whole > 0, part / whole.clamp(min=1), 0.0)

    return {
        "miou": ratio(tp, tp + fp + fn),
        "dsc": ratio(2 * tp, 2 * tp + fp + fn),
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
    }


def scores_of_image(counts: torch.Tensor) -> dict[str, float]:
    """Scores of one image as plain floats: from counts (4,), or from (classes, 4) under names such as `dsc_class1`."""
    named = scores(counts)
    if counts.ndim == 1:
        return {name: value.item() for name, value in named.items()}
    return {f"{name}_class{c}": value for name, values in named.items() for c, value in enumerate(values.tolist())}


def counts_of_image(counts: torch.Tensor) -> dict[str, int]:
    """The counts of one image as plain integers, from (4,) or (classes, 4): `tp`, ... or `tp_class0`, ..."""
    if counts.ndim == 1:
        return dict(zip(("tp", "fp", "fn", "tn"), counts.tolist(), strict=True))
    return {f"{name}_class{c}": n for c, row in enumerate(counts) for name, n in counts_of_image(row).items()}


def summarize(counts: torch.Tensor) -> dict[str, Any]:
    """Scores of a set from the counts of its images, as plain floats.

    counts (images, 4): `miou`, `dsc`, ... of all pixels pooled, and `miou_per_image`, ...: means over the images.
    counts (images, classes, 4): the same as means over the classes from 1 on (0 is the background), leaving out a class
    that neither prediction nor labels contain; under `classes` a list with the pooled scores of every class.
    """
    if len(counts) == 0:
        raise ValueError("no scores without an image")
    pooled = counts.sum(0)
    if counts.ndim == 2:
        summary = {name: value.item() for name, value in scores(pooled).items()}
        return summary | {f"{name}_per_image": values.mean().item() for name, values in scores(counts).items()}
    summary = _mean_over_classes(pooled)
    summary |= {f"{name}_per_image": value for name, value in _mean_over_classes(counts).items()}
    by_class = scores(pooled)
    classes = [{name: values[c].item() for name, values in by_class.items()} for c in range(len(pooled))]
    return {**summary, "classes": classes}


def dice_of_classes(summary: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """{"dsc <name>": Dice} of the classes 1, 2, ... in what `summarize` returned; {} of binary masks."""
    return {f"dsc {name}": of["dsc"] for name, of in zip(names, summary.get("classes", [])[1:], strict=False)}


def _mean_over_classes(counts: torch.Tensor) -> dict[str, float]:
    """Mean scores of counts (..., classes, 4) over all classes but the background that occur."""
    foreground = counts[..., 1:, :].cpu()
    occurs = foreground[..., :3].sum(-1) > 0
    return {name: values[occurs].mean().item() if occurs.any() else 0.0 for name, values in scores(foreground).items()}
