"""Evaluation of volumes: slices through the network, Dice and HD95 of each class.

Volumes are (S, H, W): slices, rows, columns. A spacing is in millimetres, in the same order.

Two protocols score a class of a case, and both are always reported:
  transunet   the published one: a prediction without ground truth (1, 0); otherwise, one or both empty, (0, 0);
              HD95 in voxels
  strict      both empty: not counted (NaN); one empty: Dice 0 and HD95 the diagonal of the volume;
              HD95 in millimetres if the spacing is known, else in voxels
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F

from utils.errors import check_same_shape

Spacing = Sequence[float] | np.ndarray | None  # mm along each axis
Network = Callable[[torch.Tensor], torch.Tensor]


def dice(pred: np.ndarray, label: np.ndarray) -> float:
    """Return the Dice score of two boolean masks; 0 if both are empty."""
    total = np.count_nonzero(pred) + np.count_nonzero(label)
    return 2 * np.count_nonzero(pred & label) / total if total else 0.0


def hd95(pred: np.ndarray, label: np.ndarray, spacing: Spacing = None) -> float:
    """Return the 95th percentile of the distances between the surfaces of two boolean masks, both directions pooled.

    Equals medpy's hd95 with connectivity 1, but finds the nearest surface voxel with a k-d tree, whose cost grows with
    the surfaces. The cost of medpy's distance transform grows with the box around both objects, which a single stray
    voxel can extend to the whole volume.

    Raises ValueError if one mask is empty.
    """
    scale = np.ones(pred.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    points = []
    for name, mask in (("prediction", pred), ("label", label)):
        if not mask.any():
            raise ValueError(f"HD95: found an empty {name}, expected two objects")
        points.append(_surface_points(mask) * scale)
    # Each tree is used once and points on a grid are spread evenly, so balancing costs more than it saves.
    trees = [scipy.spatial.KDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    distances = [trees[1].query(points[0])[0], trees[0].query(points[1])[0]]
    return float(np.percentile(np.concatenate(distances), 95))


def _surface_points(mask: np.ndarray) -> np.ndarray:
    """Return the indices (n, ndim) of voxels with a background neighbour across a face; outside is background."""
    (box,) = scipy.ndimage.find_objects(mask.astype(np.uint8))
    mask = mask[box]
    padded, interior = np.pad(mask, 1), mask.copy()
    for axis in range(mask.ndim):
        for neighbour in (slice(None, -2), slice(2, None)):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = neighbour
            interior &= padded[tuple(window)]
    return np.argwhere(mask & ~interior) + [s.start for s in box]


def score_structure(
    pred: np.ndarray, label: np.ndarray, spacing: Spacing = None, distances: bool = True
) -> dict[str, float]:
    """Return every score of one structure of one case, from two boolean masks. A further metric is a further entry.

    distances  False leaves out HD95, which takes most of the time
    """
    some_pred, some_label = pred.any(), label.any()
    overlap, voxels, strict = dice(pred, label), 0.0, np.nan
    if distances and some_pred and some_label:
        voxels = hd95(pred, label)
        strict = voxels if spacing is None else hd95(pred, label, spacing)
    elif some_pred or some_label:
        strict = float(np.linalg.norm(np.multiply(pred.shape, 1 if spacing is None else spacing)))
    scores = {
        "dice_transunet": 1.0 if some_pred and not some_label else overlap,
        "hd95_transunet": voxels,
        "dice_strict": overlap if some_pred or some_label else np.nan,
        "hd95_strict": strict,
    }
    return {name: value for name, value in scores.items() if distances or not name.startswith("hd95")}


SCORE_NAMES = tuple(score_structure(*np.zeros((2, 1), bool)))


def score_case(
    pred: np.ndarray, label: np.ndarray, num_classes: int, spacing: Spacing = None, distances: bool = True
) -> dict[str, np.ndarray]:
    """Return the scores of a case: for each name in `score_structure` an array with the values of class 1, 2, ...

    pred, label  class numbers (S, H, W); ValueError if their shapes differ
    """
    check_same_shape(pred, label, "label")
    structures = [score_structure(pred == c, label == c, spacing, distances) for c in range(1, num_classes)]
    return {name: np.array([scores[name] for scores in structures]) for name in structures[0]}


def summarize_cases(cases: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return the mean scores over cases, then over classes, of the results of `score_case`. NaN is not counted.

    The means are floats under the scores' names; `classes` is a list with the scores of class 1, 2, ... A score that is
    NaN in every case (strict, a class that is nowhere) stays NaN.
    """
    if not cases:
        raise ValueError("no scores without a case")
    by_class = {name: _mean_without_nan(np.array([case[name] for case in cases])) for name in cases[0]}
    summary: dict[str, Any] = {name: float(_mean_without_nan(values)) for name, values in by_class.items()}
    rows = zip(*by_class.values(), strict=True)
    summary["classes"] = [dict(zip(by_class, map(float, row), strict=True)) for row in rows]
    return summary


