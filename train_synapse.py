"""VM-UNet on Synapse abdominal CT, or other volumes in its layout: trains on slices, tests on volumes.

python train_synapse.py --help
torchrun --nproc_per_node=2 train_synapse.py
"""

import logging
import time

from utils.runs.command_line import ask, begin_importing, run_with

if __name__ == "__main__":
    begin_importing()

from configs.config_setting_synapse import SynapseConfig
from configs.recipes import log_recipe, parse_config, warn_of_collapse

if __name__ == "__main__":  # before PyTorch is imported, so that --help and mistakes are answered at once
    CONFIG = ask(SynapseConfig, parse_config)

from torch.utils.data import Subset

from configs.network import build_model, compile_ahead, count_cost, load_initial_weights, prepare
from configs.optim import SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS
from configs.stored import config_of_run
from configs.tested import log_test
from datasets.classes import with_classes
from datasets.files import fingerprint
from datasets.loaders import build_synapse_loaders, build_synapse_volumes, check_synapse_parts, patients_of_cases
from datasets.nifti import write_nifti
from datasets.synapse import cases_of_slices
from engine import Execution, train_one_epoch
from engine_synapse import evaluate
from inference.trained import check_size
from utils import distributed
from utils.files import some, write_rows
from utils.losses import CeDiceLoss
from utils.machine.device import choose_device
from utils.optim import check_optimization, optimization_values
from utils.plots import class_colours, save_picture
from utils.report import report_at_end
from utils.runs.progress import Progress, show_panels
from utils.runs.run import started_run
from utils.runs.weights import load_checkpoint_weights
from utils.volume import HD95_NAMES, SCORE_NAMES, describe_hd95
from utils.volume_plots import draw_mosaic, draw_planes

log = logging.getLogger("vmunet")
PANELS = 4  # cases of the prediction panels


def main(config):
    config = config_of_run(config)
    config = config if config.resume else with_classes(config)
    device = choose_device(config.device)
    compile_ahead(config, device, trains=config.test_only is None)
    check_optimization(config, SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS)
    with distributed.process_group(device), started_run(config) as run:
        if config.test_only is not None:
            check_size(config, log_test(config))
        model = build_model(config)
        cost = count_cost(model, config)
        shown = distributed.is_main()
        execution = Execution(device, config.precision, config.accumulation_steps, config.clip_grad_norm, shown)
        steps = train(run, config, model, execution, cost) if config.test_only is None else 0
        if config.test_only is not None:
            run.note("network", cost.result())
        load_checkpoint_weights(model, config.test_only or run.checkpoints / "best.pth")
        model = prepare(model, config, device, run.note if config.test_only else run.keep, trains=False)
        return test(run, config, model, execution, steps)


def train(run, config, model, execution, cost):
    """All epochs, from the first or from where a resumed run's last checkpoint was saved. Returns the run's steps."""
    state = run.resume() if config.resume else None
    if state is None:
        load_initial_weights(model, config)
    model = prepare(model, config, execution.device, run.note)
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
    log_recipe(config)
    run.note("network", cost.result())
    if distributed.is_main():
        warn_of_collapse(config)
    criterion = CeDiceLoss(config.num_classes, config.loss_weight)
    run.note("optimization", optimization_values(config, SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS), level=None)
    data = fingerprint([*loader.dataset.files, *volumes.files])
    progress = Progress(run, config, model, loader, execution, (SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS), state, data)
    with progress.saved_when_stopped():
        for epoch in progress.epochs():
            start, lr = time.perf_counter(), progress.lr
            loss = train_one_epoch(model, progress.batches, progress.optimizer, criterion, execution, progress.on_step)
            usage = progress.batches.usage(execution.device)
            row, selected, samples = {"epoch": epoch, "lr": lr, "train_loss": loss}, loss, []
            due = epoch % config.val_interval == 0
            if due or config.protocol == "holdout":  # which selects by Dice: HD95 every epoch would take longer than it
                scores, _ = evaluate(model, share(volumes), execution, config, add_to(samples), distances=due)
                row |= {name: scores[name] for name in SCORE_NAMES if due or name not in HD95_NAMES}
                row |= {
                    f"dice_transunet {name}": structure["dice_transunet"]
                    for name, structure in zip(config.structures, scores["classes"], strict=True)
                }
                if config.protocol == "holdout":
                    selected = 1 - scores["dice_transunet"]
            row |= {"seconds": round(time.perf_counter() - start, 3), **usage}
            progress.finish_epoch(row, selected, samples if progress.panels_are_due(epoch) else [], config.structures)
    return progress.step


