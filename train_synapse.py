"""VM-UNet on Synapse abdominal CT, or other volumes in its layout: trains on slices, tests on volumes.

    python train_synapse.py --help
    torchrun --nproc_per_node=2 train_synapse.py
"""

import logging
import time

from torch.utils.data import Subset

from configs.config_setting_synapse import SynapseConfig
from configs.optim import SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS
from datasets.loaders import build_synapse_loaders, build_synapse_volumes
from datasets.synapse import ORGANS
from engine import Execution, train_one_epoch
from engine_synapse import evaluate
from utils import distributed
from utils.command_line import run_command
from utils.losses import CeDiceLoss
from utils.plots import save_panels
from utils.pretrained import load_checkpoint_weights
from utils.run import choose_device, config_of_run, start_run, write_rows
from utils.training import Progress, build_model, load_initial_weights, prepare
from utils.volume import SCORE_NAMES, write_nifti

log = logging.getLogger("vmunet")


def main(config):
    config = config_of_run(config)
    device = choose_device(config.device)
    with distributed.process_group(device):
        run = start_run(config)
        model = build_model(config)
        execution = Execution(device, config.precision, config.accumulation_steps, config.clip_grad_norm)
        if config.test_only is None:
            train(run, config, model, execution)
        load_checkpoint_weights(model, config.test_only or run.checkpoints / "best.pth")
        return test(run, config, prepare(model, config, device), execution)


def train(run, config, model, execution):
    """All epochs, from the first or from the one after a resumed run's last checkpoint."""
    list_name = "val_vol.txt" if config.protocol == "holdout" else "test_vol.txt"
    loader, volumes = build_synapse_loaders(config, distributed.rank(), distributed.world_size(), list_name)
    log.info("%d slices to train on; best epoch by the %s", len(loader.dataset), SELECTION[config.protocol])
    state = run.resume() if config.resume else None
    if state is None:
        load_initial_weights(model, config)
    model = prepare(model, config, execution.device)
    criterion = CeDiceLoss(config.num_classes, config.loss_weight)
    progress = Progress(run, config, model, execution, (SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS), state)
    for epoch in progress.epochs():
        start, lr = time.perf_counter(), progress.lr
        loader.batch_sampler.set_epoch(epoch)
        loss = train_one_epoch(model, loader, progress.optimizer, criterion, execution, progress.on_step)
        row, selected = {"epoch": epoch, "lr": lr, "train_loss": loss}, loss
        if epoch % config.val_interval == 0 or config.protocol == "holdout":
            scores, _ = evaluate(model, share(volumes), execution, config)
            row |= {name: scores[name] for name in SCORE_NAMES}
            if config.protocol == "holdout":
                selected = 1 - scores["dice_transunet"]
        row["seconds"] = round(time.perf_counter() - start, 3)
        progress.finish_epoch(row, selected)


SELECTION = {"paper": "lowest training loss, as published", "holdout": "highest Dice on the volumes of val_vol.txt"}


def test(run, config, model, execution):
    """Scores of the test volumes; writes them, a row for each case, and every prediction as NIfTI."""
    volumes, samples = build_synapse_volumes(config, "test_vol.txt"), []
    names = class_names(config)

    def save(case, pred, scores):
        image, label, name, spacing = case
        write_nifti(run.folder / "predictions", name, image, pred, label, spacing, config.z_spacing)
        middle = int((label > 0).sum((1, 2)).argmax())  # the slice with most organs
        samples.append((f"{name}, slice {middle}", image[middle], label[middle], pred[middle]))

    scores, rows = evaluate(model, share(volumes), execution, config, save)
    for protocol in ("transunet", "strict"):
        log.info("%s protocol: Dice %.4f, HD95 %.2f", protocol, scores[f"dice_{protocol}"], scores[f"hd95_{protocol}"])
    for name, organ in zip(names, scores["classes"], strict=True):
        log.info("  %-13s Dice %.4f, HD95 %.2f", name, organ["dice_transunet"], organ["hd95_transunet"])
    run.save_json("metrics.json", {"volumes": len(rows), "protocol": config.protocol, "class_names": names, **scores})
    if distributed.is_main():
        write_rows(run.folder / "test_volumes.csv", [case_row(case, values, names) for case, values in rows])
        save_panels(run.folder / "panels.png", samples[:4], names)
        log.info("results are in %s", run.folder)
    return scores


def case_row(case, values, names):
    """A row of test_volumes.csv: each score of each organ."""
    columns = {f"{score} {organ}": values[score][i] for i, organ in enumerate(names) for score in SCORE_NAMES}
    return {"name": case, **columns}


def share(volumes):
    """The volumes of this process."""
    return Subset(volumes, range(distributed.rank(), len(volumes), distributed.world_size()))


def class_names(config):
    """Names of the classes 1, 2, ...: Synapse's organs, if there are as many."""
    classes = range(1, config.num_classes)
    return list(ORGANS) if len(ORGANS) == len(classes) else [f"class {c}" for c in classes]


if __name__ == "__main__":
    run_command(main, SynapseConfig)
