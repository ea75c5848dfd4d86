"""Several networks, or views, as one: mean probabilities, and where they disagree."""

import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import predict
from configs.build import build_model
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from inference.ensemble import combine
from inference.ensemble_member import ViewAverage
from predict import PredictConfig, Predictor
from tests.inference.networks import SIZE, SMALL
from utils.files import read_rows
from utils.runs.checkpoint import save_checkpoint
from utils.runs.run_folder import stop_log


def save_constant(path, config, bias):
    """A network that answers the same logits everywhere."""
    model = build_model(config)
    with torch.no_grad():
        model.vmunet.final_conv.weight.zero_()
        model.vmunet.final_conv.bias.copy_(torch.tensor(bias, dtype=torch.float32))
    save_checkpoint(path, {"model": model.state_dict(), "config": vars(config)})
    return path


@pytest.fixture
def networks(tmp_path):
    """Networks sure of 0.9, 0.6 and 0.3, the last with another size and normalisation."""
    configs = [ISICConfig(**SMALL)] * 2 + [ISICConfig(**SMALL | {"image_size": 48, "normalization": "imagenet"})]
    logits = torch.tensor([0.9, 0.6, 0.3]).logit().tolist()
    return [
        save_constant(tmp_path / f"{i}.pth", config, [logit])
        for i, (config, logit) in enumerate(zip(configs, logits, strict=True))
    ]


def test_agreement_by_hand():
    """Two networks of two views: probabilities 0.2 and 0.4, 0.6 and 0.8 of one class, and 1 minus these."""
    answers = []
    for a, b in ((0.2, 0.4), (0.6, 0.8)):
        views = torch.tensor([[a, 1 - a], [b, 1 - b]])
        mean = views.mean(0)
        squares = (views - mean).square().sum(0)
        answers.append(ViewAverage(*(values.reshape(1, 2, 1, 1) for values in (mean, mean, squares))))
    probs, disagreement = combine(answers, views=2)
    torch.testing.assert_close(probs.flatten(), torch.tensor([0.5, 0.5]))
    assert disagreement.item() == pytest.approx(np.std([0.2, 0.4, 0.6, 0.8]))
    assert combine([ViewAverage(torch.full((1, 1, 2, 2), 0.7))], views=1)[1] is None


def test_probabilities_of_networks_are_averaged(networks, colours, tmp_path):
    options = dict(device="cpu", probabilities=True)
    single = Predictor(networks[0], **options).predict(colours)
    assert single.disagreement is None and "disagreement" not in single.structures()[0]
    result = Predictor(networks, **options).predict(colours)
    np.testing.assert_allclose(result.probabilities, 0.6, atol=1e-5)
    np.testing.assert_allclose(result.disagreement, np.std([0.9, 0.6, 0.3]), atol=1e-5)
    assert result.mask.all() and result.mask.shape == colours.shape[:2]
    assert result.structures()[0]["disagreement"] == pytest.approx(np.std([0.9, 0.6, 0.3]), abs=1e-5)


def test_the_disagreement_of_views_is_the_standard_deviation_over_them(binary, colours):
    square = colours[:SIZE, :SIZE]
    plain = Predictor(binary, device="cpu", probabilities=True)
    views = [square, square[:, ::-1], square[::-1, ::-1], square[::-1]]
    probs = [plain.predict(np.ascontiguousarray(view)).probabilities[0] for view in views]
    probs = [probs[0], probs[1][:, ::-1], probs[2][::-1, ::-1], probs[3][::-1]]
    result = Predictor(binary, device="cpu", tta="flips").predict(square)
    assert 0.01 < result.disagreement.mean() < 0.5
    np.testing.assert_allclose(result.disagreement, np.std(probs, 0), atol=1e-5)


def test_one_network_twice_is_a_mistake(binary, folder, tmp_path):
    copy = tmp_path / "copy.pth"
    save_checkpoint(copy, torch.load(binary) | {"epoch": 2})
    with pytest.raises(ValueError, match=rf"{copy}: .*{binary}"):
        Predictor([binary, copy], device="cpu")


def test_volumes_of_several_networks(tmp_path):
    config = SynapseConfig(**SMALL)
    sure = [[8.0 if c == chosen else 0.0 for c in range(9)] for chosen in (3, 3, 5)]
    paths = [save_constant(tmp_path / f"{i}.pth", config, bias) for i, bias in enumerate(sure)]
    result = Predictor(paths, device="cpu").predict(np.random.default_rng(0).random((2, 40, 36)), spacing=(3, 1, 1))
    assert (result.mask == 3).all()
    assert result.disagreement.shape == (2, 40, 36)
    np.testing.assert_allclose(result.disagreement, np.std([1, 1, 0]), atol=0.01)
    result.save(tmp_path, "x")
    stored = nibabel.load(tmp_path / "disagreement/x.nii.gz")
    np.testing.assert_allclose(np.asarray(stored.dataobj).transpose(2, 1, 0), result.disagreement, atol=1e-4)
    tta = Predictor(paths[0], device="cpu", tta="flips").predict(np.random.default_rng(0).random((2, 40, 36)))
    assert (tta.mask == 3).all() and tta.disagreement.max() < 1e-6


def test_the_command_takes_checkpoints_before_inputs(networks, colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / "x.png")
    first, *others = map(str, networks)
    config = PredictConfig(
        checkpoint=first, inputs=(*others, str(tmp_path / "x.png")), output=str(tmp_path / "out"), device="cpu"
    )
    try:
        predict.main(config)
    finally:
        stop_log()
    (row,) = read_rows(tmp_path / "out/structures.csv")
    assert float(row["disagreement"]) == pytest.approx(np.std([0.9, 0.6, 0.3]), abs=1e-4)
    with Image.open(tmp_path / "out/disagreement/x.png") as picture:
        np.testing.assert_allclose(np.array(picture) / 65535 / 2, np.std([0.9, 0.6, 0.3]), atol=1e-4)
    about = json.loads((tmp_path / "out/prediction.json").read_text(encoding="utf-8"))
    assert [member["checkpoint"] for member in about["members"]] == [first, *others]
    assert len({member["sha256"] for member in about["members"]}) == 3


def test_what_is_a_checkpoint_is_told_by_what_it_is(networks, folder, tmp_path):
    first, second, _ = map(str, networks)
    volume = str(min((folder / "synapse/test_vol_h5").glob("*.npy.h5")))
    assert predict.split_arguments(first, (second, "isic17", volume)) == ([first, second, "isic17"], [volume])
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/best.pth").write_bytes(networks[0].read_bytes())
    assert predict.split_arguments("isic17", (str(run), "photo.jpg")) == (["isic17", str(run)], ["photo.jpg"])
    with pytest.raises(ValueError, match="^.*1.pth "):
        predict.split_arguments(first, ("photo.jpg", second))
    with pytest.raises(ValueError, match="^INPUT: "):
        predict.split_arguments(first, (second,))


def test_networks_that_tell_other_things_apart_are_refused(binary, organs, tmp_path):
    with pytest.raises(ValueError, match=f"{organs}: found kind volumes, expected images .*{binary}"):
        Predictor([binary, organs], device="cpu")
    other = save_constant(tmp_path / "mri.pth", SynapseConfig(**SMALL | {"dataset": "mri"}), [0.0] * 9)
    with pytest.raises(ValueError, match="mri.pth: found intensities .*'mri', expected of CT"):
        Predictor([organs, other], device="cpu")
    with pytest.raises(ValueError, match="checkpoint"):
        Predictor([], device="cpu")
