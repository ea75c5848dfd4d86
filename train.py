"""VM-UNet on ISIC17, ISIC18 or any folder of images and masks: trains, validates, tests.

python train.py --help
torchrun --nproc_per_node=2 train.py
"""

import utils.machine.openmp  # noqa: F401  isort: skip (before torch)

import logging
import time

from configs.config_setting import ISICConfig
from configs.optim import OPTIMIZERS, SCHEDULERS
from configs.recipes import parse_config, warn_of_collapse
from configs.stored import config_of_run
from datasets.loaders import build_isic_loader, build_isic_loaders, check_isic_parts
from engine import Execution, evaluate, train_one_epoch
from models.build import build_model, load_initial_weights, prepare
from utils import distributed
from utils.files import write_rows
from utils.losses import BceDiceWithLogitsLoss, CeDiceLoss
from utils.machine.device import choose_device
from utils.metrics import counts_of_image, scores_of_image
from utils.optim import optimization_values
from utils.plots import draw_labels, draw_outlines, save_panels, save_picture
from utils.report import report_at_end
from utils.runs.command_line import run_command
from utils.runs.progress import Progress
from utils.runs.run import start_run
from utils.runs.weights import load_checkpoint_weights

log = logging.getLogger("vmunet")
PANELS = 4  # images of a set of prediction panels


def main(config):
    config = config_of_run(config)
    device = choose_device(config.device)
    with distributed.process_group(device):
        run = start_run(config)
        model = build_model(config, run.note)
        execution = Execution(device, config.precision, config.accumulation_steps, config.clip_grad_norm)
        if config.num_classes == 1:
            criterion = BceDiceWithLogitsLoss(*config.loss_weight)
        else:
            criterion = CeDiceLoss(config.num_classes, config.loss_weight)
        if config.test_only is None:
            train(run, config, model, criterion, execution)
        load_checkpoint_weights(model, config.test_only or run.checkpoints / "best.pth")
        return test(run, config, prepare(model, config, device, run.note), criterion, execution)


def train(run, config, model, criterion, execution):
    """All epochs, from the first or from where a resumed run's last checkpoint was saved."""
    if config.protocol == "holdout":
        check_isic_parts(config)
    train_loader, val_loader = build_isic_loaders(config, distributed.rank(), distributed.world_size())
    log.info("%d images to train on, %d to select the best epoch", len(train_loader.dataset), len(val_loader.dataset))
    log.info("protocol %s: %s", config.protocol, SELECTION[config.protocol])
    warn_of_collapse(config)
    if config.rotation == "run":
        log.info("every rotated image is turned by %.2f degrees", train_loader.dataset.transform.angle)
    state = run.resume() if config.resume else None
    if state is None:
        load_initial_weights(model, config)
    model = prepare(model, config, execution.device, run.note)
    run.note("optimization", optimization_values(config, OPTIMIZERS, SCHEDULERS), level=None)
    progress = Progress(run, config, model, train_loader, execution, (OPTIMIZERS, SCHEDULERS), state)
    with progress.saved_when_stopped():
        for epoch in progress.epochs():
            start, lr = time.perf_counter(), progress.lr
            loss = train_one_epoch(model, progress.batches, progress.optimizer, criterion, execution, progress.on_step)
            usage = progress.batches.usage(execution.device)
            panels = Panels(config)
            scores, _ = evaluate(model, val_loader, criterion, execution, config.threshold, panels.add)
            row = {"epoch": epoch, "lr": lr, "train_loss": loss, "val_loss": scores.pop("loss")} | plain(scores)
            row |= {"seconds": round(time.perf_counter() - start, 3), **usage}
            shown = panels.samples if epoch % config.val_interval == 0 else []
            progress.finish_epoch(row, row["val_loss"], shown, panels.class_names)


SELECTION = {
    "paper": "the best epoch has the lowest loss on val, which is also the reported set, as published",
    "holdout": "the best epoch has the lowest loss on val; test is reported and not looked at before",
}


def test(run, config, model, criterion, execution):
    """Scores of the reported set; writes them, a row for each image, and every prediction into the run folder."""
    split = "val" if config.protocol == "paper" else "test"
    loader = build_isic_loader(config, split, distributed.rank(), distributed.world_size())
    panels, pictures = Panels(config), run.folder / "predictions"
    pictures.mkdir(exist_ok=True)

    def save(images, targets, probs, names):
        panels.add(images, targets, probs, names)
        predictions = decide(probs, config)
        for image, target, prediction, name in zip(images.cpu(), targets.cpu(), predictions, names, strict=True):
            if config.num_classes == 1:
                mask, overlay = 255 * prediction, draw_outlines(image, prediction, target)
            else:
                mask, overlay = prediction, draw_labels(image, prediction)
                save_picture(pictures / f"{name}_truth.png", target.byte().numpy())
            save_picture(pictures / f"{name}.png", mask.numpy())
            save_picture(pictures / f"{name}_overlay.png", overlay)

    scores, counts = evaluate(model, loader, criterion, execution, config.threshold, save)
    log.info("test on %d images of %s", len(counts), split)
    if config.protocol == "paper" and config.test_only is None:
        log.info("note: the best epoch was selected on the reported set, as published (--protocol holdout does not)")
    log.info(", ".join(f"{name} {value:.4f}" for name, value in plain(scores).items()))
    run.save_json("metrics.json", {"split": split, "images": len(counts), "protocol": config.protocol, **scores})
    if distributed.is_main():
        rows = [{"name": name, **scores_of_image(c), **counts_of_image(c)} for name, c in counts]
        write_rows(run.folder / "test_images.csv", rows)
        save_panels(run.folder / "panels.png", panels.samples, panels.class_names)
        log.info("results are in %s", run.folder)
        report_at_end(run.folder)
    return scores


class Panels:
    """The first predictions of a pass over a set, for pictures."""

    def __init__(self, config):
        self.config, self.samples = config, []
        classes = range(1, config.num_classes)
        self.class_names = [f"class {c}" for c in classes] if config.num_classes > 1 else None

    def add(self, images, targets, probs, names):
        images, targets, probs = (t[: PANELS - len(self.samples)] for t in (images, targets, probs))
        self.samples += zip(names, images.cpu(), targets.cpu(), decide(probs, self.config), strict=False)


def decide(probs, config):
    """Probabilities to masks or class numbers, uint8 (B, H, W) on the CPU."""
    masks = probs[:, 0] >= config.threshold if config.num_classes == 1 else probs.argmax(1)
    return masks.byte().cpu()


def plain(scores):
    """The numbers among the scores, without the lists of single classes."""
    return {name: value for name, value in scores.items() if isinstance(value, float)}


if __name__ == "__main__":
    run_command(main, ISICConfig, parse_config)
