"""Evaluation of volumes, case by case. Training is `engine.train_one_epoch`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from engine import Compute, progress_bar
from utils.distributed import broadcast, gather_rows
from utils.volume import predict_volume, score_case, summarize_cases


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    volumes: Dataset,
    compute: Compute,
    num_classes: int,
    image_size: int,
    batch_size: int = 32,
    volume_resize: str = "labels",
    on_case: Callable[..., None] = lambda case, pred, scores: None,
    distances: bool = True,
    ignore_label: int | None = None,
    context: int = 0,
    fit: str = "zoom",
) -> tuple[dict[str, Any], list]:
    """Return the scores over `volumes`, which yields (image (S, H, W), label (S, H, W), name, spacing): the summary of
    `utils.volume.summarize_cases` and a list of (name, scores).

    context, fit  see `utils.volume.predict_volume`
    on_case       sees every prediction
    distances     False leaves out HD95, which takes most of the time
    ignore_label  voxels of this label are in no score; on_case gets them as background

    Raises Stopped after a case if a signal asked for it."""
    model.eval()
    broadcast(model.buffers())  # the averages of BatchNorm, which each rank has from its own slices

    def network(slices: Tensor) -> Tensor:
        with compute.autocast():
            outputs = model(slices)
        return (outputs if isinstance(outputs, Tensor) else outputs[0]).float()

    rows = []
    for case in progress_bar(volumes, "evaluate", "case"):  # type: ignore[arg-type]
        if compute.stop.number:
            break
        image, label, name, spacing = case
        size, options = (image_size,) * 2, (batch_size, volume_resize, context, fit)
        pred = predict_volume(network, image, size, compute.device, *options)
        counted = pred
        if ignore_label is not None:
            label, counted = (np.where(label == ignore_label, v.dtype.type(0), v) for v in (label, pred))
        scores = score_case(counted, label, num_classes, spacing, distances)
        rows.append((name, scores))
        on_case((image, label, name, spacing), pred, scores)
    compute.stop.check()
    rows = sorted(gather_rows(rows), key=lambda row: row[0])
    return summarize_cases([scores for _, scores in rows]), rows
