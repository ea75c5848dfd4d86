"""The fitted temperature is what the logits are off by; the errors are those of their definitions."""

import numpy as np
import pytest
import torch
from PIL import Image

from configs.config_setting import ISICConfig
from inference import calibration
from inference.calibration import CalibrationConfig, dataset_of, fit, main, measure, pixels
from inference.trained import load_trained
from tests.inference.networks import SMALL, save_trained


def drawn_images(factor, classes):
    """Two images whose classes are drawn with the probabilities of logits, which are then multiplied."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 40_000, classes, generator=generator)
    drawn = [torch.multinomial(image.softmax(1), 1, generator=generator)[:, 0].byte() for image in logits]
    return list(zip(factor * logits, drawn, strict=True))


@pytest.mark.parametrize("factor, classes", [(3.0, 2), (0.5, 2), (3.0, 4)])
def test_the_temperature_is_what_the_logits_are_off_by(factor, classes):
    images = drawn_images(factor, classes)
    assert fit(images) == pytest.approx(factor, rel=0.03)
    (before, _), (after, curve) = (measure(images, temperature) for temperature in (1, factor))
    assert after[0] < 0.01 < 0.04 < before[0] and after[1] < before[1] and after[2] < before[2]
    np.testing.assert_allclose(*curve, atol=0.05)


@pytest.mark.parametrize("classes, at_the_limit", [([0, 0, 1, 1], True), ([1, 0, 0, 0], False)])
def test_a_temperature_at_the_limit_is_told(classes, at_the_limit, folder, binary, monkeypatch, capsys):
    logits = torch.tensor([[0.0, 3], [0, 3], [3, 0], [3, 0]])
    monkeypatch.setattr(calibration, "pixels", lambda *_: [(logits, torch.tensor(classes).byte())])
    main(CalibrationConfig(checkpoint=str(binary), folder=str(folder / "isic" / "val")))
    assert ("at the limit of the search" in capsys.readouterr().out) == at_the_limit


def test_errors_of_four_pixels():
    foreground = torch.tensor([0.9, 0.9, 0.2, 0.4]).logit()
    logits = torch.stack([torch.zeros(4), foreground], 1)
    (ece, nll, brier), (probabilities, shares) = measure([(logits, torch.tensor([1, 0, 0, 1]).byte())], 1)
    assert ece == pytest.approx((2 * abs(0.9 - 0.5) + 0.2 + 0.6) / 4)
    assert nll == pytest.approx(-np.log([0.9, 0.1, 0.8, 0.4]).mean(), rel=1e-5)
    assert brier == pytest.approx((0.01 + 0.81 + 0.04 + 0.36) / 4)
    found = ~probabilities.isnan()
    assert probabilities[found].tolist() == pytest.approx([0.2, 0.4, 0.9])
    assert shares[found].tolist() == [0, 1, 0.5]


def test_the_command_has_two_lines_for_each_folder_and_a_picture(folder, binary, tmp_path, capsys):
    val, test = (str(folder / "isic" / part) for part in ("val", "test"))
    main(CalibrationConfig(checkpoint=str(binary), folder=val, others=(test,), plot=str(tmp_path / "curves.png")))
    _, *lines = (line.split() for line in capsys.readouterr().out.splitlines() if "note" not in line)
    assert [line[4:] for line in lines] == [[f"{val},", "5", "images"]] * 2 + [[f"{test},", "1", "images"]] * 2
    assert lines[0][0] == lines[2][0] == "1.000" != lines[1][0] == lines[3][0]
    assert float(lines[1][2]) < float(lines[0][2])  # NLL, of which the fitted one is the lowest
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_pixels_of_the_ignored_label_do_not_count(folder, tmp_path):
    config = ISICConfig(**SMALL, num_classes=2, mask_values=("0", "128"), ignore_label=255)
    data = folder / "isic" / "val"  # lesions are 255
    trained = load_trained(save_trained(tmp_path, config))
    images = list(pixels(trained, dataset_of(trained, str(data))))
    masks = [np.array(Image.open(path)) for path in sorted((data / "masks").iterdir())]
    assert [len(logits) for logits, _ in images] == [(mask == 0).sum() for mask in masks]
    assert not any(classes.any() for _, classes in images)


def test_errors_come_before_the_work(folder, binary, tmp_path, capsys):
    val = str(folder / "isic" / "val")
    for options, kind, message in [
        (dict(others=(f"{val}/../val",)), ValueError, "val twice, expected different folders"),
        (dict(others=(str(tmp_path),)), FileNotFoundError, "images is not a folder"),
        (dict(plot=str(tmp_path / "nowhere" / "curves.png")), FileNotFoundError, "nowhere"),
        (dict(plot=str(tmp_path / "curves.table")), ValueError, "table"),
    ]:
        with pytest.raises(kind, match=message):
            main(CalibrationConfig(checkpoint=str(binary), folder=val, **options))
    assert not capsys.readouterr().out


def test_volumes_and_missing_folders_are_errors(folder, organs, binary):
    with pytest.raises(ValueError, match="found a network of volumes"):
        main(CalibrationConfig(checkpoint=str(organs), folder=str(folder)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(CalibrationConfig(checkpoint=str(binary), folder=str(folder / "nowhere")))
