"""Evaluation of volumes, case by case. Training is `engine.train_one_epoch`."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from engine import Execution, train_one_epoch
from utils.distributed import copy_from_main, gather_over_ranks
from utils.volume import evaluate_volume, summarize_cases

__all__ = ["evaluate", "train_one_epoch"]


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    volumes: Dataset,
    execution: Execution,
    config: Any,
    on_case: Callable[..., None] = lambda case, pred, scores: None,
    distances: bool = True,
) -> tuple[dict[str, Any], list]:
    """Scores over `volumes`, which yields (image (S, H, W), label (S, H, W), name, spacing): the summary of
    `utils.volume.summarize_cases` and a list of (name, scores). `on_case` sees every prediction.
    Without `distances` HD95 is NaN, which saves most of the time.

    Raises Stopped after a case if a signal asked for it."""
    model.eval()
    copy_from_main(model.buffers())  # the averages of BatchNorm, which each rank has from its own slices

    def network(slices):
        with execution.autocast():
            return model(slices).float()

    rows = []
    for case in tqdm(volumes, desc="evaluate", unit="case", leave=False, disable=execution.without_bar):
        if execution.stop.number:
            break
        image, label, name, spacing = case
        pred, scores = evaluate_volume(
            network,
            image,
            label,
            config.num_classes,
            (config.image_size, config.image_size),
            spacing,
            distances,
            device=execution.device,
            batch_size=config.batch_size,
            volume_resize=config.volume_resize,
        )
        rows.append((name, scores))
        on_case(case, pred, scores)
    execution.stop.check()
    rows = sorted(gather_over_ranks(rows), key=lambda row: row[0])
    return summarize_cases([scores for _, scores in rows]), rows
