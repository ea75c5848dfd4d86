"""Names and colours of classes: said once, or known to the data folder."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.check import check_config
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from datasets.classes import with_classes
from utils.figures import class_patches, make_panels
from utils.plots import class_colours, draw_labels


def make_masks(folder, palette=None):
    (folder / "train" / "masks").mkdir(parents=True)
    mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    if palette is not None:
        mask.putpalette(palette)
    mask.save(folder / "train" / "masks" / "a.png")


def test_names_come_from_the_record_of_prepared_volumes(tmp_path):
    (tmp_path / "preparation.json").write_text(json.dumps({"class_names": ["liver", "spleen"]}))
    config = SynapseConfig(dataset="own", data_path=str(tmp_path), num_classes=3)
    assert with_classes(config).structures == ["liver", "spleen"]
    said = SynapseConfig(dataset="own", data_path=str(tmp_path), num_classes=3, class_names=("a", "b"))
    assert with_classes(said).structures == ["a", "b"]
    assert with_classes(SynapseConfig(dataset="own", data_path=str(tmp_path))).num_classes == 3  # none was said
    for wrong in ({"num_classes": 4}, {"test_only": "nine_classes.pth"}):
        with pytest.raises(ValueError, match="expected --num-classes 3 for the 2 classes of .*json"):
            with_classes(SynapseConfig(dataset="own", data_path=str(tmp_path), **wrong))


def test_damaged_records_of_names_are_named(tmp_path):
    (tmp_path / "preparation.json").write_text(json.dumps({"class_names": [1]}))
    with pytest.raises(ValueError, match="preparation.json: found .1. as class_names, expected a list of texts"):
        with_classes(SynapseConfig(dataset="own", data_path=str(tmp_path), num_classes=2))


def test_colours_come_from_the_palette_of_the_masks_or_from_mask_values(tmp_path):
    make_masks(tmp_path / "coloured", [9, 9, 9, 255, 0, 0, 0, 0, 255])
    config = ISICConfig(dataset="own", data_path=str(tmp_path / "coloured"), num_classes=3)
    assert with_classes(config).structure_colours == ("#ff0000", "#0000ff")
    make_masks(tmp_path / "grey", [0, 0, 0, 1, 1, 1, 2, 2, 2])
    make_masks(tmp_path / "numbers")
    for name in ("grey", "numbers"):
        config = ISICConfig(dataset="own", data_path=str(tmp_path / name), num_classes=3)
        assert with_classes(config).structure_colours == ()
    config = ISICConfig(num_classes=3, mask_values=("#000000", "#00ff00", "#ff00ff"))
    assert config.structure_colours == ("#00ff00", "#ff00ff")
    assert ISICConfig(mask_values=("#000000", "#00ff00")).structure_colours == ()  # one structure has outlines


def test_published_organs_keep_their_names():
    assert SynapseConfig().structures[4] == "liver" and ISICConfig().structures == ["foreground"]
    assert ISICConfig(class_names=("lesion",)).structures == ["lesion"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"class_names": ("a",)}, "--class-names: found 1 names, expected 2 for --num-classes 3"),
        ({"class_names": ("a", "a")}, "expected different names"),
        ({"class_names": ("a", "b/c")}, "found the name 'b/c', expected one without a path"),
        ({"class_names": ("a", "b\n")}, "expected up to 60 characters on one line"),
        ({"class_names": ("background", "a")}, "and not background"),
        ({"class_colours": ("#ff0000",)}, "--class-colours: found 1, expected 2 for --num-classes 3"),
        ({"class_colours": ("red", "blue")}, "found 'red', expected colours such as #ff0000"),
        ({"num_classes": 1, "class_colours": ("#ff0000",)}, "--class-colours: found 1, expected 0"),
    ],
)
def test_names_and_colours_that_cannot_be_meant_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        check_config(ISICConfig(**{"num_classes": 3} | changes))


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
