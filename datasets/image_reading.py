"""Image files: which ones are read, and their pixels as RGB or grey levels."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from datasets.array_checks import check_finite
from utils.files import open_image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
OTHER_PICTURES = (  # picture formats that are not read
    *(".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    *(".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".svs", ".ndpi", ".mrxs", ".dds", ".exr"),
)
MASK_SUFFIX = "_segmentation"  # ends the stem of ISIC's mask files


def is_superpixels(path: Path) -> bool:
    """Return whether a file holds ISIC's superpixels, which are distributed beside the images."""
    return path.stem.endswith("_superpixels")


def check_training_image(file: Image.Image) -> None:
    """Raise ValueError for an image or mask of a single pixel, which is almost certainly a mistake."""
    if file.width * file.height < 2:
        raise ValueError("it has one pixel, expected an image")


def check_opaque(file: Image.Image) -> None:
    """Raise ValueError for an image with transparent pixels, by an alpha channel, a palette or a transparent colour."""
    if is_deep(file) and "transparency" in file.info:
        check_alpha(np.asarray(file) != file.info["transparency"])
    elif file.has_transparency_data:
        check_alpha(np.asarray(file.convert("RGBA").getchannel("A")))


def check_alpha(alpha: np.ndarray) -> None:
    """Raise ValueError for opacities (H, W) that differ or are all 0: the colours of invisible pixels are arbitrary."""
    if alpha.min() != alpha.max() or not alpha.max():
        raise ValueError("it is transparent in places, expected an image without transparency")


def read_image(path: str | Path) -> torch.Tensor:
    """Read an image file as RGB: uint8 tensor (3, H, W). Grey levels of more than 8 bits are stretched to 0..255."""
    with open_image(path) as file:
        return rgb(file)


def rgb(file: Image.Image) -> torch.Tensor:
    """Return the pixels of an open image as `read_image` does, in training and in prediction."""
    check_opaque(file)
    pixels = stretched_rgb(deep_values(file)) if is_deep(file) else np.asarray(file.convert("RGB"))
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))  # PyTorch takes twice as long to copy it


def is_deep(file: Image.Image) -> bool:
    """Return whether an image has grey levels of more than 8 bits."""
    return file.mode == "F" or file.mode.startswith("I")


def deep_values(file: Image.Image) -> np.ndarray:
    """Return the values (H, W) of an image with grey levels of more than 8 bits; brighter pixels have larger values.

    TIFF files may store white as zero. Pillow handles that up to 8 bits only."""
    white_is_zero = getattr(file, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0
    values = np.asarray(file)
    if not white_is_zero:
        return values
    return np.iinfo(np.uint16).max - values if values.dtype == np.uint16 else -values.astype(np.float64)


def stretched_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (H, W) or (H, W, 3) as uint8 (H, W, 3); types other than uint8 are stretched to 0..255."""
    if pixels.dtype != np.uint8:
        pixels = check_finite(pixels, "the image").astype(np.float64)
        pixels = (pixels - pixels.min()) * (255 / max(np.ptp(pixels), 1e-12))
        pixels = pixels.round().astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()
