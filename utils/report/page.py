"""What both pages share: the templates, tables, and how values are written."""

import base64
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.report.published import initial_weights
from utils.report.records import Record


def page_bytes(template: str, **values: Any) -> bytes:
    """A page from the folder `templates`, in UTF-8; every value is escaped."""
    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values).encode(errors="backslashreplace")


class Column(NamedTuple):
    """A column of a table: its heading, and its cell as a function of a row, whatever the rows are."""

    heading: str
    cell: Callable[[Any], Any]
    text: bool = False  # words, that may wrap, instead of numbers


def table(
    columns: list[Column], rows: Iterable[Any], caption: str = "", marked: Callable[[Any], bool] = lambda row: False
) -> dict[str, Any]:
    """What the macro of templates/table.html shows; cells of the first column are headings of their rows. Rows for
    which `marked` is true have another colour."""
    return {
        "caption": caption,
        "columns": columns,
        "rows": [{"marked": marked(row), "cells": [column.cell(row) for column in columns]} for row in rows],
    }


def pairs_table(pairs: Iterable[tuple[str, Any]], caption: str = "", text: bool = False) -> dict[str, Any]:
    """A table of names and what belongs to them."""
    return table([Column("", lambda pair: pair[0]), Column("", lambda pair: pair[1], text)], pairs, caption)


# ---- how a run is described


def weights_of(run: Record) -> str:
    if run.config["test_only"]:
        return f"of {run.config['test_only']}"
    return initial_weights(run.config) or run.config["load_ckpt_path"]


def trained(run: Record) -> str:
    if run.config["test_only"]:
        return "tested only"
    done, planned = len(run.epochs), run.config["epochs"]
    return f"{done} epochs" if done == planned else f"{done} of {planned} epochs"


def selected(run: Record) -> int | None:
    """The epoch that was selected, None without one."""
    return None if run.best is None else int(run.best["epoch"])


# ---- how values are written


def css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def data_uri(pixels: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3), as an address that holds it."""
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
