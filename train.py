"""VM-UNet on ISIC17, ISIC18 or any folder of images and masks: trains, validates, tests.

python train.py --help
torchrun --nproc_per_node=2 train.py
"""

import logging
import time

from utils.runs.command_line import ask, begin_importing, run_with

if __name__ == "__main__":
    begin_importing()

from configs.config_setting import ISICConfig
from configs.recipes import log_recipe, parse_config, warn_of_collapse

if __name__ == "__main__":  # before PyTorch is imported, so that --help and mistakes are answered at once
    CONFIG = ask(ISICConfig, parse_config)

import numpy as np

from configs.network import build_model, compile_ahead, count_cost, load_initial_weights, prepare
from configs.optim import OPTIMIZERS, SCHEDULERS
from configs.stored import config_of_run
from configs.tested import log_test
from cross_validation import run_folds
from datasets.classes import with_classes
from datasets.files import fingerprint
from datasets.loaders import build_isic_loader, build_isic_loaders, check_isic_parts, processes_here
from engine import Execution, evaluate, train_one_epoch
from inference.trained import check_size
from utils import distributed
from utils.files import write_rows
from utils.losses import BceDiceWithLogitsLoss, CeDiceLoss
from utils.machine.device import available_cpus, choose_device
from utils.metrics import counts_of_image, dice_of_classes, scores_of_image
from utils.optim import check_optimization, optimization_values
from utils.plots import draw_labels, draw_outlines, save_picture
from utils.report import report_at_end
from utils.runs.progress import Progress, show_panels
from utils.runs.run import started_run
from utils.runs.weights import load_checkpoint_weights
from utils.threads import InOrder

log = logging.getLogger("vmunet")
PANELS = 4  # images of a set of prediction panels


def main(config):
    config = config_of_run(config)
    config = config if config.resume else with_classes(config)
    if config.fold == "all":
        return run_folds(main, config)
    device = choose_device(config.device)
    compile_ahead(config, device, trains=config.test_only is None)
    check_optimization(config, OPTIMIZERS, SCHEDULERS)
    with distributed.process_group(device), started_run(config) as run:
        if config.test_only is not None:
            check_size(config, log_test(config))
        model = build_model(config)
        cost = count_cost(model, config)
        shown = distributed.is_main()
        execution = Execution(device, config.precision, config.accumulation_steps, config.clip_grad_norm, shown)
        if config.num_classes == 1:
            criterion = BceDiceWithLogitsLoss(*config.loss_weight)
        else:
            criterion = CeDiceLoss(config.num_classes, config.loss_weight)
        steps = train(run, config, model, criterion, execution, cost) if config.test_only is None else 0
        if config.test_only is not None:
            run.note("network", cost.result())
        load_checkpoint_weights(model, config.test_only or run.checkpoints / "best.pth")
        model = prepare(model, config, device, run.note if config.test_only else run.keep, trains=False)
        return test(run, config, model, criterion, execution, steps)


def train(run, config, model, criterion, execution, cost):
    """All epochs, from the first or from where a resumed run's last checkpoint was saved. Returns the run's steps."""
    state = run.resume() if config.resume else None
    if state is None:
        load_initial_weights(model, config)
    model = prepare(model, config, execution.device, run.note)
    if config.protocol == "holdout":
        check_isic_parts(config)
    train_loader, val_loader = build_isic_loaders(config, distributed.rank(), distributed.world_size())
    log.info("%d images to train on, %d to select the best epoch", len(train_loader.dataset), len(val_loader.dataset))
    log.info("protocol %s: %s", config.protocol, SELECTION[config.protocol])
    log_recipe(config)
    run.note("network", cost.result())
    if distributed.is_main():
        warn_of_collapse(config)
    if config.rotation == "run":
        log.info("every rotated image is turned by %.2f degrees", train_loader.dataset.transform.angle)
    run.note("optimization", optimization_values(config, OPTIMIZERS, SCHEDULERS), level=None)
    data = fingerprint(file for loader in (train_loader, val_loader) for file in loader.dataset.paths)
    progress = Progress(run, config, model, train_loader, execution, (OPTIMIZERS, SCHEDULERS), state, data)
    with progress.saved_when_stopped():
        for epoch in progress.epochs():
            start, lr = time.perf_counter(), progress.lr
            progress.batches.begin()
            val_loader.begin()
            loss = train_one_epoch(model, progress.batches, progress.optimizer, criterion, execution, progress.on_step)
            usage = progress.batches.usage(execution.device)
            panels = Panels(config)
            scores, _ = evaluate(model, val_loader, criterion, execution, config.threshold, panels.add)
            row = {"epoch": epoch, "lr": lr, "train_loss": loss, "val_loss": scores.pop("loss")} | plain(scores)
            row |= dice_of_classes(scores, config.structures)
            row |= {"seconds": round(time.perf_counter() - start, 3), **usage}
            shown = panels.samples if progress.panels_are_due(epoch) else []
            progress.finish_epoch(row, row["val_loss"], shown, panels.class_names)
    return progress.step


