"""Stronger augmentation of slices than the published one, for small data sets: shape, noise, contrast.

Operations, probabilities and ranges are those of nnU-Net's 2-D trainer (nnunetv2, `get_training_transforms`, for square
patches). It draws blur and low resolution for half of the channels, hence the factor 0.5 below. These differ:

  channels       neighbouring slices are one modality, so one draw changes them alike; only the noise is each its own
  values         are 0..1, not z-scores: a change of brightness also moves the mean, the noise is relative to the
                 slice's deviation, and what lies outside of the slice is 0, its darkest value, not its mean
  interpolation  cubic for the image, nearest for the label (linear for both there), because the final zoom, as in the
                 test, is in the same step
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
import torch
import torch.nn.functional as F

from datasets.transforms import window_starts

Change = Callable[[np.ndarray, np.random.RandomState], np.ndarray]


@dataclass
class StrongAugmentation:
    """image (H, W) or (C, H, W), 0..1, label (H, W) integer -> image float32 (C, size, size), label int64 (size, size).

    `rng` draws the decisions, `np_rng` angles, factors and noise. The slice is mirrored along each axis (1/2), rotated
    (1/5, any angle) and scaled (1/5, by 1/1.4 to 1/0.7), 0 outside; then come the CHANGES of its values.

    fit  "zoom": the whole slice is zoomed to `size`; "pad": it keeps its pixels, see RandomGenerator"""

    size: int
    fit: str = "zoom"

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: random.Random, np_rng: np.random.RandomState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        grid = self.draw_grid(label.shape, rng, np_rng)
        image = image.reshape(-1, *label.shape)
        values, classes = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (image, label))
        shaped = F.grid_sample(values[None], grid, mode="bicubic", align_corners=False)[0].numpy()
        target = F.grid_sample(classes[None, None], grid, mode="nearest", align_corners=False)[0, 0]
        for probability, change in CHANGES.values():
            if rng.random() < probability:
                shaped = change(shaped, np_rng)
        return torch.from_numpy(np.ascontiguousarray(shaped, dtype=np.float32)), target.long()

    def draw_grid(self, shape: tuple[int, ...], rng: random.Random, np_rng: np.random.RandomState) -> torch.Tensor:
        """Return the source (x, y) of each output pixel, (1, size, size, 2), with the slice's borders at -1, 1."""
        sides = np.array(shape[::-1], dtype=np.float64)  # width and height, in pixels
        steps, centre = np.linspace(-0.5, 0.5, self.size), np.zeros(2)
        if self.fit == "zoom":
            scale = sides - 1
        else:
            scale = np.full(2, self.size - 1.0)
            centre = np.array(window_starts(shape, self.size, np_rng)[::-1]) + (scale - sides + 1) / 2
        points = np.stack(np.meshgrid(steps, steps), -1) * scale
        points *= [-1 if rng.random() < 0.5 else 1 for _ in range(2)]
        if rng.random() < 0.2:
            angle = np_rng.uniform(-math.pi, math.pi)
            points = points @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        if rng.random() < 0.2:
            points *= np_rng.uniform(0.7, 1.4)
        return torch.from_numpy(((points + centre) / (sides / 2)).astype(np.float32))[None]


def lower_resolution(image: np.ndarray, factor: float) -> np.ndarray:
    """Downsample (C, H, W) by `factor` (nearest), then upsample to the original size (linear)."""
    values, shape = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None], image.shape[1:]
    small = F.interpolate(values, tuple(max(1, round(n * factor)) for n in shape), mode="nearest-exact")
    return F.interpolate(small, shape, mode="bilinear", align_corners=False)[0].numpy()


def change_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the differences from the mean; what leaves the image's own range is clipped."""
    return np.clip((image - image.mean()) * factor + image.mean(), image.min(), image.max())


def draw_gamma(rng: np.random.RandomState) -> float:
    """Draw from 0.7..1 or from 1..1.5, each half of the time."""
    return rng.uniform(*((0.7, 1) if rng.random_sample() < 0.5 else (1, 1.5)))


def change_gamma(image: np.ndarray, gamma: float, inverted: bool) -> np.ndarray:
    """Raise the image, stretched to 0..1, to a power, then restore its mean and standard deviation."""
    mean, deviation = image.mean(), image.std()
    low, high = image.min(), image.max()
    if low == high:
        return image
    unit = (image - low) / (high - low)
    changed = 1 - (1 - unit) ** gamma if inverted else unit**gamma
    return (changed - changed.mean()) / max(changed.std(), 1e-7) * deviation + mean


CHANGES: dict[str, tuple[float, Change]] = {  # of values (C, H, W), in this order: probability, change
    "noise": (0.1, lambda image, rng: image + rng.normal(0, rng.uniform(0, 0.1) * image.std(), image.shape)),
    "blur": (
        0.2 * 0.5,
        lambda image, rng: scipy.ndimage.gaussian_filter(image, (0, *rng.uniform(0.5, 1, 2)), mode="mirror"),
    ),
    "brightness": (0.15, lambda image, rng: image * rng.uniform(0.75, 1.25)),
    "contrast": (0.15, lambda image, rng: change_contrast(image, rng.uniform(0.75, 1.25))),
    "lower resolution": (0.25 * 0.5, lambda image, rng: lower_resolution(image, rng.uniform(0.5, 1))),
    "gamma of the inverted image": (0.1, lambda image, rng: change_gamma(image, draw_gamma(rng), True)),
    "gamma": (0.3, lambda image, rng: change_gamma(image, draw_gamma(rng), False)),
}
