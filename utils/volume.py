"""Evaluation of volumes: slices through the network, Dice and HD95 of each class.

Volumes are (S, H, W): slices, rows, columns. A spacing is in millimetres, in the same order.

Two protocols judge a class of a case, and both are always reported:
  transunet   the published one: prediction without ground truth (1, 0); otherwise, one or both empty, (0, 0);
              HD95 in voxels
  strict      both empty: not counted (NaN); one empty: Dice 0 and HD95 the diagonal of the volume;
              HD95 in millimetres where the spacing is known, else in voxels
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import zoom
from scipy.spatial import KDTree

SCORE_NAMES = ("dice_transunet", "hd95_transunet", "dice_strict", "hd95_strict")
HD95_NAMES = ("hd95_transunet", "hd95_strict")

Spacing = Sequence[float] | np.ndarray | None  # mm along each axis
Network = Callable[[torch.Tensor], torch.Tensor]


# ---- one object against another


def dice(pred: np.ndarray, label: np.ndarray) -> float:
    """Dice score of two boolean masks; 0 where both are empty."""
    total = np.count_nonzero(pred) + np.count_nonzero(label)
    return 2 * np.count_nonzero(pred & label) / total if total else 0.0


def hd95(pred: np.ndarray, label: np.ndarray, spacing: Spacing = None) -> float:
    """95th percentile of the distances between the surfaces of two boolean masks of equal shape, both ways pooled.

    Equals medpy's hd95 with connectivity 1, but finds the nearest surface voxel with a k-d tree, whose cost grows with
    the surfaces. The cost of medpy's distance transform grows with the box around both objects, which a single stray
    voxel can extend to the whole volume.
    """
    scale = np.ones(pred.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    points = []
    for name, mask in (("prediction", pred), ("label", label)):
        if not mask.any():
            raise ValueError(f"HD95 needs two objects, the {name} is empty")
        points.append(_surface_points(mask) * scale)
    # The trees are used once, and points on a grid are spread evenly: balancing would cost more than it saves.
    trees = [KDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    distances = [trees[1].query(points[0])[0], trees[0].query(points[1])[0]]
    return float(np.percentile(np.concatenate(distances), 95))


def _surface_points(mask: np.ndarray) -> np.ndarray:
    """Indices (n, ndim) of the voxels with a background neighbour across a face; outside the array is background."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(inside[0], inside[-1] + 1))
    mask = mask[tuple(box)]
    padded, interior = np.pad(mask, 1), mask.copy()
    for axis in range(mask.ndim):
        for neighbour in (slice(None, -2), slice(2, None)):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = neighbour
            interior &= padded[tuple(window)]
    return np.argwhere(mask & ~interior) + [s.start for s in box]


def calculate_metric_percase(
    pred: np.ndarray,
    label: np.ndarray,
    protocol: str = "transunet",
    spacing: Spacing = None,
    distances: bool = True,
) -> tuple[float, float]:
    """(Dice, HD95) of one class of one case. Masks are foreground where > 0, and are not changed.

    spacing    is used by the strict protocol only: the published one measures in voxels
    distances  False leaves HD95 out, as NaN, where it would have to be measured: that takes most of the time
    """
    if protocol not in ("transunet", "strict"):
        raise ValueError(f"unknown protocol {protocol!r}, expected 'transunet' or 'strict'")
    pred, label = np.asarray(pred) > 0, np.asarray(label) > 0
    if pred.shape != label.shape:
        raise ValueError(f"prediction and label differ in shape: {pred.shape} and {label.shape}")
    some_pred, some_label = pred.any(), label.any()
    if some_pred and some_label:
        distance = hd95(pred, label, spacing if protocol == "strict" else None) if distances else np.nan
        return dice(pred, label), distance
    if protocol == "transunet":
        return (1.0, 0.0) if some_pred else (0.0, 0.0)
    if not some_pred and not some_label:
        return np.nan, np.nan
    return 0.0, float(np.linalg.norm(np.multiply(pred.shape, 1 if spacing is None else spacing)))


# ---- one case


def score_case(
    pred: np.ndarray, label: np.ndarray, num_classes: int, spacing: Spacing = None, distances: bool = True
) -> dict[str, np.ndarray]:
    """Scores of a case by both protocols: for each of SCORE_NAMES an array with the values of class 1, 2, ...

    distances  False leaves HD95 out, as NaN: it takes most of the time"""
    rows = []
    for c in range(1, num_classes):
        masks = pred == c, label == c
        published = calculate_metric_percase(*masks, distances=distances)
        same = spacing is None and masks[0].any() and masks[1].any()  # the protocols differ in nothing
        strict = published if same else calculate_metric_percase(*masks, "strict", spacing, distances)
        rows.append((*published, *strict))
    scores = dict(zip(SCORE_NAMES, np.array(rows).T, strict=True))
    return scores if distances else scores | {name: np.full(len(rows), np.nan) for name in HD95_NAMES}


