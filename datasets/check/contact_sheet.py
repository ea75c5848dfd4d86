"""Contact sheets: many small pictures with their masks and names on one PNG."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import binary_erosion

from utils.files import write_atomically
from utils.plots import TRUTH, class_colours, for_display

SIDE, GAP, LINE, COLUMNS = 144, 6, 13, 12  # pixels of a picture, between two, of a line of text; pictures in a row
OPACITY = 0.55  # of the colours of several classes
PAPER, INK, NOTE = (250, 250, 250), (30, 30, 30), (190, 30, 20)


Item = TypeVar("Item")


class Cell(NamedTuple):
    """A picture on a sheet."""

    name: str
    read: Callable[
        [], tuple[Any, Any]
    ]  # image (C, H, W) or (H, W), classes (H, W): arrays or tensors; None: unreadable
    note: str = ""


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """At most `number` of the items, evenly spread, in their order."""
    number = min(number, len(items))
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, number)] if number else []


def save_sheet(
    path: Path, title: str, cells: Sequence[Cell], num_classes: int, class_names: Sequence[str] = ()
) -> None:
    """Writes the cells as a PNG. One class is drawn as an outline, several as colours with a legend."""
    columns = max(4, min(COLUMNS, len(cells)))
    rows = -(-len(cells) // columns)
    text = 2 * LINE if any(cell.note for cell in cells) else LINE
    step = SIDE + text + GAP
    names = class_names or [f"class {c}" for c in range(1, num_classes)]
    head = 2 * LINE + GAP
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, head + LINE + rows * step + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((GAP, GAP), title, INK, font)
    if num_classes > 1:
        x = GAP
        for name, colour in zip(names, class_colours(num_classes - 1), strict=True):
            draw.rectangle((x, head - 6, x + 9, head + 3), colour)
            draw.text((x + 13, head - 8), name, INK, font)
            x += 24 + int(font.getlength(name))
    for place, cell in enumerate(cells):
        x, y = GAP + place % columns * (SIDE + GAP), head + LINE + place // columns * step
        picture = thumbnail(*cell.read(), num_classes)
        sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        draw.text((x, y + SIDE), shortened(cell.name, font), INK, font)
        draw.text((x, y + SIDE + LINE), shortened(cell.note, font), NOTE, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def thumbnail(image: Any, classes: Any, num_classes: int) -> Image.Image:
    """A small picture of an image with its mask; a grey one with a cross if it can't be read."""
    if image is None:
        picture = Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
        ImageDraw.Draw(picture).line((0, 0, SIDE, SIDE), NOTE, 3)
        ImageDraw.Draw(picture).line((0, SIDE, SIDE, 0), NOTE, 3)
        return picture
    image = np.asarray(image)
    as_stored = image.dtype == np.uint8 and image.ndim == 3  # other ranges are stretched
    picture = Image.fromarray(np.moveaxis(image, 0, -1).copy() if as_stored else for_display(image))
    picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.BOX)
    if classes is None:
        return picture
    classes = Image.fromarray(np.asarray(classes, dtype=np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
    classes, pixels = np.asarray(classes), np.array(picture)
    if num_classes == 1:
        pixels[(classes > 0) & ~binary_erosion(classes > 0)] = TRUTH
    else:
        inside = classes > 0
        colours = np.array(class_colours(num_classes - 1))[classes[inside] - 1]
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * colours
    return Image.fromarray(pixels)


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text with its middle left out where it is wider than a picture."""
    if font.getlength(text) <= SIDE:
        return text
    for kept in range(len(text) - 1, 2, -1):
        short = f"{text[: kept // 2]}..{text[-(kept - kept // 2) :]}"
        if font.getlength(short) <= SIDE:
            return short
    return text[:2]
