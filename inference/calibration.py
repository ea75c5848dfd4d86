"""How far the probabilities of a network of images can be trusted, and whether a temperature would correct them.

    python -m inference.calibration results/RUN data/own/val data/own/test --plot curves.png

The first folder, which must be new to the network, gives the temperature: the logits, divided by it, have the lowest
negative log-likelihood there (Guo et al. 2017, arXiv 1706.04599). A temperature is worth having if it also helps on
the other folders. The table has a line for each folder as the network is, temperature 1, and one with the temperature:

    ECE    expected calibration error: mean distance between probability and share of foreground, in 15 equal bins
    NLL    negative log-likelihood of a pixel, in nats
    Brier  mean squared distance between probability and mask
"""

import utils.start

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from datasets.isic import ISICDataset
from datasets.masks import parse_mask_values
from datasets.transforms import ISICTransform
from inference.ensemble_member import EnsembleMember
from inference.prediction_options import PredictionOptions
from inference.trained import TrainedNetwork, load_trained
from utils.files import first_few, list_duplicates
from utils.machine.device import choose_device
from utils.runs.command_line import run

BINS = 15
LIMITS = (-3, 3)  # of the temperature's logarithm
Pixels = tuple[torch.Tensor, torch.Tensor]  # of an image: logits (N, classes with the background), class numbers (N)


@dataclass(kw_only=True)
class CalibrationConfig:
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """a checkpoint, a run's folder, or isic17, which comes with this code"""
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """images/ and masks/ to fit the temperature to"""
    others: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER ...")] = ()
    """more such folders, to measure on"""
    plot: str | None = None  # picture of the reliability curves to write, such as curves.png
    debug: bool = False  # show the traceback of errors


def main(config: CalibrationConfig) -> None:
    trained, temperatures = load_trained(config.checkpoint), [1.0]
    if trained.config.of_volumes:
        raise ValueError(f"{trained.checkpoint.path}: found a network of volumes, expected one of images")
    folders = config.folder, *config.others
    twice = list_duplicates(str(Path(folder).resolve()) for folder in folders)
    if twice:
        raise ValueError(f"FOLDER: found {first_few(twice)} twice, expected different folders")
    datasets = [dataset_of(trained, folder) for folder in folders]
    figure = Figure(figsize=(6, 5), layout="constrained")
    if config.plot:
        figure.savefig(config.plot)  # an error comes before the work
    axes = figure.add_subplot(xlabel="probability", ylabel="share of foreground", aspect="equal")
    axes.plot([0, 1], [0, 1], ":", color="grey")
    print("temperature     ECE     NLL   Brier  folder")
    for number, (folder, dataset) in enumerate(zip(folders, datasets, strict=True)):
        images = list(pixels(trained, dataset))
        temperatures += [] if number else [fit(images)]
        for temperature, style in zip(temperatures, ("o--", "o-"), strict=True):
            scores, curve = measure(images, temperature)
            print(f"{temperature:11.3f}", *(f"{score:7.4f}" for score in scores), f" {folder}, {len(images)} images")
            axes.plot(*curve, style, color=f"C{number}", ms=3, label=f"{folder}, temperature {temperature:.2f}")
    if math.log(temperatures[1]) > LIMITS[1] - 0.01:
        print("note: the temperature is at the limit of the search: the probabilities do not fit these masks")
    axes.legend(fontsize=7, frameon=False, handlelength=4)
    if config.plot:
        figure.savefig(config.plot)


def dataset_of(trained: TrainedNetwork, folder: str) -> ISICDataset:
    """Return the images and masks of a folder as in training, without augmentation."""
    c = trained.config
    options = dict(normalization=c.normalization, mask_resize=c.mask_resize, antialias=c.antialias)
    transform = ISICTransform(c.image_size, c.num_classes == 1, channels=c.input_channels, **options)
    values = parse_mask_values(c.mask_values, c.num_classes)
    return ISICDataset(folder, "", transform, c.num_classes, values, ignore_label=c.ignore_label)


def pixels(trained: TrainedNetwork, dataset: ISICDataset) -> Iterator[Pixels]:
    """Yield each image's pixels at the network's size, without those of the ignored label."""
    c, network = trained.config, EnsembleMember(trained, PredictionOptions(), choose_device("auto"), spread=False)
    for image, mask, _ in map(dataset.__getitem__, range(len(dataset))):
        logits, classes = network(image[None]).output[0].flatten(1).T, mask.flatten()
        if c.num_classes == 1:  # sigmoid(x) = softmax(0, x)
            logits, classes = F.pad(logits, (1, 0)), classes >= 0.5
        counted = slice(None) if c.ignore_label is None else classes != c.ignore_label
        yield logits[counted], classes[counted].byte()


def likelihood(images: Sequence[Pixels], temperature: float) -> float:
    """Return the negative log-likelihood of a pixel."""
    losses = [F.cross_entropy(x.double() / temperature, true.long(), reduction="sum").item() for x, true in images]
    return sum(losses) / sum(len(true) for _, true in images)


def fit(images: Sequence[Pixels]) -> float:
    """Return the temperature of the lowest negative log-likelihood."""
    return math.exp(minimize_scalar(lambda t: likelihood(images, math.exp(t)), bounds=LIMITS, method="bounded").x)


def measure(images: Sequence[Pixels], temperature: float) -> tuple[list[float], torch.Tensor]:
    """Return [ECE, NLL, Brier], and each bin's mean probability and share of foreground (2, BINS). Of several
    foreground classes, each counts."""
    sums, squares = torch.zeros(3, BINS, dtype=torch.float64), 0.0
    for logits, classes in images:
        p = (logits.double() / temperature).softmax(1)[:, 1:].flatten()
        true = F.one_hot(classes.long(), logits.shape[1])[:, 1:].flatten().double()
        squares += (p - true).square().sum().item()
        bins = (p * BINS).long().clamp(max=BINS - 1)
        sums += torch.stack([bins.bincount(weights, BINS) for weights in (torch.ones_like(p), p, true)])
    count = sums[0].sum().item()
    ece = (sums[1] - sums[2]).abs().sum().item() / count
    return [ece, likelihood(images, temperature), squares / count], sums[1:] / sums[0]


if __name__ == "__main__":
    run(main, CalibrationConfig)
