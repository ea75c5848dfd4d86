import numpy as np
import pytest
from PIL import Image, ImageFont

from datasets.check.contact_sheet import GAP, LINE, NOTE, SIDE, TOP, Cell, save_sheet, shortened, spread
from utils.plots import class_colours


@pytest.mark.parametrize(
    "count, number, expected", [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (3, 0, []), (0, 4, [])]
)
def test_spread_keeps_the_ends_and_the_order(count, number, expected):
    assert spread(list(range(count)), number) == expected


def test_long_names_keep_both_ends():
    font = ImageFont.load_default(11)
    short = shortened("patient_with_a_very_long_name_number_0007", font)
    assert short.startswith("patient") and short.endswith("0007") and ".." in short and font.getlength(short) <= SIDE
    assert shortened("short", font) == "short"


def cell_of(sheet, place=0):
    return sheet[TOP : TOP + SIDE, GAP + place * (SIDE + GAP) :][:, :SIDE]


def test_several_classes_are_coloured_and_stored_grey_levels_kept(tmp_path):
    image = np.full((3, SIDE, SIDE), 100, np.uint8)
    classes = np.zeros((SIDE, SIDE), np.uint8)
    classes[:50], classes[100:] = 1, 2
    save_sheet(tmp_path / "sheet.png", "title", [Cell("a", lambda: (image, classes))], ["liver", "spleen"])
    shown = cell_of(np.asarray(Image.open(tmp_path / "sheet.png")))
    assert (shown[50:100] == 100).all()
    for rows, colour in ((slice(0, 50), class_colours(2)[0]), (slice(100, SIDE), class_colours(2)[1])):
        assert np.abs(shown[rows] - (45 + 0.55 * np.array(colour))).max() <= 1


def test_wide_and_unreadable_pictures_and_notes(tmp_path):
    wide = np.full((3, 40, 80), 7, np.uint8)
    cells = [Cell("a", lambda: (wide, None), "a note"), Cell("b", lambda: (None, None))]
    save_sheet(tmp_path / "sheet.png", "title", cells, ["object"])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (cell_of(sheet)[SIDE // 4 : 3 * SIDE // 4] == 7).all() and (cell_of(sheet)[: SIDE // 4 - 1] == 250).all()
    assert (cell_of(sheet, 1) == NOTE).all()
    note = sheet[TOP + SIDE + LINE :, GAP : GAP + SIDE].astype(int)
    assert (note[..., 0] - note[..., 1] > 100).any()  # red letters
