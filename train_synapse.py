"""VM-UNet on Synapse abdominal CT, or other volumes in its layout: trains on slices, tests on volumes.

python train_synapse.py --help
torchrun --nproc_per_node=2 train_synapse.py
"""

import utils.machine.openmp  # noqa: F401  isort: skip (before torch)

import logging
import time

from torch.utils.data import Subset

from configs.config_setting_synapse import SynapseConfig
from configs.optim import SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS
from configs.recipes import parse_config, warn_of_collapse
from configs.stored import config_of_run
from datasets.loaders import build_synapse_loaders, build_synapse_volumes, check_synapse_parts
from datasets.nifti import write_nifti
from datasets.synapse import cases_of_slices
from engine import Execution, train_one_epoch
from engine_synapse import evaluate
from models.build import build_model, load_initial_weights, prepare
from utils import distributed
from utils.files import some, write_rows
from utils.losses import CeDiceLoss
from utils.machine.device import choose_device
from utils.optim import optimization_values
from utils.plots import save_panels
from utils.report import report_at_end
from utils.runs.command_line import run_command
from utils.runs.progress import Progress
from utils.runs.run import start_run
from utils.runs.weights import load_checkpoint_weights
from utils.volume import SCORE_NAMES

log = logging.getLogger("vmunet")
PANELS = 4  # cases of the prediction panels


def main(config):
    config = config_of_run(config)
    device = choose_device(config.device)
    with distributed.process_group(device):
        run = start_run(config)
        model = build_model(config, run.note)
        execution = Execution(device, config.precision, config.accumulation_steps, config.clip_grad_norm)
        if config.test_only is None:
            train(run, config, model, execution)
        load_checkpoint_weights(model, config.test_only or run.checkpoints / "best.pth")
        return test(run, config, prepare(model, config, device, run.note), execution)


def train(run, config, model, execution):
    """All epochs, from the first or from where a resumed run's last checkpoint was saved."""
    list_name = "val_vol.txt" if config.protocol == "holdout" else "test_vol.txt"
    if config.protocol == "holdout":
        check_synapse_parts(config)
    loader, volumes = build_synapse_loaders(config, distributed.rank(), distributed.world_size(), list_name)
    log.info("%d slices to train on", len(loader.dataset))
    seen = cases_of_slices(loader.dataset.names) & set(volumes.names)
    if seen:
        text = f"overlap: {len(seen)} of the tested cases are also trained on: {some(sorted(seen))}"
        run.note("overlap", text, logging.WARNING)
    log.info("protocol %s: %s", config.protocol, SELECTION[config.protocol])
    warn_of_collapse(config)
    state = run.resume() if config.resume else None
    if state is None:
        load_initial_weights(model, config)
    model = prepare(model, config, execution.device, run.note)
    criterion = CeDiceLoss(config.num_classes, config.loss_weight)
    run.note("optimization", optimization_values(config, SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS), level=None)
    progress = Progress(run, config, model, loader, execution, (SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS), state)
    with progress.saved_when_stopped():
        for epoch in progress.epochs():
            start, lr = time.perf_counter(), progress.lr
            loss = train_one_epoch(model, progress.batches, progress.optimizer, criterion, execution, progress.on_step)
            usage = progress.batches.usage(execution.device)
            row, selected = {"epoch": epoch, "lr": lr, "train_loss": loss}, loss
            if epoch % config.val_interval == 0 or config.protocol == "holdout":
                scores, _ = evaluate(model, share(volumes), execution, config)
                row |= {name: scores[name] for name in SCORE_NAMES}
                if config.protocol == "holdout":
                    selected = 1 - scores["dice_transunet"]
            row |= {"seconds": round(time.perf_counter() - start, 3), **usage}
            progress.finish_epoch(row, selected)


SELECTION = {
    "paper": "the best epoch has the lowest training loss, as published; the volumes of test_vol.txt are reported",
    "holdout": "the best epoch has the highest Dice on the volumes of val_vol.txt; those of test_vol.txt are reported",
}


def test(run, config, model, execution):
    """Scores of the test volumes; writes them, a row for each case, and every prediction as NIfTI."""
    volumes, samples = build_synapse_volumes(config, "test_vol.txt"), []
    names = config.class_names

    def save(case, pred, scores):
        image, label, name, spacing = case
        write_nifti(run.folder / "predictions", name, image, pred, label, spacing, config.z_spacing)
        if len(samples) < PANELS:
            middle = int((label > 0).sum((1, 2)).argmax())  # the slice with most organs
            # copies: a view would keep its volume in memory
            slices = (volume[middle].copy() for volume in (image, label, pred))
            samples.append((f"{name}, slice {middle}", *slices))

    scores, rows = evaluate(model, share(volumes), execution, config, save)
    for protocol in ("transunet", "strict"):
        log.info("%s protocol: Dice %.4f, HD95 %.2f", protocol, scores[f"dice_{protocol}"], scores[f"hd95_{protocol}"])
    for name, organ in zip(names, scores["classes"], strict=True):
        log.info("  %-13s Dice %.4f, HD95 %.2f", name, organ["dice_transunet"], organ["hd95_transunet"])
    run.save_json("metrics.json", {"volumes": len(rows), "protocol": config.protocol, "class_names": names, **scores})
    if distributed.is_main():
        write_rows(run.folder / "test_volumes.csv", [case_row(case, values, names) for case, values in rows])
        save_panels(run.folder / "panels.png", samples, names)
        log.info("results are in %s", run.folder)
        report_at_end(run.folder)
    return scores


def case_row(case, values, names):
    """A row of test_volumes.csv: each score of each organ."""
    columns = {f"{score} {organ}": values[score][i] for i, organ in enumerate(names) for score in SCORE_NAMES}
    return {"name": case, **columns}


def share(volumes):
    """The volumes of this process."""
    return Subset(volumes, range(distributed.rank(), len(volumes), distributed.world_size()))


if __name__ == "__main__":
    run_command(main, SynapseConfig, parse_config)
