"""Class names, colours and preprocessing that a config takes from its data folder."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import folder_values, resolve


def make_masks(folder, palette=None):
    (folder / "train" / "masks").mkdir(parents=True)
    mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    if palette is not None:
        mask.putpalette(palette)
    mask.save(folder / "train" / "masks" / "a.png")


def resolve_volumes(folder, *flags):
    return resolve(SynapseConfig, ["--dataset", "own", "--data-path", str(folder), *flags])


def resolve_images(folder, *flags):
    return resolve(ISICConfig, ["--dataset", "own", "--data-path", str(folder), "--num-classes", "3", *flags])


def test_names_come_from_the_record_of_prepared_volumes(tmp_path):
    (tmp_path / "preparation.json").write_text(json.dumps({"class_names": ["liver", "spleen"]}))
    assert resolve_volumes(tmp_path, "--num-classes", "3").structures == ["liver", "spleen"]
    assert resolve_volumes(tmp_path, "--class-names", "a", "b").structures == ["a", "b"]
    assert resolve_volumes(tmp_path).num_classes == 3  # none was given
    assert resolve_volumes(tmp_path / "train_npz").num_classes == 9  # no such folder
    with pytest.raises(ValueError, match=r"--num-classes 4.*--num-classes 3 .* 2 .*preparation\.json"):
        resolve_volumes(tmp_path, "--num-classes", "4")
    with pytest.raises(ValueError, match="--num-classes 9.*--num-classes 3"):  # a network of nine classes
        folder_values(SynapseConfig(dataset="own", data_path=str(tmp_path), test_only="best.pth"), ())


def test_scaling_and_orientation_come_from_the_record_too(tmp_path):
    intensities = {"kind": "percentiles", "low": 0.5, "high": 99.5}
    record = {"intensities": intensities, "orientation": "stored"}
    (tmp_path / "preparation.json").write_text(json.dumps(record))
    config = resolve_volumes(tmp_path)
    assert (config.scaling, config.scaling_range, config.orientation) == ("percentiles", (0.5, 99.5), "stored")
    assert resolve_volumes(tmp_path, "--orientation", "stored").orientation == "stored"
    with pytest.raises(ValueError, match="--orientation: .*'LPS'.*'stored'.*preparation.json"):
        resolve_volumes(tmp_path, "--orientation", "LPS")  # the prepared volumes are not so
    assert resolve(SynapseConfig(dataset="own", data_path=str(tmp_path))) == config


@pytest.mark.parametrize(
    "record, word",
    [
        ({"class_names": [1]}, "class_names"),
        ({"intensities": {"kind": "window"}, "orientation": "LPS"}, "intensities"),
        ({"intensities": {"kind": "window", "low": 0, "high": 1}}, "orientation"),
    ],
)
def test_damaged_records_are_named(record, word, tmp_path):
    (tmp_path / "preparation.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"preparation\.json.*{word}"):
        resolve_volumes(tmp_path, "--num-classes", "2")


def test_colours_come_from_the_palette_of_the_masks_or_from_mask_values(tmp_path):
    make_masks(tmp_path / "coloured", [9, 9, 9, 255, 0, 0, 0, 0, 255])
    assert resolve_images(tmp_path / "coloured").structure_colours == ("#ff0000", "#0000ff")
    given = ["--class-colours", "#000001", "#000002"]
    assert resolve_images(tmp_path / "coloured", *given).structure_colours == ("#000001", "#000002")
    make_masks(tmp_path / "grey", [0, 0, 0, 1, 1, 1, 2, 2, 2])
    make_masks(tmp_path / "numbers")
    for name in ("grey", "numbers"):
        assert resolve_images(tmp_path / name).structure_colours == ()
    config = ISICConfig(num_classes=3, mask_values=("#000000", "#00ff00", "#ff00ff"))
    assert config.structure_colours == ("#00ff00", "#ff00ff")
    assert ISICConfig(mask_values=("#000000", "#00ff00")).structure_colours == ()  # one structure has outlines


def test_published_organs_keep_their_names():
    assert SynapseConfig().structures[4] == "liver" and ISICConfig().structures == ["foreground"]
    assert SynapseConfig(num_classes=4).structures == ["class 1", "class 2", "class 3"]
    assert ISICConfig(class_names=("lesion",)).structures == ["lesion"]
