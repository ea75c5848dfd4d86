"""The networks of the family as `--network` chooses them: their values, weights to start from, and whole runs."""

import dataclasses
import json

import pytest
import torch

import predict
import train
from configs.build import build_model, choose_backend, load_initial_weights, prepare
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import config_from_values, resolve
from datasets.demo import make_demo_isic
from models.cost import measure_cost
from models.family import NETWORKS
from models.ultralight import UltraLightVMUNet
from models.vmunet.pretrained import load_pretrained
from models.vmunet.vmunetv2 import VMUNetV2
from models.weights.filling import fill_network, inner_weights
from models.weights.reading import read_weights
from models.weights.shape import shape_of_weights
from tests.models.test_pretrained import tagged, vmamba
from utils.optimizers import build_optimizer

SMALL = dict(depths=(1, 1, 2, 1), dims=(32, 64, 128, 256), d_state=4)
OF = {"vmunetv2": SMALL, "ultralight": dict(d_state=4)}  # small ones


def network(name, **options):
    torch.manual_seed(0)
    return NETWORKS[name](**OF[name] | options)


def config(name, **changes):
    return ISICConfig(**dict(network=name, load_ckpt_path="none", image_size=64, device="cpu") | OF[name] | changes)


# ---- values


@pytest.mark.parametrize("config_class", [ISICConfig, SynapseConfig])
def test_depths_that_nobody_says_are_the_networks_own(config_class):
    assert config_class().depths == (2, 2, 2, 2)
    for flags, depths in (
        ("--network vmunetv2", (2, 2, 9, 2)),
        ("--network vmunetv2 --depths 2 2 27 2", (2, 2, 27, 2)),
        ("--network vmunetv2 --depths 2 2 2 2", (2, 2, 2, 2)),
        ("--network vmunetv2 --dataset own --data-path own", (2, 2, 9, 2)),
        ("--network vmunet", (2, 2, 2, 2)),
    ):
        found = resolve(config_class, flags.split())
        assert found.depths == depths, flags
        stored = json.loads(json.dumps(dataclasses.asdict(found)))
        assert config_from_values(config_class, stored) == found


def test_a_config_class_with_depths_of_its_own_keeps_them():
    @dataclasses.dataclass(kw_only=True)
    class Deep(ISICConfig):
        depths: tuple[int, int, int, int] | None = (2, 2, 3, 2)

    assert resolve(Deep, ["--network", "vmunetv2"]).depths == (2, 2, 3, 2)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("ultralight", dict(dims=(8, 16, 32, 64)), "found --dims.*vmunet and vmunetv2"),
        ("ultralight", dict(depths=(1, 1, 1, 1)), "found --depths.*vmunet and vmunetv2"),
        ("ultralight", dict(use_checkpoint=True), "found --use-checkpoint.*vmunet and vmunetv2"),
        ("vmunetv2", dict(skip_at_quarter=True), "found --skip-at-quarter.*vmunet"),
        ("vmunetv2", dict(depths_decoder=(1, 1, 1, 1)), "found --depths-decoder.*vmunet"),
    ],
)
def test_options_of_another_network_are_named(name, changes, message):
    with pytest.raises(ValueError, match=f"--network {name}: {message}"):
        resolve(config(name, **changes))


def test_a_name_that_is_no_networks_is_answered_before_anything_is_read():
    with pytest.raises(ValueError, match="--network: found 'vmunet2', expected vmunet, vmunetv2, ultralight, unet"):
        resolve(ISICConfig, ["--network", "vmunet2"])


@pytest.mark.parametrize("name", OF)
def test_the_scan_backend_is_chosen_before_the_first_epoch(name):
    assert choose_backend(config(name), torch.device("cpu")) == "cpu"
    with pytest.raises(ValueError, match="--scan-backend triton: "):
        prepare(network(name), config(name, scan_backend="triton"), torch.device("cpu"))


def test_decay_of_weights_only_spares_the_scans_parameters():
    model = UltraLightVMUNet()
    groups = build_optimizer(model, config("ultralight", decay="weights_only"), {"AdamW": {}}).param_groups
    spared = {id(p) for p in groups[1]["params"]}
    names = [name for name, p in model.named_parameters() if id(p) in spared and p.ndim > 1]
    assert names and all(name.endswith(".mamba.A_log") for name in names)


def test_cost_is_the_published_one():
    """As thop counts; VM-UNetV2's 4.40 G hold the encoder's last two blocks, which run for nothing in the original."""
    ultralight, v2 = measure_cost(UltraLightVMUNet(), 256, 256), measure_cost(VMUNetV2(), 256, 256)
    assert f"{ultralight.published_macs / 1e9:.3f} {ultralight.parameters / 1e6:.3f}" == "0.060 0.049"
    matmuls, norms = 768 * 3072 + 1536 * 768 + 1536 * 9, 4 * (1536 + 768)
    assert f"{(v2.published_macs + 2 * 8 * 8 * (matmuls + norms)) / 1e9:.2f}" == "4.40"


