import re

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from configs.build import build_model
from configs.config_setting import ISICConfig
from datasets.masks import VOID, read_mask
from inference.inputs import find_inputs
from inference.truth import Truth, dice
from predict import PredictConfig, Predictor
from tests.tiny import ROOT, TRAINING
from utils.files import read_rows
from utils.runs.checkpoint import save_checkpoint
from utils.runs.run_folder import stop_log

SAMPLES = ROOT / "data" / "samples"


@pytest.fixture
def checkpoint(tmp_path):
    """A network that finds everything to be foreground."""
    config = ISICConfig(**TRAINING, dataset="demo")
    model = build_model(config)
    with torch.no_grad():
        model.vmunet.final_conv.weight.zero_()
        model.vmunet.final_conv.bias.fill_(5)
    path = tmp_path / "all.pth"
    save_checkpoint(path, {"model": model.state_dict(), "config": vars(config)})
    return path


def write_images(folder, sizes, masks):
    """Grey images a.png, b.png, ... and masks that mark their upper rows."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for name, size, (mask_size, rows) in zip("abc", sizes, masks, strict=False):
        Image.fromarray(np.arange(size * size, dtype=np.uint8).reshape(size, size)).save(
            folder / "images" / f"{name}.png"
        )
        mask = np.zeros((mask_size, mask_size), np.uint8)
        mask[:rows] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{name}_segmentation.png")


def run(checkpoint, folder, **options):
    try:
        predict.main(
            PredictConfig(
                checkpoint=str(checkpoint),
                inputs=(str(folder / "images"),),
                output=str(folder / "out"),
                device="cpu",
                **{"truth": str(folder / "masks")} | options,
            )
        )
    finally:
        stop_log()


def test_dice_of_masks_by_hand():
    prediction, truth = np.array([[1, 1], [0, 2]]), np.array([[1, 0], [0, 0]])
    assert dice(prediction, truth, 1) == pytest.approx(2 / 3)
    assert dice(prediction, truth, 2) == 0
    assert dice(prediction, truth, 3) is None


def test_pixels_without_a_truth_count_for_nothing():
    prediction, truth = np.array([[1, 1, 1, 0]]), np.array([[1, 0, VOID, VOID]])
    assert dice(prediction, truth, 1) == pytest.approx(2 / 3)


def test_masks_are_compared_and_paired_in_any_unicode_form(checkpoint, tmp_path):
    write_images(tmp_path, [40, 40], [(40, 20), (40, 10)])
    (tmp_path / "images" / "b.png").rename(tmp_path / "images" / "\u00e4.png")
    (tmp_path / "masks" / "b_segmentation.png").rename(tmp_path / "masks" / "a\u0308_segmentation.png")
    run(checkpoint, tmp_path)
    rows = read_rows(tmp_path / "out" / "structures.csv")
    assert [float(row["dice"]) for row in rows] == pytest.approx([2 / 3, 2 * 400 / 2000])
    (path, other) = (tmp_path / "masks").iterdir()
    for file, colours in ((path, (0, 0, 0, 255, 0, 0)), (other, (255, 0, 0, 0, 0, 0))):
        mask = Image.fromarray(np.asarray(Image.open(file)) // 255 ^ (file == other))
        mask.putpalette(colours)  # in another order, of which the colours tell
        mask.save(file)
    run(checkpoint, tmp_path, existing="overwrite")
    assert read_rows(tmp_path / "out" / "structures.csv") == rows


def test_inputs_without_dice_are_predicted_again_for_a_truth(checkpoint, tmp_path):
    write_images(tmp_path, [40, 40], [(40, 20), (40, 40)])
    run(checkpoint, tmp_path, truth=None)
    run(checkpoint, tmp_path, existing="skip")
    rows = read_rows(tmp_path / "out" / "structures.csv")
    assert [float(row["dice"]) for row in rows] == pytest.approx([2 * 800 / (1600 + 800), 1])


def test_dice_stands_in_the_table_and_both_outlines_in_the_overlay(checkpoint, tmp_path):
    write_images(tmp_path, [40, 40], [(40, 20), (40, 40)])
    run(checkpoint, tmp_path)
    rows = read_rows(tmp_path / "out" / "structures.csv")
    assert [float(row["dice"]) for row in rows] == pytest.approx([2 * 800 / (1600 + 800), 1])
    assert re.search("Dice .*2 .*: 0.833", (tmp_path / "out" / "log.txt").read_text(encoding="utf-8"))
    overlay = np.array(Image.open(tmp_path / "out" / "overlays" / "a.png")).reshape(-1, 3).tolist()
    assert [0, 200, 80] in overlay and [255, 60, 40] in overlay


def test_a_mask_of_another_size_costs_its_image_only(checkpoint, tmp_path):
    write_images(tmp_path, [40, 40], [(40, 20), (33, 10)])
    with pytest.raises(ValueError, match=r"1 of 2 .*b\.png"):
        run(checkpoint, tmp_path)
    assert [row["name"] for row in read_rows(tmp_path / "out" / "structures.csv")] == ["a"]
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    assert re.search(r"b_segmentation\.png.*33x33.*40x40", log)


def test_an_image_without_a_mask_is_named_before_anything_is_written(checkpoint, tmp_path):
    write_images(tmp_path, [40, 40], [(40, 20), (40, 40)])
    (tmp_path / "masks" / "b_segmentation.png").unlink()
    with pytest.raises(ValueError, match=r"--truth .*b\.png"):
        run(checkpoint, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_file_is_the_truth_of_one_input_only(tmp_path):
    write_images(tmp_path, [40, 40], [(40, 20), (40, 40)])
    first, second = find_inputs([tmp_path / "images"])
    file = tmp_path / "masks" / "b_segmentation.png"
    assert Truth(file, [first], ISICConfig()).files == {first: file}
    with pytest.raises(ValueError, match="--truth .*b_segmentation"):
        Truth(file, [first, second], ISICConfig())


def test_the_shipped_network_finds_the_sample_lesions_as_the_readme_says():
    inputs = find_inputs([SAMPLES / "images"])
    scores = []
    for item, result in Predictor("isic17", device="cpu", batch_size=2).predict_all(inputs):
        truth = read_mask(SAMPLES / "masks" / f"{item.stem}_segmentation.png")[0].numpy() >= 128
        scores.append(dice(result.mask, truth, 1))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"Dice ([\d., ]+) and ([\d.]+)\.\*", text)
    said = [float(number) for number in said[1].split(", ")] + [float(said[2])]
    assert sorted(scores, reverse=True) == pytest.approx(said, abs=0.006)