def evaluate_volume(
    model: Network,
    image: np.ndarray,
    label: np.ndarray,
    num_classes: int,
    patch_size: Sequence[int],
    spacing: Spacing = None,
    distances: bool = True,
    **options: Any,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Predicted labels of a case and its scores (`predict_volume`, which takes `options`, and `score_case`)."""
    pred = predict_volume(model, image, patch_size, **options)
    return pred, score_case(pred, label, num_classes, spacing, distances)


def summarize_cases(cases: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Mean scores over cases, then over classes, of what `score_case` returned for each; NaN is not counted.

    Returns SCORE_NAMES as floats, and under `classes` a list with the scores of class 1, 2, ... A score that is NaN in
    every case (strict, a class that is nowhere) stays NaN.
    """
    if not cases:
        raise ValueError("no scores without a case")
    by_class = {name: _mean_of_counted(np.array([case[name] for case in cases])) for name in SCORE_NAMES}
    summary: dict[str, Any] = {name: float(_mean_of_counted(values)) for name, values in by_class.items()}
    classes = range(len(by_class[SCORE_NAMES[0]]))
    summary["classes"] = [{name: float(values[c]) for name, values in by_class.items()} for c in classes]
    return summary


def _mean_of_counted(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without the NaNs; NaN where nothing is left."""
    counted = ~np.isnan(values)
    total, n = np.where(counted, values, 0).sum(0), counted.sum(0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


# ---- what was missed


def is_missed(scores: Mapping[str, float]) -> bool:
    """Whether a class was in the truth and nothing of it was predicted, or none of it in its place.

    The published protocol scores that as Dice 0 and HD95 0, like a class that is nowhere; strict tells them apart."""
    published = scores["dice_transunet"], scores["hd95_transunet"]
    return published == (0, 0) and scores.get("dice_strict", np.nan) == 0


def describe_hd95(cases: Iterable[Mapping[str, float]]) -> str:
    """Mean HD95 in voxels of a class over the cases where both truth and prediction have it, and how many missed it:
    "3.20", "missed", "3.20, missed in 1 of 4" (cases with the class), "" where no case tells."""
    cases = list(cases)
    missed = sum(map(is_missed, cases))
    strict = [scores.get("dice_strict", np.nan) for scores in cases]
    invented = [scores["dice_transunet"] == 1 and value == 0 for scores, value in zip(cases, strict, strict=True)]
    found = [
        scores["hd95_transunet"]
        for scores, value, only_predicted in zip(cases, strict, invented, strict=True)
        if not np.isnan(value) and not only_predicted and not is_missed(scores)
    ]
    if not found:
        return "missed" if missed else ""
    mean = f"{np.mean(found):.2f}"
    return f"{mean}, missed in {missed} of {missed + len(found)}" if missed else mean


# ---- slices through the network


@torch.inference_mode()
def predict_volume(
    model: Network,
    image: np.ndarray,
    patch_size: Sequence[int],
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    volume_resize: str = "labels",
) -> np.ndarray:
    """Labels, uint8 in the image's shape, of a volume (S, H, W), `batch_size` slices at a time.

    model          (B, 1, *patch_size) float32 -> logits (B, classes, *patch_size); switched to eval mode by the caller
    volume_resize  "labels": argmax, then nearest zoom back (published); "logits": bilinear resize back, then argmax
    Every slice is zoomed to `patch_size` (cubic). An image (H, W) is predicted at its own size, as published.
    """
    if volume_resize not in ("labels", "logits"):
        raise ValueError(f"unknown volume_resize {volume_resize!r}, expected 'labels' or 'logits'")
    if image.ndim == 2:
        return predict_volume(model, image[None], image.shape, device, batch_size, volume_resize)[0]
    size, patch_size = image.shape[1:], tuple(patch_size)
    batches = []
    for start in range(0, len(image), batch_size):
        slices = zoom_cubic(image[start : start + batch_size], patch_size).astype(np.float32)
        logits = model(torch.from_numpy(slices)[:, None].to(device))
        if volume_resize == "logits" and size != patch_size:
            # Corner-aligned, as the zoom that made the patch.
            logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=True)
        labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
        batches.append(zoom_nearest(labels, size))
    return np.concatenate(batches)


def zoom_cubic(slices: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """scipy.ndimage.zoom(order=3) of every slice of (S, h, w) to `size`, in the type of `slices`.

    The cubic zoom is linear and separable, so two matrices do it: one from the left, one from the right, in float64.
    """
    if slices.shape[1:] == tuple(size):
        return slices
    rows, columns = (_cubic_matrix(n, m) for n, m in zip(slices.shape[1:], size, strict=True))
    return (rows @ slices.astype(np.float64) @ columns.T).astype(slices.dtype)


def zoom_nearest(slices: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """scipy.ndimage.zoom(order=0) of every slice of (S, h, w) to `size`."""
    if slices.shape[1:] == tuple(size):
        return slices
    rows, columns = (_nearest_index(n, m) for n, m in zip(slices.shape[1:], size, strict=True))
    padded = np.pad(slices, ((0, 0), (1, 0), (1, 0)))
    return padded[:, rows][:, :, columns]


@cache
def _cubic_matrix(n: int, m: int) -> np.ndarray:
    """The matrix (m, n) of a cubic zoom from n to m samples: its columns are the zoomed unit vectors."""
    return np.stack([zoom(unit, m / n, order=3) for unit in np.eye(n)], axis=1)


@cache
def _nearest_index(n: int, m: int) -> np.ndarray:
    """For each of m samples its source among n, counted from 1; 0 where the zoom rounds past the end and gives zero."""
    return zoom(np.arange(1, n + 1), m / n, order=0)