# ---- weights


@pytest.mark.parametrize("name", OF)
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.removeprefix("vmunet."),
        lambda name: f"module.{name}",
    ],
    ids=["as they are", "without vmunet.", "module."],
)
def test_a_checkpoint_of_the_original_fills_everything(name, rename, tmp_path):
    """Its tensors have our names (test_family.py); of which network they are and what shape they tell themselves."""
    weights = tagged({key: t.shape for key, t in network(name, num_classes=2, input_channels=4).state_dict().items()})
    torch.save({"model_state_dict": {rename(key): t for key, t in weights.items()}, "epoch": 3}, tmp_path / "a.pth")
    checkpoint = read_weights(tmp_path / "a.pth")
    shape = shape_of_weights(checkpoint.weights, checkpoint.path)
    assert shape == {"network": name, "num_classes": 2, "input_channels": 4, **OF[name]}
    model = build_model(config(**{"name": name, **shape}))
    fill_network(model, checkpoint.weights, checkpoint.path)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def test_vmamba_fills_the_encoder_of_vmunetv2(tmp_path):
    """All of it, also the last blocks, which are not run."""
    weights, model = vmamba(dims=32, d_state=4), network("vmunetv2")
    torch.save({"model": weights}, tmp_path / "vmamba.pth")
    report = load_pretrained(model, tmp_path / "vmamba.pth")
    filled = {key: t for key, t in inner_weights(model).items() if key.startswith(("patch_embed.", "layers."))}
    assert (report["encoder"], report["decoder"]) == (len(filled), 0) and set(report["left"]).isdisjoint(filled)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in filled.items())


@pytest.mark.parametrize("name, last", [("vmunetv2", ("seg_outs.", "deconv6.")), ("ultralight", ("final.",))])
def test_fine_tuning_for_other_classes_leaves_the_last_layers(name, last, tmp_path):
    weights, model = (
        tagged({key: t.shape for key, t in network(name).state_dict().items()}),
        network(name, num_classes=3),
    )
    torch.save(weights, tmp_path / "a.pth")
    report = load_pretrained(model, tmp_path / "a.pth")
    assert report["left"] == [key for key in inner_weights(model) if key.startswith(last)]
    kept = {
        key for key, tensor in model.state_dict().items() if not torch.equal(tensor, weights[key].expand_as(tensor))
    }
    assert kept <= set(report["left"])


def test_ultralight_starts_from_no_encoder(tmp_path):
    torch.save({"model": vmamba()}, tmp_path / "vmamba.pth")
    model = network("ultralight")
    with pytest.raises(ValueError, match="vmamba.pth: found .*expected .*ultralight; .*--load-ckpt-path none"):
        load_initial_weights(model, config("ultralight", load_ckpt_path=str(tmp_path / "vmamba.pth")))
    with pytest.raises(FileNotFoundError, match="no-file.*--load-ckpt-path none"):
        load_initial_weights(model, config("ultralight", load_ckpt_path="no-file.pth"))


# ---- runs


@pytest.mark.slow
@pytest.mark.parametrize("name", OF)
def test_a_network_compiles_as_one_graph(name):
    model, image = network(name).eval(), torch.rand(1, 3, 64, 64) * 255
    torch.compiler.reset()  # or the size of the image is a symbol, after a compilation for another
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF)
def test_a_run_trains_goes_on_is_tested_and_predicts(name, tmp_path):
    data = make_demo_isic(tmp_path / "data", size=64, train=8, val=3, test=1)
    common = dict(dataset="demo", data_path=str(data), batch_size=4, num_workers=0)
    train.main(config(name, **common, epochs=2, work_dir=str(tmp_path / "run")))
    (run,) = (tmp_path / "run").iterdir()
    whole = torch.load(run / "checkpoints/latest.pth", weights_only=True)["model"]

    train.main(config(name, **common, epochs=1, work_dir=str(tmp_path / "stopped")))
    (stopped,) = (tmp_path / "stopped").iterdir()
    scores = train.main(resolve(ISICConfig, ["--resume", str(stopped), "--epochs", "2"]))
    resumed = torch.load(stopped / "checkpoints/latest.pth", weights_only=True)["model"]
    assert all(torch.equal(tensor, whole[key]) for key, tensor in resumed.items())

    flags = ["--test-only", str(stopped), "--device", "cpu", "--work-dir", str(tmp_path / "tested")]
    assert train.main(resolve(ISICConfig, flags)) == scores
    image = next((data / "val" / "images").iterdir())
    result = predict.Predictor(stopped, device="cpu").predict(image)
    assert result.mask.shape == (64, 64) and f"{name}:" in (run / "report.html").read_text(encoding="utf-8")
