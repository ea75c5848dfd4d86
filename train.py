"""VM-UNet on ISIC17, ISIC18 or any folder of images and masks: trains, validates, tests.

python train.py --help
torchrun --nproc_per_node=2 train.py
"""

from utils.start import run_process

import logging
from collections.abc import Callable

from torch import Tensor

from configs.config_setting import ISICConfig
from configs.resolve import resolve
from datasets.loaders import build_isic_loader, build_isic_loaders, check_isic_parts, processes_here
from engine import evaluate, train_one_epoch
from training import NO_SELECTION, Session
from utils import distributed
from utils.losses import build_loss
from utils.machine.device import available_cpus
from utils.metrics import counts_of_image, dice_of_classes, plain_scores, scores_of_image
from utils.ordered_pool import OrderedPool
from utils.plots import save_prediction
from utils.runs.command_line import run
from utils.runs.run_folder import scores_of_finished

log = logging.getLogger("vmunet")

PANELS = 4  # images of a set of prediction panels
SELECTION = {
    "paper": "the best epoch has the lowest loss on val, which is also the reported set, as published",
    "holdout": "the best epoch has the lowest loss on val; test is reported and not used before",
}


def main(config: ISICConfig) -> dict[str, float]:
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
    config, compute = session.config, session.compute
    session.start_training()
    if config.protocol == "holdout":
        check_isic_parts(config)
    train_loader, val_loader = build_isic_loaders(config, distributed.rank(), distributed.world_size())
    log.info("%d images to train on, %d to validate on", len(train_loader.dataset), len(val_loader.dataset))
    selection = NO_SELECTION if config.select == "last" else SELECTION[config.protocol]
    log.info("protocol %s: %s", config.protocol, selection)
    if config.rotation == "run" and config.augmentation == "published":
        log.info("every rotated image is turned by %.2f degrees", train_loader.dataset.transform.angle)
    criterion, files = build_loss(config), [*train_loader.dataset.paths, *val_loader.dataset.paths]
    with session.training(train_loader, files, "val_loss") as training:
        for _ in training.epochs():
            loss = train_one_epoch(
                session.model, training.batches, training.optimizer, criterion, compute, **training.step_options
            )
            samples: list[tuple] = []
            options = (config.threshold, add_to(samples), config.ignore_label)
            with training.averaged():
                scores, _ = evaluate(session.model, val_loader, criterion, compute, *options)
            row = {"train_loss": loss, "val_loss": scores.pop("loss"), **plain_scores(scores)}
            training.finish_epoch(row | dice_of_classes(scores, config.structures), row["val_loss"], samples)


def test(session: Session) -> dict[str, float]:
    """Return the scores of the reported set; write them, a row for each image, and every prediction."""
    config, pictures = session.config, session.run.folder / "predictions"
    model, split = session.trained_model(), "val" if config.protocol == "paper" else "test"
    loader = build_isic_loader(config, split, distributed.rank(), distributed.world_size(), once=True)
    log.info("testing on %d images of %s", len(loader.dataset), split)
    pictures.mkdir(exist_ok=True)
    samples: list[tuple] = []
    with OrderedPool(max(1, available_cpus() // processes_here()), lambda _, saved: saved.result()) as pool:

        def save(images: Tensor, targets: Tensor, predictions: Tensor, names: list[str]) -> None:
            add_to(samples)(images, targets, predictions, names)
            for name, *arrays in zip(names, *(t.cpu().numpy() for t in (images, targets, predictions)), strict=True):
                colours = config.structure_colours if config.num_classes > 1 else None
                pool.submit(sum(a.nbytes for a in arrays), save_prediction, pictures / name, *arrays, colours)

        options = (config.threshold, save, config.ignore_label)
        scores, counts = evaluate(model, loader, build_loss(config), session.compute, *options)
    if config.protocol == "paper" and config.select == "best" and config.test_only is None:
        log.info("note: the best epoch was selected on the reported set, as published (--protocol holdout does not)")
    log.info(", ".join(f"{name} {value:.4f}" for name, value in plain_scores(scores).items()))
    for name, value in dice_of_classes(scores, config.structures).items():
        log.info("  %s %.4f", name, value)
    about = {"split": split, "images": len(counts), "protocol": config.protocol}
    about |= {"class_names": config.structures} if config.num_classes > 1 else {}
    rows = [{"name": name, **scores_of_image(count), **counts_of_image(count)} for name, count in counts]
    session.finish(about | scores, "test_images.csv", rows, samples)
    return scores


def add_to(samples: list[tuple]) -> Callable[..., None]:
    """Return a function for `evaluate` that adds the first predictions to a list, for figures."""

    def add(images: Tensor, targets: Tensor, predictions: Tensor, names: list[str]) -> None:
        first = slice(PANELS - len(samples))
        samples.extend(zip(names[first], *(t[first].cpu() for t in (images, targets, predictions)), strict=True))

    return add


def command() -> None:
    run(main, ISICConfig, resolve)


if __name__ == "__main__":
    run_process(command)
