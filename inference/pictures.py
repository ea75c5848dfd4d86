"""Images as a trained network is given them."""

from dataclasses import dataclass

import torch
from PIL import Image

from datasets.isic import rgb
from inference.inputs import Input
from utils.files import open_image

EXIF_ORIENTATION = 0x0112


@dataclass
class Picture:
    """An image as training reads it: uint8 (3, H, W), in the order of the stored pixels."""

    pixels: torch.Tensor
    exif: bytes = b""  # how viewers turn the picture, to be passed on to pictures in its geometry


def read_picture(item: Input) -> Picture:
    """The Picture of an image file. Raises ValueError for a file of several pages.

    Pillow turns the pixels of a TIFF file as its tag says, so that nothing is left to pass on."""
    with open_image(item.path) as file:
        orientation = None if file.format == "TIFF" else file.getexif().get(EXIF_ORIENTATION)
        exif = Image.Exif()
        if orientation:
            exif[EXIF_ORIENTATION] = orientation
        return Picture(rgb(file), exif.tobytes() if orientation else b"")
