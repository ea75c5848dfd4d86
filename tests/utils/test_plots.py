import sys

import numpy as np
import pytest
import torch
from PIL import Image

from utils import plots
from utils.files import write_rows

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")


def disc(size=64, radius=20):
    y, x = np.mgrid[:size, :size] - size // 2
    return x**2 + y**2 <= radius**2


def test_curves_show_what_the_table_has(tmp_path, monkeypatch):
    drawn = {}
    rows = [{"epoch": e, "lr": 0.001 / e, "train_loss": 1 / e, "val_loss": 2 / e} for e in (1, 2, 3)]
    rows[2] |= {"miou": 0.4, "dsc": 0.6, "dsc_per_image": 0.5, "hd95_transunet": 12.5}  # measured in some epochs only
    write_rows(tmp_path / "metrics.csv", rows)

    def look(figure, path, **options):
        for axes in figure.axes:
            drawn[axes.get_title()] = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}

    with monkeypatch.context() as patch:
        patch.setattr(plots.Figure, "savefig", look)
        plots.save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert list(drawn) == ["loss", "learning rate", "overlap", "HD95"]
    assert drawn["loss"] == {
        "train_loss": [[1, 1], [2, 0.5], [3, 1 / 3]],
        "val_loss": [[1, 2], [2, 1], [3, 2 / 3]],
    }
    assert drawn["overlap"] == {"miou": [[3, 0.4]], "dsc": [[3, 0.6]], "dsc_per_image": [[3, 0.5]]}

    plots.save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height


def test_curves_of_a_run_without_an_epoch(tmp_path):
    plots.save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 8, 6), (8, 6)])
def test_images_of_any_range_become_pictures(shape):
    image = torch.linspace(-3, 5, int(np.prod(shape))).view(shape)
    picture = plots.for_display(image)
    assert picture.shape == (8, 6, 3) and picture.dtype == np.uint8
    assert picture.min() == 0 and picture.max() == 255
    assert (plots.for_display(torch.zeros(shape)) == 128).all()


def test_outlines_lie_on_the_borders_and_leave_the_rest_alone():
    image, mask = np.zeros((3, 64, 64)), disc()
    image[:, 0, 0] = 1
    picture = plots.draw_outlines(image, mask, truth=np.zeros((1, 64, 64), bool))
    red = (picture == plots.PREDICTION).all(-1)
    assert red[32, 52] and red[12, 32] and not red[32, 32] and not red[~mask].any()
    assert (picture[~red] == plots.for_display(image)[~red]).all()


def test_labels_are_coloured_and_background_is_not():
    labels = np.zeros((64, 64), int)
    labels[disc()] = 4
    image = np.random.default_rng(0).random((1, 64, 64))
    picture = plots.draw_labels(image, labels, opacity=1)
    assert (picture[disc()] == plots.class_colours(4)[3]).all()
    assert (picture[~disc()] == plots.for_display(image)[~disc()]).all()


def test_every_class_has_a_colour_of_its_own():
    colours = plots.class_colours(20)
    assert len(set(colours)) == 20 and colours[:8] == plots.class_colours(8)


@pytest.mark.parametrize("class_names, masks", [(None, disc()[None]), (ORGANS, disc() * 3)])
def test_panels(tmp_path, class_names, masks):
    samples = [(f"$case_{i} 皮肤", np.random.default_rng(i).random((1, 64, 64)), masks, masks) for i in range(2)]
    plots.save_panels(tmp_path / "panels.png", samples, class_names)
    figure = plots.make_panels(samples, class_names)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["$case_0 □□", "truth", "prediction"]
    with Image.open(tmp_path / "panels.png") as picture:
        assert picture.width == 900 and picture.height >= 680  # and the legend of the classes


def test_a_picture_is_saved_as_it_is(tmp_path):
    picture = plots.draw_outlines(np.random.default_rng(0).random((3, 40, 30)), np.ones((40, 30)))
    plots.save_picture(tmp_path / "naïve name.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "naïve name.png")), picture)


def test_tensorboard_gets_scalars_and_panels(tmp_path):
    writer = plots.EventWriter(tmp_path)
    writer.add_scalar("loss/train", 0.5, 3)
    plots.add_panels(writer, "predictions", [("a", np.zeros((1, 32, 32)), np.zeros((32, 32)), np.ones((32, 32)))], 3)
    writer.close()
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    assert b"loss/train" in content and b"\x89PNG" in content


def test_only_the_main_process_writes_to_tensorboard(tmp_path, monkeypatch):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    writer = plots.EventWriter(tmp_path)
    writer.add_scalar("loss/train", 0.5, 3)
    writer.close()
    assert not list(tmp_path.iterdir())


def test_nothing_is_shared_through_pyplot():
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
