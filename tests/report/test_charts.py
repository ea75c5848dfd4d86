import pytest

from report import charts

pytestmark = pytest.mark.usefixtures("drawn")


def axis_labels(svg):
    return [part.split("</text>")[0].split(">")[-1] for part in svg.split("<text")[1:]]


def test_losses_that_span_decades_are_logarithmic_and_others_are_not():
    wide, narrow = {"loss": ([1, 2, 3], [5000, 50, 0.5])}, {"loss": ([1, 2, 3], [3, 2, 1])}
    assert {"1", "10", "100", "1000"} <= set(axis_labels(charts.lines("loss", wide, log=True)))
    assert "1000" in axis_labels(charts.lines("loss", wide)) and "10" not in axis_labels(charts.lines("loss", wide))
    assert "1.5" in axis_labels(charts.lines("loss", narrow, log=True))
    assert charts.lines("loss", {"loss": ([1, 2], [0, 5])}, log=True)  # zero has no logarithm


def test_colours_are_the_pages_own_and_ids_never_repeat():
    one, two = (str(charts.lines("Dice", {"A 1": ([1, 2], [0, 1]), "A 2": ([1, 2], [1, 0])})) for _ in range(2))
    assert "var(--ink)" in one and "var(--s1)" in one and "var(--s2)" not in one  # both lines are of A
    assert "#0000" not in one and "http" not in one.replace("http://www.w3.org", "")
    ids = [part.split('"')[0] for svg in (one, two) for part in svg.split(' id="')[1:]]
    assert len(ids) == len(set(ids)) > 10
