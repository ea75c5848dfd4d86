"""The user's colours of classes, in pictures and in their legends."""

import numpy as np
import pytest

from utils.figures import class_patches, make_panels
from utils.plots import class_colours, draw_labels


def test_pictures_and_their_legends_have_the_users_colours():
    given = ("#0a141e", "#ffffff")
    assert class_colours(2, given) == [(10, 20, 30), (255, 255, 255)]
    picture = draw_labels(np.zeros((2, 2)), np.array([[0, 1], [2, 2]]), opacity=1, colours=given)
    assert picture[0, 1].tolist() == [10, 20, 30] and (picture[1] == 255).all()
    names = ["_a", "$b$ \u7532"]
    figure = make_panels([("x", np.zeros((1, 8, 8)), np.ones((8, 8)), np.ones((8, 8)))], names, given)
    figure.canvas.draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _a", "$b$ \N{WHITE SQUARE}"]
    assert class_patches(names, given)[0].get_facecolor()[:3] == pytest.approx((10 / 255, 20 / 255, 30 / 255))
