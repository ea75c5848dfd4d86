"""One trained network among those that predict together, and how their answers become one.

The members of an answer are the networks, and of each the views of test-time augmentation. Maps are tensors
(..., C, H, W) of one network's probabilities, or of 3 C channels where there are several members: the probabilities,
and of its views the mean probabilities and the sum of squared differences from them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from configs.network import prepare
from datasets.transforms import grey, normalizer, resize
from engine import Execution
from inference.network import BatchedNetwork, activate
from inference.options import Options
from inference.trained import CT_DATASETS, Trained
from utils.volume import zoom_cubic


class Member:
    """A trained network that makes maps of images and slices.

    spread  whether its maps have 3 C channels"""

    def __init__(self, trained: Trained, options: Options, device: torch.device, spread: bool):
        self.config = trained.config
        self.sha256 = trained.checkpoint.sha256  # of the checkpoint's file
        self.spread = spread
        self.network = BatchedNetwork(
            prepare(trained.network, self.config, device, trains=False),
            Execution(device, self.config.precision),
            self.config.image_size,
            options.tta,
            options.overlap,
            options.batch_size,
            spread,
        )

    def prepare(self, picture: torch.Tensor) -> torch.Tensor:
        """A uint8 picture (3, H, W) as the network gets it."""
        normalize = normalizer(self.config.normalization, self.config.input_channels)
        return resize(normalize(picture), self.config.image_size, antialias=self.config.antialias).float()

    def of_pictures(self, pictures: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Maps of uint8 pictures (3, H, W), each at its own size; `inputs` are what `prepare` made of them."""
        for picture, maps in zip(pictures, self._maps(self.network(torch.stack(tuple(inputs)))), strict=True):
            own = picture.shape[1:]
            if own != maps.shape[1:]:
                maps = F.interpolate(maps[None], own, mode="bilinear", align_corners=False)[0]
            yield maps

    def of_picture_by_windows(self, picture: torch.Tensor) -> torch.Tensor:
        """Maps of a uint8 picture (3, H, W), in windows at its own scale."""
        normalize = normalizer(self.config.normalization, self.config.input_channels)
        return self.by_windows(normalize(picture).float())

    def by_windows(self, image: torch.Tensor) -> torch.Tensor:
        """Maps of an image (C, H, W) as the network gets it, in windows at its own scale."""
        return self._maps(self.network.by_windows(image[None]))[0]

    def of_slices(self, slices: np.ndarray) -> torch.Tensor:
        """Maps (S, ...) of slices (S, H, W) with values of training, at their own size."""
        inputs = zoom_cubic(slices, (self.config.image_size,) * 2).astype(np.float32)
        return self.resized(self.network(torch.from_numpy(inputs)[:, None]), slices.shape[1:])

    def resized(self, answer: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Maps at another size of what the network answered to slices, corner-aligned as the zoom to its input was."""
        return self._maps(F.interpolate(answer, tuple(size), mode="bilinear", align_corners=True))

    def _maps(self, answer: torch.Tensor) -> torch.Tensor:
        """The network's answer (B, C or 3 C, H, W), logits first, as maps."""
        if not self.spread:
            return activate(answer)
        logits, rest = answer.tensor_split([answer.shape[1] // 3], 1)
        return torch.cat([activate(logits), rest], 1)


def agree(maps: Sequence[torch.Tensor], views: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(probabilities (..., C, H, W), disagreement (..., H, W)) from the maps of one or several networks.

    The probabilities are the mean of those of the networks. The disagreement is the standard deviation of a class's
    probability over all members, of the class where it is largest: from 0, where all say the same, to 0.5, where half
    of them are sure of a class and the others are sure that it is not there. Views are compared at the network's own
    size, networks at the input's. None for a single member."""
    if len(maps) == 1 and views == 1:
        return maps[0], None
    probs, means, squares = (torch.stack(parts) for parts in zip(*(m.chunk(3, -3) for m in maps), strict=True))
    mean = means.mean(0)
    total = squares.sum(0) + views * (means - mean).square().sum(0)
    return probs.mean(0), (total.clamp(min=0) / (views * len(maps))).sqrt().amax(-3)


def check_alike(members: Sequence[Member], names: Sequence[str]) -> None:
    """Raises ValueError unless the networks tell the same classes apart, in inputs of one kind, by one rule."""
    first, *others = (member.config for member in members)
    for config, name in zip(others, names[1:], strict=True):
        for what, one, other in (
            ("kind", *("volumes" if c.of_volumes else "images" for c in (first, config))),
            ("num_classes", first.num_classes, config.num_classes),
            ("class names", first.structures, config.structures),
            ("intensities", *(_intensities(c) for c in (first, config))),
            ("--threshold", *(None if c.num_classes > 1 else c.threshold for c in (first, config))),
        ):
            if one != other:
                raise ValueError(
                    f"{name}: found {what} {other}, expected {one} as of {names[0]}, to be averaged with it"
                )


def _intensities(config: Any) -> str:
    """Which values of volumes a network was trained on."""
    if not config.of_volumes:
        return "of images"
    if config.scaling:
        return f"by {config.scaling} {config.scaling_range}"
    return "of CT" if config.dataset in CT_DATASETS else f"of the data set {config.dataset!r}"


def as_slice(pixels: torch.Tensor) -> np.ndarray:
    """A uint8 picture (3, H, W) as one slice (1, H, W) for a network of volumes: grey, 0..1."""
    return (grey(pixels).float() / 255).numpy()