SELECTION = {
    "paper": "the best epoch has the lowest training loss, as published; the volumes of test_vol.txt are reported",
    "holdout": "the best epoch has the highest Dice on the volumes of val_vol.txt; those of test_vol.txt are reported",
}


def test(run, config, model, execution, steps=0):
    """Scores of the test volumes; writes them, a row for each case, and every prediction as NIfTI.

    steps   of the training before, at which TensorBoard shows the predictions"""
    volumes, samples, measured = build_synapse_volumes(config, "test_vol.txt"), [], []
    log.info("testing on %d volumes of test_vol.txt", len(volumes))
    names, patients = config.structures, patients_of_cases(config)

    def save(case, pred, scores):
        image, label, name, spacing = case
        write_nifti(run.folder / "predictions", name, image, pred, label, spacing, config.z_spacing)
        for kind, draw in (("planes", draw_planes), ("slices", draw_mosaic)):
            picture = draw(image, pred, names, class_colours(len(names), config.structure_colours), label, spacing)
            save_picture(run.folder / "predictions" / f"{name}_{kind}.png", picture)
        measured.append(spacing is not None)
        add_to(samples)(case, pred, scores)

    scores, rows = evaluate(model, share(volumes), execution, config, save)
    unit = unit_of_distances(distributed.gather_over_ranks(measured))
    for protocol, of in (("transunet", "voxels"), ("strict", unit)):
        dice, hd95 = scores[f"dice_{protocol}"], scores[f"hd95_{protocol}"]
        log.info("%s protocol: Dice %.4f, HD95 %.2f %s", protocol, dice, hd95, of)
    for number, (name, structure) in enumerate(zip(names, scores["classes"], strict=True)):
        hd95 = describe_hd95([{score: values[score][number] for score in SCORE_NAMES} for _, values in rows])
        published = f"{structure['hd95_transunet']:.2f}"
        remark = f" (published protocol {published})" if hd95 != published else ""
        log.info("  %-15s Dice %.4f, HD95 %s%s", name, structure["dice_transunet"], hd95 or "of nothing", remark)
    about = {"volumes": len(rows), "protocol": config.protocol, "class_names": names, "distance_unit": unit}
    run.save_json("metrics.json", about | scores)
    if distributed.is_main():
        table = [case_row(case, patients.get(case, case), values, names) for case, values in rows]
        write_rows(run.folder / "test_volumes.csv", table)
        show_panels(run.folder, samples, steps, names, config.structure_colours)
        log.info("results are in %s", run.folder)
        report_at_end(run.folder)
    return scores


def add_to(samples):
    """A function for `evaluate` that adds a slice of each of the first cases to a list, for pictures."""

    def add(case, pred, scores):
        image, label, name, _ = case
        if len(samples) < PANELS:
            middle = int((label > 0).sum((1, 2)).argmax())  # the slice with most labels
            # copies: a view would keep its volume in memory
            slices = (volume[middle].copy() for volume in (image, label, pred))
            samples.append((f"{name}, slice {middle}", *slices))

    return add


def case_row(case, patient, values, names):
    """A row of test_volumes.csv: each score of each structure."""
    columns = {f"{score} {name}": values[score][i] for i, name in enumerate(names) for score in SCORE_NAMES}
    return {"name": case, "patient": patient, **columns}


def unit_of_distances(measured):
    """What the strict HD95 is in, from whether the spacing of each volume is known."""
    if all(measured):
        return "mm"
    return "mm, or voxels where the spacing is not known" if any(measured) else "voxels"


def share(volumes):
    """The volumes of this process."""
    return Subset(volumes, range(distributed.rank(), len(volumes), distributed.world_size()))


if __name__ == "__main__":
    run_with(main, CONFIG)