SELECTION = {
    "paper": "the best epoch has the lowest loss on val, which is also the reported set, as published",
    "holdout": "the best epoch has the lowest loss on val; test is reported and not looked at before",
}


def test(run, config, model, criterion, execution, steps=0):
    """Scores of the reported set; writes them, a row for each image, and every prediction into the run folder.

    steps   of the training before, at which TensorBoard shows the predictions"""
    split = "val" if config.protocol == "paper" else "test"
    loader = build_isic_loader(config, split, distributed.rank(), distributed.world_size(), once=True)
    log.info("testing on %d images of %s", len(loader.dataset), split)  # takes a minute on a CPU
    panels, pictures = Panels(config), run.folder / "predictions"
    pictures.mkdir(exist_ok=True)

    def show_first():
        if distributed.is_main():
            show_panels(run.folder, panels.samples, steps, panels.class_names, config.structure_colours)

    def save(images, targets, probs, names):
        if panels.add(images, targets, probs, names):
            painter.submit(0, show_first)
        images, targets, predictions = images.cpu(), targets.cpu(), decide(probs, config)
        for image, target, prediction, name in zip(images, targets, predictions, names, strict=True):
            arrays = (tensor.numpy() for tensor in (image, target, prediction))
            saver.submit(image.nbytes, save_prediction, pictures / name, *arrays, config)

    threads = max(1, available_cpus() // processes_here())
    with InOrder(1, raise_error) as painter, InOrder(threads, raise_error) as saver:
        scores, counts = evaluate(model, loader, criterion, execution, config.threshold, save)
        if len(panels.samples) < PANELS:
            show_first()
    if config.protocol == "paper" and config.test_only is None:
        log.info("note: the best epoch was selected on the reported set, as published (--protocol holdout does not)")
    log.info(", ".join(f"{name} {value:.4f}" for name, value in plain(scores).items()))
    for name, value in dice_of_classes(scores, config.structures).items():
        log.info("  %s %.4f", name, value)
    about = {"split": split, "images": len(counts), "protocol": config.protocol}
    about |= {"class_names": config.structures} if config.num_classes > 1 else {}
    run.save_json("metrics.json", about | scores)
    if distributed.is_main():
        rows = [{"name": name, **scores_of_image(c), **counts_of_image(c)} for name, c in counts]
        write_rows(run.folder / "test_images.csv", rows)
        log.info("results are in %s", run.folder)
        report_at_end(run.folder)
    return scores


def raise_error(_, saving):
    saving.result()


def save_prediction(path, image, target, prediction, config):
    """Writes <path>.png, the mask, <path>_overlay.png and, of several classes, <path>_truth.png."""
    if config.num_classes == 1:
        mask, overlay = 255 * prediction, draw_outlines(image, prediction, target)
    else:
        mask, overlay = prediction, draw_labels(image, prediction, colours=config.structure_colours)
        save_picture(f"{path}_truth.png", target.astype(np.uint8))
    save_picture(f"{path}.png", mask)
    save_picture(f"{path}_overlay.png", overlay)


class Panels:
    """The first predictions of a pass over a set, for pictures."""

    def __init__(self, config):
        self.config, self.samples = config, []
        self.class_names = config.structures if config.num_classes > 1 else None

    def add(self, images, targets, probs, names):
        """Returns whether with these there are PANELS of them, and were not before."""
        missing = PANELS - len(self.samples)
        images, targets, probs = (t[:missing] for t in (images, targets, probs))
        self.samples += zip(names, images.cpu(), targets.cpu(), decide(probs, self.config), strict=False)
        return 0 < missing == len(images)


def decide(probs, config):
    """Probabilities to masks or class numbers, uint8 (B, H, W) on the CPU."""
    masks = probs[:, 0] >= config.threshold if config.num_classes == 1 else probs.argmax(1)
    return masks.byte().cpu()


def plain(scores):
    """The numbers among the scores, without the lists of single classes."""
    return {name: value for name, value in scores.items() if isinstance(value, float)}


if __name__ == "__main__":
    run_with(main, CONFIG)
