"""Baselines behind the interface of VMUNet, in the loops of the training scripts."""

import json
import sys

import pytest
import torch

import train
from configs.build import build_model, load_initial_weights
from configs.config_setting import ISICConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic
from models.baselines import Baseline, import_library, parse

SMALLEST = "smp:unet-mobileone_s0"


def config(**changes):
    return ISICConfig(**dict(network="unet", load_ckpt_path="none", image_size=64) | changes)


def test_names_of_networks():
    assert parse("unet") == ("unet", "resnet34")
    assert parse("smp:DeepLabV3Plus-resnet50") == ("deeplabv3plus", "resnet50")
    assert parse("smp:FPN") == ("fpn", "resnet34")
    assert parse("smp:fpn-tu-resnet18") == ("fpn", "tu-resnet18")


def test_unet_is_the_librarys_with_a_resnet34():
    ours = build_model(config()).network.state_dict()
    theirs = import_library().Unet("resnet34", encoder_weights=None).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


@pytest.mark.parametrize("network", ["smp:DeepLabV3Plus-resnet18", "smp:Segformer-mit_b0"])
def test_any_size_grey_or_colour_gives_logits_of_that_size(network):
    torch.manual_seed(0)
    model = Baseline(network, num_classes=3).eval()
    image = torch.rand(1, 1, 50, 70)
    with torch.inference_mode():
        logits = model(image)
        assert logits.shape == (1, 3, 50, 70)
        assert torch.equal(model(image.expand(1, 3, 50, 70)), logits)
        assert logits.min() < 0  # not probabilities
        torch.testing.assert_close(model.predict(image).sum(1), torch.ones(1, 50, 70))
    with pytest.raises(ValueError, match="found 2 input channels, expected 3"):
        model(torch.rand(1, 2, 64, 64))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(network="resnet"), "found 'resnet', expected vmunet, vmunetv2, ultralight, unet"),
        (dict(network="smp:"), "found 'smp:', expected"),
        (dict(network="smp:unnet"), "found architecture 'unnet'.*such as unet"),
        (dict(network="smp:unet-resnet33"), "found encoder 'resnet33'.*resnet34"),
        (dict(network="smp:linknet-mit_b0"), "smp:linknet-mit_b0: Encoder `mit_b0` is not supported"),
        (dict(network="smp:pan", image_size=64), "--network smp:pan: .*64 x 64"),
        (dict(load_ckpt_path="pretrained_weights/vmamba.pth"), "vmamba.pth.*expected none .* or imagenet"),
        (dict(use_checkpoint=True), "--use-checkpoint.*vmunet and vmunetv2"),
    ],
)
def test_what_does_not_fit_is_said_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(resolve(config(**changes)))


def test_without_the_library_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ValueError, match="segmentation_models_pytorch.*pip install -r requirements-extra.txt"):
        build_model(config())


@pytest.mark.slow
def test_imagenet_fills_the_encoder_and_nothing_else(monkeypatch):
    """The download is replaced by another random network."""
    asked = []
    create = Baseline._create

    def downloaded(model, encoder_weights):
        asked.append(encoder_weights)
        return create(model, None)

    model = build_model(config(network=SMALLEST, load_ckpt_path="imagenet"))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    monkeypatch.setattr(Baseline, "_create", downloaded)
    load_initial_weights(model, config(network=SMALLEST, load_ckpt_path="imagenet"))
    assert asked == ["imagenet"]
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed and all(name.startswith("network.encoder.") for name in changed)


@pytest.mark.slow
def test_a_baseline_trains_tests_and_is_tested_again_like_vmunet(tmp_path):
    data = make_demo_isic(tmp_path / "data", size=40, train=8, val=3, test=1)
    common = dict(network=SMALLEST, load_ckpt_path="none", dataset="demo", data_path=str(data), image_size=32)
    common |= dict(batch_size=4, num_workers=0, device="cpu")
    scores = train.main(ISICConfig(**common, epochs=1, work_dir=str(tmp_path / "run")))
    (run,) = (tmp_path / "run").iterdir()
    assert run.name.startswith("smp-unet-mobileone_s0_demo_")
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["dsc"] == scores["dsc"]
    best = str(run / "checkpoints" / "best.pth")
    again = train.main(ISICConfig(**common, test_only=best, work_dir=str(tmp_path / "again")))
    assert again == scores
    with pytest.raises(ValueError, match="found 0 of"):
        train.main(ISICConfig(**common | dict(network="vmunet"), test_only=best, work_dir=str(tmp_path / "other")))


def test_no_encoder_is_fetched_from_the_internet():
    """The name may come from a checkpoint that somebody else has made."""
    places = ("tu-hf-hub:somebody/network", "tu-HF-HUB:network", "tu-local-dir:folder", "somebody/network", "tu-a\\b")
    for name in (f"smp:unet-{place}" for place in places):
        with pytest.raises(ValueError, match=r"--network: found the encoder"):
            Baseline(name)
