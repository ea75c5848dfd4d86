"""Contact sheets: many small pictures with their masks and names on one PNG."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import binary_erosion

from utils.files import write_atomically
from utils.plots import TRUTH, Colour, class_colours, for_display

SIDE, GAP, LINE, COLUMNS = 144, 6, 13, 12  # pixels of a picture, a gap, a line of text; pictures in a row
OPACITY = 0.55  # of the colours of several classes
TOP = 3 * LINE + GAP  # of the pictures, below title and legend
PAPER, INK, NOTE = (250, 250, 250), (30, 30, 30), (190, 30, 20)


class Cell(NamedTuple):
    """A picture on a sheet."""

    name: str
    read: Callable[
        [], tuple[Any, Any]
    ]  # image (C, H, W) or (H, W), classes (H, W), arrays or tensors; None: unreadable
    note: str = ""


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Return at most `number` of the items, evenly spread, in their order."""
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(number, len(items)))]


def save_sheet(
    path: Path,
    title: str,
    cells: Sequence[Cell],
    class_names: Sequence[str] = (),
    given: Sequence[str] = (),
    side: int = SIDE,
) -> None:
    """Write the cells as a PNG. One class is drawn as an outline, several as colours with a legend, those `given` (see
    `class_colours`). A picture is at most `side` pixels wide and high."""
    colours = class_colours(len(class_names), given)
    columns = max(4, min(COLUMNS, len(cells)))
    step = side + GAP + (2 * LINE if any(cell.note for cell in cells) else LINE)
    sheet = Image.new("RGB", (columns * (side + GAP) + GAP, TOP + -(-len(cells) // columns) * step + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((GAP, GAP), title, INK, font)
    x = GAP
    for name, colour in zip(class_names, colours, strict=True) if len(class_names) > 1 else ():
        draw.text((x, GAP + 2 * LINE - 8), name, colour, font)
        x += 12 + int(font.getlength(name))
    for place, cell in enumerate(cells):
        x, y = GAP + place % columns * (side + GAP), TOP + place // columns * step
        picture = thumbnail(*cell.read(), colours, side)
        sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
        draw.text((x, y + side), shortened(cell.name, font, side), INK, font)
        draw.text((x, y + side + LINE), shortened(cell.note, font, side), NOTE, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def thumbnail(image: Any, classes: Any, colours: Sequence[Colour], side: int) -> Image.Image:
    """Return a thumbnail of an image with its mask in the colours of the classes 1, 2, ...; a red one if the image is
    unreadable. Other numbers in the mask, such as an ignore label, are not drawn."""
    if image is None:
        return Image.new("RGB", (side, side), NOTE)
    image = np.asarray(image)
    as_stored = image.dtype == np.uint8 and image.ndim == 3  # other ranges are stretched
    picture = Image.fromarray(np.moveaxis(image, 0, -1).copy() if as_stored else for_display(image))
    picture = ImageOps.contain(picture, (side, side), Image.Resampling.BOX)
    if classes is None:
        return picture
    classes = Image.fromarray(np.asarray(classes, dtype=np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
    classes, pixels = np.asarray(classes), np.array(picture)
    inside = (classes > 0) & (classes <= len(colours))
    if len(colours) == 1:
        pixels[inside & ~binary_erosion(inside)] = TRUTH
    else:
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * np.array(colours)[classes[inside] - 1]
    return Image.fromarray(pixels)


def shortened(text: str, font: Any, width: int = SIDE) -> str:
    """Return the text, without its middle if it is wider than `width` pixels."""
    short, kept = text, len(text)
    while font.getlength(short) > width:
        kept -= 1
        short = f"{text[: kept // 2]}..{text[-(kept - kept // 2) :]}"
    return short
