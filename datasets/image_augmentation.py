"""Strong augmentation of photographs: shape and colour, so that a network also works on those of other cameras.

Each sample draws its parameters when it is loaded. A whole batch is augmented at once on the network's device, because
a CPU would need more time for this than a GPU for the training step.
"""

import dataclasses
import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, ISICTransform

RANGES: dict[str, tuple[float, float]] = {  # of each parameter of a sample, which is drawn uniformly
    "mirror": (-1, 1),  # mirrored below 0; with any rotation this is a flip along any axis
    "angle": (-math.pi, math.pi),
    "scale": (0.7, 1.3),
    "aspect": (0.85, 1.15),  # width to height
    "shear": (-0.1, 0.1),
    "shift_x": (-0.15, 0.15),  # as parts of the side
    "shift_y": (-0.15, 0.15),
    "brightness": (0.8, 1.2),
    "contrast": (0.75, 1.3),  # about the mean grey value
    "saturation": (0.7, 1.35),
    "red": (0.9, 1.1),
    "green": (0.9, 1.1),
    "blue": (0.9, 1.1),
    "gamma": (0.8, 1.25),
}
GREY = (0.299, 0.587, 0.114)  # the weights of the channels in a grey value


def draw_parameters(rng: random.Random) -> Tensor:
    """Return a value for each row of RANGES, in this order."""
    return torch.tensor([rng.uniform(*limits) for limits in RANGES.values()], dtype=torch.float32)


@dataclasses.dataclass
class StrongTransform(ISICTransform):
    """(image (3, H, W) uint8, mask (1, H, W) uint8, random.Random) -> (image, target, parameters) for `finish`.

    image: uint8 (3, size, size). target: as in ISICTransform. Both are only resized; `angle` is not used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.normalize = Tensor.double  # `finish` normalises, after the change of colours

    def __call__(self, image, mask, rng):  # type: ignore[override]  # one tensor more
        image, target = super().__call__(image, mask)
        return image.round().byte(), target, draw_parameters(rng)

    @torch.no_grad()
    def finish(self, images: Tensor, targets: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the augmented, normalised batch as ISICTransform makes it: images float32 (B, channels, size, size),
        targets float32 (B, 1, size, size) or class ids int64 (B, size, size).

        parameters  (B, len(RANGES)), see `draw_parameters`"""
        drawn = dict(zip(RANGES, parameters.T[:, :, None, None], strict=True))  # each (B, 1, 1)
        grid = source_grid(self.size, drawn)
        images = F.grid_sample(images.float() / 255, grid, "bilinear", "reflection", align_corners=False)
        masks = targets if self.binary else targets[:, None].float()
        masks = F.grid_sample(masks, grid, "nearest", "reflection", align_corners=False)
        return self.normalize_batch(change_colours(images, drawn)), masks if self.binary else masks[:, 0].long()

    def normalize_batch(self, images: Tensor) -> Tensor:
        """Return images 0..1 (B, 3, H, W) as `datasets.transforms.normalizer` would from 0..255, in float32."""
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if self.channels == 1:
            images, mean, std = grey(images), mean.mean(), std.mean()
        if self.normalization == "imagenet":
            return (images - mean.to(images)) / std.to(images)
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return (images - low) * (255 / (high - low).clamp_min(1e-6))


def source_grid(size: int, drawn: dict[str, Tensor]) -> Tensor:
    """Return where each pixel of the new images comes from, (B, size, size, 2) as x, y, with the borders at -1, 1."""
    steps = (2 * torch.arange(size, device=drawn["angle"].device, dtype=torch.float32) + 1) / size - 1
    x, y = steps, steps[:, None]
    cos, sin, stretch = drawn["angle"].cos(), drawn["angle"].sin(), drawn["aspect"].sqrt()
    along_x = torch.where(drawn["mirror"] < 0, -1, 1) / (drawn["scale"] * stretch)
    along_y = stretch / drawn["scale"]
    source_x = cos * along_x * x + (cos * drawn["shear"] - sin) * along_y * y + 2 * drawn["shift_x"]
    source_y = sin * along_x * x + (sin * drawn["shear"] + cos) * along_y * y + 2 * drawn["shift_y"]
    return torch.stack((source_x, source_y), -1)


def change_colours(images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """Return images 0..1 (B, 3, H, W) with other colours; values beyond 0..1 saturate, as in a camera."""
    images = images * drawn["brightness"][:, None]
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, drawn["contrast"][:, None])
    images = torch.lerp(grey(images), images, drawn["saturation"][:, None])
    tint = torch.stack([drawn[name] for name in ("red", "green", "blue")], 1)
    return (images * tint).clamp(0, 1) ** drawn["gamma"][:, None]


def grey(images: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W) of images (B, 3, H, W)."""
    red, green, blue = (weight * images[:, c : c + 1] for c, weight in enumerate(GREY))
    return red + green + blue
