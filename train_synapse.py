"""VM-UNet on Synapse abdominal CT, or other volumes in its layout: trains on slices, tests on volumes.

python train_synapse.py --help
torchrun --nproc_per_node=2 train_synapse.py
"""

from utils.start import run_process

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.nifti import write_nifti
from datasets.synapse import cases_of_slices
from datasets.volume_loaders import (
    build_synapse_loaders,
    build_synapse_volumes,
    check_synapse_parts,
    patients_of_cases,
    pooled_slices,
)
from engine import train_one_epoch
from engine_synapse import evaluate
from training import NO_SELECTION, Session
from utils import distributed
from utils.files import first_few
from utils.losses import build_loss
from utils.runs.command_line import run
from utils.runs.run_folder import scores_of_finished
from utils.volume import SCORE_NAMES, case_row, describe_scores, dice_of_structures, unit_of_distances
from utils.volume_plots import save_pictures

log = logging.getLogger("vmunet")

PANELS = 4  # cases of the prediction panels
SELECTION = {
    "paper": "the best epoch has the lowest training loss, as published; the volumes of test_vol.txt, or of the fold, "
    "are reported",
    "holdout": "the best epoch has the highest Dice on the volumes of val_vol.txt; those of test_vol.txt are reported",
}


def main(config: SynapseConfig) -> dict[str, Any]:
    """Train, unless only a checkpoint is to be tested; test. Return the scores."""
    if config.fold == "all":
        from cross_validation import run_folds  # imports the report, which a training does not need

        return run_folds(main, config)
    if scores := scores_of_finished(config):
        return scores
    with Session(config) as session:
        if config.test_only is None:
            train(session)
        return test(session)


def train(session: Session) -> None:
    """Train all epochs, or those that a resumed run has not done yet."""
    config, holdout = session.config, session.config.protocol == "holdout"
    selects = holdout and config.select == "best"  # by Dice
    session.start_training()
    if holdout:
        check_synapse_parts(config)
    validated = "val_vol.txt" if holdout else "test_vol.txt"
    loader, volumes = build_synapse_loaders(config, distributed.rank(), distributed.world_size(), validated)
    log.info("%d slices to train on", len(loader.dataset))
    common = sorted(cases_of_slices(loader.dataset.names) & set(volumes.names))
    if common:
        text = f"overlap: {len(common)} of the tested cases are also trained on: {first_few(common)}"
        session.run.note("overlap", text, logging.WARNING)
    selection = NO_SELECTION if config.select == "last" else SELECTION[config.protocol]
    log.info("protocol %s: %s", config.protocol, selection)
    criterion, files = build_loss(config), [*loader.dataset.files, *volumes.files]
    # The published Dice rewards a class that is found where there is none. Earlier runs, resumed, still select by it.
    earlier = session.resumed is not None and "selected_by" not in session.run.facts()
    dice = "dice_transunet" if distributed.broadcast_object(earlier) else "dice_strict"
    pool = pooled_slices(config) if config.folds else ()
    with session.training(loader, files, dice if selects else "train_loss", pool) as training:
        for epoch in training.epochs():
            loss = train_one_epoch(
                session.model, training.batches, training.optimizer, criterion, session.compute, **training.step_options
            )
            row, selected_by, samples = {"train_loss": loss}, loss, []
            due = epoch % config.val_interval == 0
            if due or selects:  # HD95 in every epoch would take longer than the epoch
                with training.averaged():
                    scores, _ = evaluate_share(session, session.model, volumes, add_to(samples), distances=due)
                row |= {name: scores[name] for name in SCORE_NAMES if due or not name.startswith("hd95")}
                row |= dice_of_structures(scores, config.structures)
                selected_by = 1 - float(np.nan_to_num(scores[dice], nan=1)) if selects else loss  # NaN: rightly nothing
            training.finish_epoch(row, selected_by, samples)


def test(session: Session) -> dict[str, Any]:
    """Return the scores of the test volumes; write them, a row for each case, and every prediction as NIfTI."""
    config, folder = session.config, session.run.folder / "predictions"
    model, volumes = session.trained_model(), build_synapse_volumes(config, "test_vol.txt")
    of_fold = config.folds and config.protocol == "paper"
    log.info("testing on %d volumes of %s", len(volumes), f"fold {config.fold}" if of_fold else "test_vol.txt")
    samples: list[tuple] = []
    measured: list[bool] = []

    def save(case: tuple, prediction: np.ndarray, scores: dict[str, Any]) -> None:
        image, label, name, spacing = case
        write_nifti(folder, name, image, prediction, label, spacing, config.z_spacing)
        dice = zip(config.structures, scores["dice_strict"], strict=True)
        names = [f"{structure}, Dice {value:.2f}" for structure, value in dice]  # nan: in neither
        save_pictures(folder / name, image, prediction, label, spacing, names, config.structure_colours)
        measured.append(spacing is not None)
        add_to(samples)(case, prediction, scores)

    scores, rows = evaluate_share(session, model, volumes, save)
    unit = unit_of_distances(distributed.gather_rows(measured))
    for line in describe_scores(scores, rows, config.structures, unit):
        log.info("%s", line)
    names = {"protocol": config.protocol, "class_names": config.structures}
    patients = patients_of_cases(config)
    table = [case_row(case, patients.get(case, case), values, config.structures) for case, values in rows]
    session.finish({"volumes": len(rows), **names, "distance_unit": unit, **scores}, "test_volumes.csv", table, samples)
    return scores


def evaluate_share(
    session: Session, model: nn.Module, volumes: Dataset, on_case: Callable[..., None], distances: bool = True
) -> tuple[dict[str, Any], list]:
    """Return the scores of `volumes` by `engine_synapse.evaluate`, of which each process predicts its share."""
    config = session.config
    share = Subset(volumes, range(distributed.rank(), len(volumes), distributed.world_size()))  # type: ignore[arg-type]
    options = (config.num_classes, config.image_size, config.batch_size, config.volume_resize)
    more = (on_case, distances, config.ignore_label, config.context, config.slice_fit)
    return evaluate(model, share, session.compute, *options, *more)


def add_to(samples: list[tuple]) -> Callable[..., None]:
    """Return a function for `evaluate` that adds a slice of each of the first cases to a list, for figures."""

    def add(case: tuple, prediction: np.ndarray, scores: dict[str, Any]) -> None:
        image, label, name, _ = case
        if len(samples) < PANELS:
            middle = int((label > 0).sum((1, 2)).argmax())  # the slice with most labels
            # copies: a view would keep its volume in memory
            samples.append((f"{name}, slice {middle}", *(v[middle].copy() for v in (image, label, prediction))))

    return add


def command() -> None:
    run(main, SynapseConfig, resolve)


if __name__ == "__main__":
    run_process(command)
