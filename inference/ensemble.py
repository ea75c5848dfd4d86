"""Several trained networks as one: mean probabilities, masks, and where the members disagree.

A member is a network, or with test-time augmentation one view of a network.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.image_reading import stretched_rgb
from datasets.transforms import grey
from inference.ensemble_member import EnsembleMember, ViewAverage, join
from inference.prediction_options import PredictionOptions
from inference.trained import CT_DATASETS, mask_values
from utils.volume import predict_slices

Tensors = Sequence[torch.Tensor]


class Segmentation(NamedTuple):
    """An ensemble's answer to slices, or to a picture as one slice, at their own size."""

    mask: np.ndarray  # class numbers, uint8 (S, H, W)
    probabilities: np.ndarray | None = None  # float32 (S, C, H, W); None unless they are asked for
    disagreement: np.ndarray | None = None  # float32 (S, H, W); None for a single member


class Ensemble:
    """One or several networks of images, or of volumes; see ImageEnsemble and VolumeEnsemble."""

    def __init__(self, members: Sequence[EnsembleMember], options: PredictionOptions):
        self.members, self.options = members, options
        self.config = members[0].config
        self.context: int = getattr(self.config, "context", 0)  # slices before and after each that are its channels

    def prepare(self, picture: torch.Tensor) -> list[torch.Tensor]:
        """Make each network's input of a uint8 picture (3, H, W); nothing for windows and slices."""
        whole = not self.config.of_volumes and not self.options.sliding_window
        return [member.prepare(picture) for member in self.members] if whole else []

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Turn probabilities (S, C, H, W) into class numbers, uint8, as train.py does."""
        if probabilities.shape[1] == 1:
            return (probabilities[:, 0] >= np.float32(self.config.threshold)).astype(np.uint8)
        return probabilities.argmax(1).astype(np.uint8)

    def segment(self, answers: Sequence[ViewAverage], mask: np.ndarray | None = None) -> Segmentation:
        """Combine the networks' probabilities; a given `mask` replaces the decision."""
        probabilities, disagreement = combine(answers, len(self.members[0].views))
        values = probabilities.numpy()
        return Segmentation(
            self.decide(values) if mask is None else mask,
            values if self.options.probabilities else None,
            None if disagreement is None else disagreement.numpy(),
        )


class ImageEnsemble(Ensemble):
    """Networks of images. They take volumes slice by slice, each stretched to 0..255."""

    def segment_pictures(self, pictures: Tensors, prepared: Sequence[Tensors]) -> Iterator[Segmentation]:
        """Yield the Segmentation of each uint8 picture (3, H, W); `prepared` are the results of `prepare`."""
        if self.options.sliding_window:
            for picture in pictures:
                yield self.segment([m.answer_windows(m.normalized(picture).float()) for m in self.members])
        else:
            inputs = zip(*prepared, strict=True)  # of each network
            answers = (m.answer_pictures(pictures, own) for m, own in zip(self.members, inputs, strict=True))
            yield from map(self.segment, zip(*answers, strict=True))

    def segment_slices(self, slices: np.ndarray) -> Segmentation:
        """Segment slices (S, 1, H, W) of any values."""
        pictures = [torch.from_numpy(stretched_rgb(pixels)).permute(2, 0, 1) for (pixels,) in slices]
        prepared = [self.prepare(picture) for picture in pictures]
        return join(np.concatenate, list(self.segment_pictures(pictures, prepared)))


class VolumeEnsemble(Ensemble):
    """Networks of volumes. They take a picture as one grey slice, 0..1."""

    def segment_pictures(self, pictures: Tensors, prepared: Sequence[Tensors]) -> Iterator[Segmentation]:
        """Yield the Segmentation of each uint8 picture (3, H, W), decided by the probabilities at its own size."""
        for picture in pictures:
            yield self.segment(self._answers((grey(picture)[None].float() / 255).numpy()))

    def segment_slices(self, slices: np.ndarray) -> Segmentation:
        """Segment slices (S, C, H, W), each with its context, with values as in training, a single network as evaluate
        in engine_synapse.py does.

        The probabilities of several networks, or of windows, are resized before the classes are decided."""
        if len(self.members) > 1 or self.options.sliding_window:
            return self.segment(self._answers(slices))
        (member,), answers = self.members, []

        def network(inputs: torch.Tensor) -> torch.Tensor:
            answers.append(member(inputs))
            return answers[0].output

        size, resizing = (self.config.image_size,) * 2, self.config.volume_resize
        mask = predict_slices(network, slices, size, "cpu", resizing, self.config.slice_fit)
        if not (self.options.probabilities or member.spread):
            return Segmentation(mask)
        return self.segment([member.at_own_size(answers[0], slices.shape[2:]).activated()], mask)

    def _answers(self, slices: np.ndarray) -> list[ViewAverage]:
        """Return each network's probabilities (S, classes, H, W) of slices (S, C, H, W)."""
        if not self.options.sliding_window:
            answers = [(member, member.answer_slices(slices)) for member in self.members]
            return [member.at_own_size(answer, slices.shape[2:]).activated() for member, answer in answers]
        images = [torch.from_numpy(channels) for channels in slices]
        return [join(torch.cat, [member.answer_windows(image) for image in images]) for member in self.members]


def combine(answers: Sequence[ViewAverage], views: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Average the probabilities of one or several networks: (probabilities (B, C, H, W), disagreement (B, H, W)).

    The disagreement is the standard deviation of a class's probability over all members, for the class where it is
    largest: 0 where all agree, 0.5 where half of them are sure of a class and the others are sure of its absence. Views
    are compared at the network's own size, networks at the input's. It is None for a single member."""
    if len(answers) == 1 and views == 1:
        return answers[0].output, None
    outputs, means, squares = (torch.stack(parts) for parts in zip(*answers, strict=True))
    mean = means.mean(0)
    total = squares.sum(0) + views * (means - mean).square().sum(0)
    return outputs.mean(0), (total.clamp(min=0) / (views * len(answers))).sqrt().amax(1)


def check_distinct(networks: Sequence[torch.nn.Module], names: Sequence[str]) -> None:
    """Raise ValueError if two networks have the same weights."""
    weights = [network.state_dict() for network in networks]
    for (first, a), (second, b) in itertools.combinations(zip(names, weights, strict=True), 2):
        if a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a):
            raise ValueError(f"{second}: found the weights of {first} again, expected each network once")


def check_compatible(members: Sequence[EnsembleMember], names: Sequence[str]) -> None:
    """Raise ValueError unless the networks share input kind, classes, intensities, context and threshold."""
    first, *others = (_shared_values(member.config) for member in members)
    for values, name in zip(others, names[1:], strict=True):
        for what, value in values.items():
            if value != first[what]:
                raise ValueError(f"{name}: found {what} {value}, expected {first[what]} as in {names[0]}")


def _shared_values(config: Any) -> dict[str, Any]:
    intensities = "of CT" if config.dataset in CT_DATASETS else f"of the data set {config.dataset!r}"
    if config.of_volumes and config.scaling:
        intensities = f"by {config.scaling} {config.scaling_range}"
    return {
        "kind": "volumes" if config.of_volumes else "images",
        "num_classes": config.num_classes,
        "class names": config.structures,
        "labels": mask_values(config) or tuple(range(config.num_classes)),
        "intensities": intensities if config.of_volumes else "of images",
        "--context": getattr(config, "context", 0),
        "--threshold": None if config.num_classes > 1 else config.threshold,
    }
