"""Image files as input of a trained network."""

from dataclasses import dataclass

import torch
from PIL import Image

from datasets.formats.dicom import read_photograph
from datasets.formats.reader_process import read_apart
from datasets.image_reading import rgb
from inference.inputs import Input
from utils.files import open_image

EXIF_ORIENTATION = 0x0112


@dataclass
class Picture:
    """An image as training reads it: uint8 (3, H, W), in the order of the stored pixels."""

    pixels: torch.Tensor
    exif: bytes = b""  # the orientation tag, to be copied to masks and overlays


def read_picture(item: Input) -> Picture:
    """Read an image file. Raises ValueError for a file of several pages.

    Pillow applies the orientation tag of a TIFF file to its pixels; the tag is then not passed on."""
    if item.format == "photograph":
        return Picture(torch.tensor(read_apart([item.path], read_photograph, item.path)).permute(2, 0, 1).contiguous())
    with open_image(item.path) as file:
        orientation = None if file.format == "TIFF" else file.getexif().get(EXIF_ORIENTATION)
        exif = Image.Exif()
        if orientation:
            exif[EXIF_ORIENTATION] = orientation
        return Picture(rgb(file), exif.tobytes() if orientation else b"")
