"""What both pages share: the templates, and how values are written."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.report.published import initial_weights


def render(template, **values):
    """A page from utils/templates; every value is escaped."""
    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)


def weights_of(run):
    if run.config["test_only"]:
        return f"of {run.config['test_only']}"
    return initial_weights(run.config) or run.config["load_ckpt_path"]


def trained(run):
    if run.config["test_only"]:
        return "tested only"
    done, planned = len(run.epochs), run.config["epochs"]
    return f"{done} epochs" if done == planned else f"{done} of {planned} epochs"


def css(colour):
    return "#{:02x}{:02x}{:02x}".format(*colour)


def data_uri(pixels):
    """A picture, uint8 (H, W, 3), as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def percent(share):
    return f"{100 * share:.2f}"


def seconds(number):
    hours, rest = divmod(round(number), 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{number:.1f} s"
