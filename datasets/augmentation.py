"""Stronger augmentation of slices than the published one, for small data sets: shape, noise, contrast.

Operations and probabilities follow nnU-Net's 2-D augmentation (Isensee et al. 2021, supplementary note 4); an elastic
deformation is added. The whole change of shape, including the final resize, is one interpolation.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

CONTROL_POINTS = 6  # along each axis of the elastic deformation, which is cubic between them


@dataclass
class StrongAugmentation:
    """image (H, W) floating 0..1, label (H, W) integer -> image float32 (1, size, size), label int64 (size, size).

    `rng` draws the decisions, `np_rng` angles, factors and noise. In this order, each with its own probability:
    shape      mirrored along each axis (1/2), rotated (1/5, any angle), scaled (1/5, by 0.7 to 1.4), deformed (1/5);
               cubic for the image, nearest for the label, 0 outside
    intensity  noise (1/10), blur (1/5), brightness and contrast (3/20 each), lower resolution (1/4), gamma of the
               inverted image (1/10), gamma (3/10)"""

    size: int

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: random.Random, np_rng: np.random.RandomState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        grid = self.draw_grid(image.shape, rng, np_rng)
        values = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
        classes = torch.from_numpy(np.ascontiguousarray(label, dtype=np.float32))[None, None]
        shaped = F.grid_sample(values, grid, mode="bicubic", align_corners=True)[0, 0]
        target = F.grid_sample(classes, grid, mode="nearest", align_corners=True)[0, 0]
        return torch.from_numpy(self.change_intensity(shaped.numpy(), rng, np_rng))[None], target.long()

    def draw_grid(self, shape: tuple[int, ...], rng: random.Random, np_rng: np.random.RandomState) -> torch.Tensor:
        """Return the source (x, y) of each output pixel, (1, size, size, 2), with the outermost centres at -1, 1."""
        half = (np.array(shape[::-1], dtype=np.float64) - 1) / 2  # of width and height, in pixels
        steps = np.linspace(-1, 1, self.size)
        points = np.stack(np.meshgrid(steps, steps), -1) * half
        points *= [-1 if rng.random() < 0.5 else 1 for _ in range(2)]
        if rng.random() < 0.2:
            angle = np_rng.uniform(-math.pi, math.pi)
            points = points @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        if rng.random() < 0.2:
            points /= np_rng.uniform(0.7, 1.4)
        if rng.random() < 0.2:
            points += self.draw_deformation(np_rng, half.max() * 0.06)
        return torch.from_numpy((points / np.maximum(half, 0.5)).astype(np.float32))[None]

    def draw_deformation(self, rng: np.random.RandomState, deviation: float) -> np.ndarray:
        """Return a smooth displacement (size, size, 2) in pixels with this standard deviation at its control points."""
        control = torch.from_numpy(rng.normal(0, deviation, (1, 2, CONTROL_POINTS, CONTROL_POINTS)))
        field = F.interpolate(control, (self.size, self.size), mode="bicubic", align_corners=True)
        return field[0].permute(1, 2, 0).numpy()

    @staticmethod
    def change_intensity(image: np.ndarray, rng: random.Random, np_rng: np.random.RandomState) -> np.ndarray:
        """Return float32 (size, size); brightness and noise may exceed 0..1."""
        if rng.random() < 0.1:
            image = image + np_rng.normal(0, math.sqrt(np_rng.uniform(0, 0.1)) * image.std(), image.shape)
        if rng.random() < 0.2:
            image = ndimage.gaussian_filter(image, np_rng.uniform(0.5, 1))
        if rng.random() < 0.15:
            image = image * np_rng.uniform(0.75, 1.25)
        if rng.random() < 0.15:
            low, high, mean = image.min(), image.max(), image.mean()
            image = np.clip((image - mean) * np_rng.uniform(0.75, 1.25) + mean, low, high)
        if rng.random() < 0.25:
            image = lower_resolution(image, np_rng.uniform(0.5, 1))
        for probability, inverted in ((0.1, True), (0.3, False)):
            if rng.random() < probability:
                image = change_gamma(image, np_rng.uniform(0.7, 1.5), inverted)
        return np.ascontiguousarray(image, dtype=np.float32)


def lower_resolution(image: np.ndarray, factor: float) -> np.ndarray:
    """Downsample by `factor` (nearest), then upsample to the original size (cubic)."""
    values = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    small = F.interpolate(values, tuple(max(1, round(n * factor)) for n in image.shape), mode="nearest-exact")
    return F.interpolate(small, image.shape, mode="bicubic", align_corners=False)[0, 0].numpy()


def change_gamma(image: np.ndarray, gamma: float, inverted: bool) -> np.ndarray:
    """Raise the image, stretched to 0..1, to a power, then restore its mean and standard deviation."""
    mean, deviation = image.mean(), image.std()
    low, high = image.min(), image.max()
    if low == high:
        return image
    unit = (image - low) / (high - low)
    changed = 1 - (1 - unit) ** gamma if inverted else unit**gamma
    return (changed - changed.mean()) / max(changed.std(), 1e-7) * deviation + mean
