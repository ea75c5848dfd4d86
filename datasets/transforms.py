"""Transforms of an image together with its target.

ISICTransform: normalise, flip, rotate, resize, in the original's order and arithmetic (float64 until the end).
RandomGenerator: TransUNet's augmentation of CT slices. Both draw random numbers only from the generators passed in.
"""

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F

from utils.volume import pad_slices

IMAGENET_MEAN = torch.tensor((0.485, 0.456, 0.406), dtype=torch.float64).view(3, 1, 1)
IMAGENET_STD = torch.tensor((0.229, 0.224, 0.225), dtype=torch.float64).view(3, 1, 1)


def minmax(image: torch.Tensor) -> torch.Tensor:
    """Stretch an image (any shape) to 0..255, over all channels jointly; a constant image becomes 0. Returns float64.

    The original first subtracts and divides by data set constants; the stretch cancels them."""
    low, high = (float(value) for value in image.aminmax())
    if low == high:
        return torch.zeros_like(image, dtype=torch.float64)
    return image.double().sub_(low).div_(high - low).mul_(255)


def imagenet(image: torch.Tensor) -> torch.Tensor:
    """Bring (3, H, W) 0..255 to zero mean and unit variance with ImageNet's constants, (1, H, W) with their means over
    the channels. Returns float64."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if len(image) == 3 else (IMAGENET_MEAN.mean(), IMAGENET_STD.mean())
    return (image.double() / 255 - mean) / std


def grey(image: torch.Tensor) -> torch.Tensor:
    """Return the brightness (1, H, W) uint8 of an image (3, H, W) uint8, equal to Pillow's convert("L")."""
    weighted = image.int() * torch.tensor((19595, 38470, 7471), dtype=torch.int32).view(3, 1, 1)
    return ((weighted.sum(0, keepdim=True) + 0x8000) >> 16).to(torch.uint8)


NORMALIZATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"minmax": minmax, "imagenet": imagenet}


def normalizer(normalization: str, channels: int = 3) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from an image (3, H, W) uint8 to a network's input, float64 (channels, H, W)."""
    if channels not in (1, 3):
        raise ValueError(f"--input-channels {channels}: expected 3 (colour) or 1 (grey) for images")
    normalize = NORMALIZATIONS[normalization]
    return normalize if channels == 3 else functools.partial(_grey_and_normalized, normalize)


def _grey_and_normalized(normalize, image):
    return normalize(grey(image))


@functools.lru_cache(maxsize=2)  # with one angle for the whole run, all images of one size share a map
def rotation_map(height: int, width: int, angle: float) -> torch.Tensor:
    """Return the source of each pixel of a rotated image: 1 + its flat index, 0 outside. (H*W,) int64.

    The arithmetic is that of torchvision's rotate (nearest, no expand), so that a source halfway between two pixels is
    rounded to the same one."""
    turn = math.radians(-angle)
    theta = torch.tensor(((math.cos(turn), -math.sin(turn)), (math.sin(turn), math.cos(turn))), dtype=torch.float64)
    y = torch.linspace(-height / 2 + 0.5, height / 2 - 0.5, height, dtype=torch.float64)
    x = torch.linspace(-width / 2 + 0.5, width / 2 - 0.5, width, dtype=torch.float64)
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (H, W, 2)
    grid = centres @ (theta / torch.tensor((width / 2, height / 2)))
    numbers = torch.arange(1, 1 + height * width, dtype=torch.float64).view(1, 1, height, width)
    return F.grid_sample(numbers, grid[None], mode="nearest", align_corners=False).long().flatten()


def rotate(image: torch.Tensor, angle: float) -> torch.Tensor:
    """Rotate (C, H, W) counter-clockwise by degrees about its centre: nearest neighbour, same size, zeros outside."""
    source = rotation_map(*image.shape[1:], float(angle))
    return F.pad(image.flatten(1), (1, 0)).gather(1, source.expand(len(image), -1)).view_as(image)


def resize(image: torch.Tensor, size: int, mode: str = "bilinear", antialias: bool = False) -> torch.Tensor:
    """Resize (C, H, W) to size x size. "nearest" takes the pixel whose area contains the sampling point."""
    if image.shape[1:] == (size, size):
        return image
    if mode == "nearest":
        return F.interpolate(image[None], (size, size), mode="nearest-exact")[0]
    return F.interpolate(image[None], (size, size), mode="bilinear", align_corners=False, antialias=antialias)[0]


def run_angle(seed: int) -> float:
    """Return the rotation angle in degrees that a whole run uses with rotation "run".

    The original draws one angle when its config is imported, before seeding, and rotates every rotated image by it."""
    return random.Random(f"{seed}/rotation").uniform(0, 360)


