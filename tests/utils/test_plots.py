import io

import numpy as np
import pytest
import torch
from PIL import Image

from utils import plots


def disc(size=64, radius=20):
    y, x = np.mgrid[:size, :size] - size // 2
    return x**2 + y**2 <= radius**2


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


def test_a_picture_is_saved_as_it_is(tmp_path):
    picture = plots.draw_outlines(np.random.default_rng(0).random((3, 40, 30)), np.ones((40, 30)))
    plots.save_picture(tmp_path / "naïve name.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "naïve name.png")), picture)


def opened(content):
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # the checksums of all chunks
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("shape", [(1, 1), (40, 30), (5, 301, 3)])
def test_a_png_file_keeps_the_pixels(shape):
    picture = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    for part in (picture, picture[::2, ::-1]):
        image = opened(plots.encode_png(part))
        assert image.mode == ("RGB" if len(shape) == 3 else "L")
        assert np.array_equal(np.asarray(image), part)


def test_a_png_file_keeps_sixteen_bits():
    picture = np.random.default_rng(0).integers(65536, size=(20, 30), dtype=np.uint16)
    image = opened(plots.encode_png(picture))
    assert image.mode == "I;16" and np.array_equal(np.asarray(image), picture)


def test_a_png_file_keeps_class_numbers_their_colours_and_exif():
    labels = np.random.default_rng(0).integers(3, size=(20, 30), dtype=np.uint8)
    colours, exif = [(0, 0, 0), (213, 94, 0), (1, 2, 255)], Image.Exif()
    exif[0x0112] = 6
    image = opened(plots.encode_png(labels, colours, exif.tobytes()))
    assert image.mode == "P" and np.array_equal(np.asarray(image), labels)
    assert np.array_equal(np.asarray(image.convert("RGB")), np.array(colours)[labels])
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("shape, dtype", [((4, 4), np.int64), ((4, 4, 3), np.uint16), ((0, 4), np.uint8)])
def test_an_array_that_is_no_picture_is_refused(shape, dtype):
    with pytest.raises((TypeError, ValueError)):
        plots.encode_png(np.zeros(shape, dtype))
