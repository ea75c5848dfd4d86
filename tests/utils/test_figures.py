import sys

import numpy as np
import pytest
from PIL import Image

from tests.utils.test_plots import disc
from utils import figures
from utils.files import write_rows

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
DISC = disc()
pytestmark = pytest.mark.usefixtures("drawn")


def test_curves_show_what_the_table_has(tmp_path, monkeypatch):
    drawn = {}
    rows = [{"epoch": e, "lr": 0.001 / e, "train_loss": 1 / e, "val_loss": 2 / e} for e in (1, 2, 3)]
    rows[2] |= {"miou": 0.4, "dsc": 0.6, "dsc_per_image": 0.5, "hd95_transunet": 12.5}  # measured in some epochs only
    write_rows(tmp_path / "metrics.csv", rows)

    def look(figure):
        for axes in figure.axes:
            drawn[axes.get_title()] = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        return np.zeros((1, 1, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(figures, "draw", look)
        figures.save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert list(drawn) == ["loss", "learning rate", "overlap", "HD95"]
    assert drawn["loss"] == {
        "train_loss": [[1, 1], [2, 0.5], [3, 1 / 3]],
        "val_loss": [[1, 2], [2, 1], [3, 2 / 3]],
    }
    assert drawn["overlap"] == {"miou": [[3, 0.4]], "dsc": [[3, 0.6]], "dsc_per_image": [[3, 0.5]]}

    figures.save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height


def test_curves_of_a_run_without_an_epoch(tmp_path):
    figures.save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize("class_names, masks", [(None, DISC[None]), (ORGANS, DISC * 3)])
def test_panels(class_names, masks):
    samples = [(f"$case_{i} 皮肤", np.random.default_rng(i).random((1, 64, 64)), masks, masks) for i in range(2)]
    picture = figures.draw_panels(samples, class_names)
    figure = figures.make_panels(samples, class_names)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["$case_0 □□", "truth", "prediction"]
    height, width, _ = picture.shape
    assert width == 900 and height >= 680  # and the legend of the classes


def test_nothing_is_shared_through_pyplot():
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