def dice_of_structures(summary: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return {"dice_transunet <name>": Dice} of the classes 1, 2, ... in a result of `summarize_cases`."""
    classes = zip(names, summary["classes"], strict=True)
    return {f"dice_transunet {name}": scores["dice_transunet"] for name, scores in classes}


def case_row(case: str, patient: str, values: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Return a row of test_volumes.csv: each score of each structure."""
    columns = {f"{score} {name}": values[score][i] for i, name in enumerate(names) for score in SCORE_NAMES}
    return {"name": case, "patient": patient, **columns}


def unit_of_distances(measured: Sequence[bool]) -> str:
    """Return the unit of the strict HD95, from whether the spacing of each volume is known."""
    if all(measured):
        return "mm"
    return "mm, or voxels where the spacing is not known" if any(measured) else "voxels"


def describe_scores(scores: dict[str, Any], rows: Sequence[tuple], names: Sequence[str], unit: str) -> list[str]:
    """Return the lines of a test's log: both protocols, then each structure. `rows` are (case, scores) pairs."""
    lines = [
        f"{protocol} protocol: Dice {scores[f'dice_{protocol}']:.4f}, HD95 {scores[f'hd95_{protocol}']:.2f} {of}"
        for protocol, of in (("transunet", "voxels"), ("strict", unit))
    ]
    for number, (name, structure) in enumerate(zip(names, scores["classes"], strict=True)):
        hd95 = describe_hd95([{score: values[score][number] for score in SCORE_NAMES} for _, values in rows])
        published = f"{structure['hd95_transunet']:.2f}"
        remark = f" (published protocol {published})" if hd95 != published else ""
        lines.append(f"  {name:15} Dice {structure['dice_transunet']:.4f}, HD95 {hd95 or 'not defined'}{remark}")
    return lines


def _mean_without_nan(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis without NaNs; NaN if there is nothing else."""
    counted = ~np.isnan(values)
    total, n = np.where(counted, values, 0).sum(0), counted.sum(0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def is_missed(scores: Mapping[str, float]) -> bool:
    """Return whether a structure exists in the truth and the prediction overlaps none of it.

    The published protocol scores that as Dice 0 and HD95 0, like a structure that does not exist. The strict one
    distinguishes the two."""
    return scores["dice_transunet"] == scores["hd95_transunet"] == scores.get("dice_strict", np.nan) == 0


def describe_hd95(cases: Iterable[Mapping[str, float]]) -> str:
    """Return the mean HD95 in voxels of a structure over the cases in which truth and prediction have it, as text.

    The text counts the cases that missed it: "3.20", "missed", "3.20, missed in 1 of 4" (cases with the structure), or
    "" if no case has it."""
    cases = list(cases)
    missed = sum(map(is_missed, cases))
    found = []
    for scores in cases:
        strict = scores.get("dice_strict", np.nan)
        only_predicted = scores["dice_transunet"] == 1 and strict == 0
        if not (np.isnan(strict) or only_predicted or is_missed(scores)):
            found.append(scores["hd95_transunet"])
    if not found:
        return "missed" if missed else ""
    mean = f"{np.mean(found):.2f}"
    return f"{mean}, missed in {missed} of {missed + len(found)}" if missed else mean


def predict_volume(
    model: Network,
    image: np.ndarray,
    patch_size: Sequence[int],
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    volume_resize: str = "labels",
    context: int = 0,
    fit: str = "zoom",
) -> np.ndarray:
    """Return the labels, uint8 in the image's shape, of a volume (S, H, W), predicted `batch_size` slices at a time.

    model    see `predict_slices`, which also has the other options; the caller sets its eval mode
    context  the slices before and after that are channels of each slice, see `with_context`

    An image (H, W) is predicted at its own size, as published.
    """
    if image.ndim == 2:
        return predict_volume(model, image[None], image.shape, device, batch_size, volume_resize, context, fit)[0]
    batches = []
    for start in range(0, len(image), batch_size):
        slices = with_context(image, context, range(start, min(start + batch_size, len(image))))
        batches.append(predict_slices(model, slices, patch_size, device, volume_resize, fit))
    return np.concatenate(batches)


@torch.inference_mode()
def predict_slices(
    model: Network,
    slices: np.ndarray,
    patch_size: Sequence[int],
    device: torch.device | str = "cpu",
    volume_resize: str = "labels",
    fit: str = "zoom",
) -> np.ndarray:
    """Return the labels, uint8 (B, H, W), of slices (B, C, H, W), which the network gets as one batch.

    model          (B, C, h, w) float32 -> logits (B, classes, h, w)
    volume_resize  "labels": argmax, then nearest zoom back (published); "logits": bilinear resize back, then argmax
    fit            "zoom": every slice is zoomed to `patch_size` (cubic, published); "pad": a slice that is smaller than
                   `patch_size` is surrounded by zeros, and nothing is resized
    """
    size = slices.shape[2:]
    inputs = fit_slices(slices, patch_size, fit)
    logits = model(torch.from_numpy(inputs.astype(np.float32)).to(device))
    if fit == "pad":
        logits = middle(logits, size)
    elif volume_resize == "logits" and size != inputs.shape[2:]:
        # corner-aligned, like the zoom to the patch
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=True)
    return zoom_nearest(logits.argmax(1).to(torch.uint8).cpu().numpy(), size)


def with_context(slices: np.ndarray, context: int, numbers: Sequence[int]) -> np.ndarray:
    """Return some slices of (S, H, W), each after the `context` slices before it and before those after it:
    (len(numbers), 2 * context + 1, H, W). Beyond both ends the outermost slice is repeated."""
    around = np.add.outer(numbers, np.arange(-context, context + 1))
    return slices[around.clip(0, len(slices) - 1)]


def fit_slices(slices: np.ndarray, size: Sequence[int], fit: str) -> np.ndarray:
    """Return slices (..., h, w) as the network gets them: see `predict_slices`."""
    return zoom_cubic(slices, size) if fit == "zoom" else pad_slices(slices, size)


def pad_slices(slices: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return slices (..., h, w) in the middle of zeros, where they are smaller than `size`."""
    missing = [max(0, n - m) for n, m in zip(size, slices.shape[-2:], strict=True)]
    return np.pad(slices, [(0, 0)] * (slices.ndim - 2) + [(n // 2, n - n // 2) for n in missing])


def middle(slices: Any, size: Sequence[int]) -> Any:
    """Return the middle, (..., *size), of an array or a tensor: what `pad_slices` has surrounded."""
    y, x = ((m - n) // 2 for n, m in zip(size, slices.shape[-2:], strict=True))
    return slices[..., y : y + size[0], x : x + size[1]]


def zoom_cubic(slices: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return scipy.ndimage.zoom(order=3) of every slice of (..., h, w) to `size`, in the dtype of `slices`.

    The cubic zoom is linear and separable, so it is a product with one matrix from each side, in float64.
    """
    if slices.shape[-2:] == tuple(size):
        return slices
    rows, columns = (_cubic_matrix(n, m) for n, m in zip(slices.shape[-2:], size, strict=True))
    return (rows @ slices.astype(np.float64) @ columns.T).astype(slices.dtype)


def zoom_nearest(slices: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return scipy.ndimage.zoom(order=0) of every slice of (S, h, w) to `size`."""
    if slices.shape[1:] == tuple(size):
        return slices
    rows, columns = (_nearest_index(n, m) for n, m in zip(slices.shape[1:], size, strict=True))
    padded = np.pad(slices, ((0, 0), (1, 0), (1, 0)))
    return padded[:, rows][:, :, columns]


@cache
def _cubic_matrix(n: int, m: int) -> np.ndarray:
    """Return the matrix (m, n) of a cubic zoom from n to m samples. Its columns are the zoomed unit vectors."""
    return np.stack([scipy.ndimage.zoom(unit, m / n, order=3) for unit in np.eye(n)], axis=1)


@cache
def _nearest_index(n: int, m: int) -> np.ndarray:
    """Return for each of m samples its source among n, counted from 1, or 0 where the zoom rounds past the end."""
    return scipy.ndimage.zoom(np.arange(1, n + 1), m / n, order=0)