@dataclasses.dataclass
class ISICTransform:
    """(image (3, H, W) uint8, mask (1, H, W) uint8, random.Random or None) -> (image, target), resized to `size`.

    image: float32 (3, size, size), or (1, size, size) for a network of one channel; 0..255 with normalization "minmax".
    target: of a binary mask (0..255) float32 (1, size, size) in 0..1; of class ids int64 (size, size).
    With a generator the pair is flipped horizontally, flipped vertically and rotated, each with probability 1/2, by
    three draws in this order; rotation "sample" draws the angle with a fourth. Without one nothing is random."""

    size: int
    binary: bool = True
    angle: float | None = None  # degrees, the same for all images; None draws one for each rotated image
    normalization: str = "minmax"
    mask_resize: str = "bilinear"
    antialias: bool = False
    channels: int = 3

    def __post_init__(self) -> None:
        self.normalize = normalizer(self.normalization, self.channels)
        if not self.binary:
            self.mask_resize = "nearest"  # a blend of two class ids is a third class

    def __call__(
        self, image: torch.Tensor, mask: torch.Tensor, rng: random.Random | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pair = torch.cat((self.normalize(image), mask.double() / 255 if self.binary else mask.double()))
        if rng is not None:
            pair = self.augment(pair, rng)
        image = resize(pair[:-1], self.size, antialias=self.antialias).float()
        mask = resize(pair[-1:], self.size, self.mask_resize, self.antialias)
        return image, mask.float() if self.binary else mask[0].long()

    def augment(self, pair: torch.Tensor, rng: random.Random) -> torch.Tensor:
        """Flip and rotate the channels of image and mask together, (C, H, W)."""
        if rng.random() < 0.5:
            pair = pair.flip(2)
        if rng.random() < 0.5:
            pair = pair.flip(1)
        if rng.random() < 0.5:
            pair = rotate(pair, rng.uniform(0, 360) if self.angle is None else self.angle)
        return pair


def window_starts(shape: Sequence[int], size: int, np_rng: Any) -> list[int]:
    """Return the first row and column of a window of `size` pixels in a slice (H, W): at random along a side that is
    longer, else with the slice in the middle, which `pad_slices` does."""
    return [np_rng.randint(n - size + 1) if n > size and np_rng else -((size - n) // 2) for n in shape]


@dataclasses.dataclass
class RandomGenerator:
    """TransUNet's augmentation of a CT slice: a quarter turn and a flip (1/2), a rotation by -20..19 degrees (1/4) or
    nothing (1/4), then cubic zoom to `size` x `size`.

    image (H, W) or (C, H, W) floating, label (H, W) integer -> image float32 (C, size, size), label int64 (size, size).
    `rng` (random.Random) draws the decisions, `np_rng` (np.random.RandomState) turns, axes and angles; the original
    uses the two global generators for these. Without generators the slice is only zoomed.

    fit  "zoom"; or "pad": the slice keeps its pixels and is surrounded by zeros; where it is larger than `size`, a
         random window of it is taken"""

    size: int
    fit: str = "zoom"

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: random.Random | None = None, np_rng: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image = image.reshape(-1, *label.shape)
        if rng is not None:
            image, label = self.augment(image, label, rng, np_rng)
        factors = (self.size / label.shape[0], self.size / label.shape[1])
        if self.fit == "pad":
            y, x = (max(0, start) for start in window_starts(label.shape, self.size, np_rng))
            window = (..., slice(y, y + self.size), slice(x, x + self.size))
            image, label = (pad_slices(array[window], (self.size, self.size)) for array in (image, label))
        elif factors != (1, 1):
            image = np.stack([scipy.ndimage.zoom(channel, factors, order=3) for channel in image])
            label = scipy.ndimage.zoom(label, factors, order=0)
        image = np.ascontiguousarray(image, dtype=np.float32)
        return torch.from_numpy(image), torch.from_numpy(np.ascontiguousarray(label, dtype=np.int64))

    @staticmethod
    def augment(image: np.ndarray, label: np.ndarray, rng: random.Random, np_rng: Any) -> tuple[np.ndarray, np.ndarray]:
        """Change (C, H, W) and (H, W) alike."""
        both, plane = (image, label), (-2, -1)
        if rng.random() > 0.5:
            turns, axis = np_rng.randint(0, 4), np_rng.randint(0, 2)
            image, label = (np.flip(np.rot90(array, turns, plane), plane[axis]) for array in both)
        elif rng.random() > 0.5:
            angle = np_rng.randint(-20, 20)
            image, label = (scipy.ndimage.rotate(array, angle, plane, order=0, reshape=False) for array in both)
        return image, label
