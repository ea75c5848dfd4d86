"""What all pages share: the templates, tables, and how values are written."""

import base64
import io
import itertools
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from report.paper import initial_weights
from report.records import Record
from utils.files import open_image

Contents = dict[str, Any]  # what a template shows


def page_bytes(template: str, **values: Any) -> bytes:
    """Render a page from the folder `templates`, in UTF-8; every value is escaped."""
    options: dict[str, Any] = {
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), **options)
    environment.filters |= {"percent": percent, "seconds": seconds, "median": statistics.median}
    return environment.get_template(template).render(values).encode(errors="backslashreplace")


TableCell = tuple[Any, ...]  # heading of its column, value; TEXT for words, which may wrap, instead of numbers
TEXT = "text"  # the class of such cells in the style sheet


def table(
    rows: Iterable[Sequence[TableCell]], caption: str = "", marked: Iterable[bool] = itertools.repeat(False)
) -> Contents:
    """Return what templates/table.html shows: first cells are headings of rows, `marked` rows have another colour."""
    return {"caption": caption, "rows": [{"cells": c, "marked": m} for c, m in zip(rows, marked, strict=False)]}


def weights_of(run: Record) -> str:
    if run.config["test_only"]:
        return f"of {run.config['test_only']}"
    return initial_weights(run.config) or run.config["load_ckpt_path"]


def training_length(run: Record) -> str:
    if run.config["test_only"]:
        return "tested only"
    done, planned = len(run.epochs), run.config["epochs"]
    return f"{done} epochs" if done == planned else f"{done} of {planned} epochs"


def css_colour(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def read_rgb(path: Path) -> np.ndarray:
    with open_image(path) as file:
        return np.array(file.convert("RGB"))


def data_uri(pixels: np.ndarray) -> str:
    """Return a picture, uint8 (H, W, 3), as an address that contains it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def seconds(number: float) -> str:
    hours, rest = divmod(round(number), 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{number:.1f} s"
