import numpy as np
import pytest

from utils.plots import class_colours
from utils.volume_plots import LINE, PLANES_SIDE, SIDE, draw_mosaic, draw_planes, slice_dice

NAMES, COLOURS = ["liver", "spleen"], class_colours(2)


def volume():
    """Eight slices; slice 2 is predicted right, of slice 5 nothing is, slice 3 has a class too many."""
    image = np.random.default_rng(0).random((8, 30, 40), dtype=np.float32)
    truth = np.zeros(image.shape, np.uint8)
    truth[2:6, 8:20, 10:30] = 1
    prediction = truth.copy()
    prediction[5] = 0
    prediction[3, 22:28, 5:9] = 2
    return image, prediction, truth


def test_dice_of_slices():
    _, prediction, truth = volume()
    scores = slice_dice(prediction, truth)
    assert np.isnan(scores[[0, 1, 6, 7]]).all()
    np.testing.assert_allclose(scores[2:6], [1, 0.5, 1, 0])


def colours_in(picture, colour):
    return int((picture == np.array(colour, np.uint8)).all(-1).sum())


def test_a_mosaic_shows_the_worst_slices_first():
    image, prediction, truth = volume()
    page = draw_mosaic(image, prediction, NAMES, COLOURS, truth)
    width = SIDE + 2
    assert page.shape[1] == 4 * width and page.dtype == np.uint8  # of eight slices four have labels
    only_worst = draw_mosaic(image, prediction, NAMES, COLOURS, truth, count=1)
    tile = page[: only_worst.shape[0] - 2 * LINE, :width]
    np.testing.assert_array_equal(tile[LINE : SIDE // 2], only_worst[LINE : SIDE // 2, :width])
    assert colours_in(only_worst[LINE:SIDE], COLOURS[0]) > 0  # slice 5: the outline of a truth that was missed


def test_the_truth_is_outlined_in_the_colour_of_its_class_and_only_it():
    image, prediction, truth = volume()
    with_truth = draw_mosaic(image, prediction, NAMES, COLOURS, truth)
    without = draw_mosaic(image, prediction, NAMES, COLOURS)
    assert colours_in(with_truth[:SIDE], COLOURS[0]) > 100
    assert colours_in(without[: SIDE // 2], COLOURS[0]) == 0


@pytest.mark.parametrize("spacing", [(6.0, 1.0, 1.0), (0.5, 2.0, 1.0)])
def test_planes_have_the_proportions_of_the_body(spacing):
    """All three planes have one scale: beside the slice lies the row's plane, and beside or below it the column's."""
    image, prediction, truth = volume()
    image += 1  # brighter than the page, so that the planes are what is not black
    page = draw_planes(image, prediction, NAMES, COLOURS, truth, spacing)
    mm = np.array(image.shape) * spacing
    s, h, w = np.rint(mm * PLANES_SIDE / mm.max()).astype(int)
    across = (LINE + s + 2 + LINE, w + 2) if s < h else (LINE, 2 * (w + 2))
    for (row, column), height, width in (((LINE, 0), h, w), ((LINE, w + 2), s, w), (across, s, h)):
        assert page[row : row + height, column : column + width].any(2).all()
        assert not page[row + height : row + height + 2, column : column + width].any()
        assert not page[row : row + height, column + width : column + width + 2].any()


def test_planes_lie_in_the_middle_of_thick_slices():
    """Also where the voxel nearest to the centre of what differs, counted in voxels, is in the last of the slices."""
    truth = np.zeros((8, 30, 40), np.uint8)
    truth[:, 15, [0, 39]] = 1
    truth[7, 15, 20] = 1
    image = np.arange(8, dtype=np.float32)[:, None, None].repeat(30, 1).repeat(40, 2)
    page = draw_planes(image, np.zeros_like(truth), NAMES, COLOURS, truth, (10.0, 1.5, 1.5))
    lowest, highest = (int(page[LINE + 100, column, 0]) for column in (10, 350))
    assert lowest == highest and 80 < lowest < 150  # a slice in the middle has a middle grey


def test_planes_go_through_what_differs_most():
    image, prediction, truth = volume()
    planes = draw_planes(image, prediction, NAMES, COLOURS, truth, (1, 1, 1))
    prediction[5] = truth[5]  # now only the class too many is wrong
    moved = draw_planes(image, prediction, NAMES, COLOURS, truth, (1, 1, 1))
    assert planes.shape == moved.shape and (planes != moved).any()


def test_without_any_label():
    image, prediction, truth = volume()
    nothing = np.zeros_like(truth)
    assert draw_mosaic(image, nothing, NAMES, COLOURS, nothing).ndim == 3
    assert draw_planes(image, nothing, NAMES, COLOURS).ndim == 3
    constant = np.zeros_like(image)
    assert draw_planes(constant, nothing, NAMES, COLOURS, nothing).ndim == 3
