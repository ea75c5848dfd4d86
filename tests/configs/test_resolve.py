"""The one place that makes a config: class, recipe, checkpoint or run, data folder, flags, each over the one before."""

import dataclasses
import json

import pytest

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.options import OPTIONS, fields_of, published_values
from configs.recipes import RECIPES
from configs.resolve import collapse_warning, config_of_checkpoint, edited_values, remarks, resolve
from models.family import NETWORKS
from utils.runs.run_folder import start_run, stop_log


def changes(config):
    """The values that differ from those of the config class."""
    start = vars(type(config)())
    return {name: value for name, value in vars(config).items() if value != start[name]}


# ---- the class


@pytest.mark.parametrize("kind", [ISICConfig, SynapseConfig])
def test_the_config_files_hold_the_published_value_of_every_hyperparameter(kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    assert edited_values(kind) == {}
    assert fields == published_values(kind).keys() | (fields & fields_of(*OPTIONS))
    assert fields - fields_of(*OPTIONS) <= published_values(kind).keys()


@pytest.mark.parametrize("kind", [ISICConfig, SynapseConfig])
def test_without_flags_the_config_stands_as_it_is(kind):
    assert resolve(kind, []) == kind() == resolve(kind, ["--recipe", "published"]) == resolve(kind())


# ---- recipes


def test_a_recipe_sets_its_values_and_its_name():
    assert changes(resolve(ISICConfig, ["--recipe", "stable"])) == {"recipe": "stable", **RECIPES["stable"]}


def test_volumes_have_no_rotation_of_samples():
    found = changes(resolve(SynapseConfig, ["--recipe", "stable"]))
    expected = {name: value for name, value in RECIPES["stable"].items() if name != "rotation"}
    assert found == {"recipe": "stable", **expected}


def test_own_data_have_the_stable_recipe_unless_another_is_given():
    own = resolve(ISICConfig, ["--dataset", "own"])
    assert changes(own) == {"dataset": "own", "recipe": "stable", **RECIPES["stable"]}
    assert resolve(ISICConfig, ["--dataset", "own", "--recipe", "published"]) == ISICConfig(dataset="own")
    assert resolve(ISICConfig, ["--dataset", "own", "--lr", "0.1"]).lr == 0.1
    assert resolve(SynapseConfig, ["--dataset", "own"]).recipe == "stable"
    assert resolve(ISICConfig, ["--dataset", "isic17"]).recipe == "published"
    assert any("stable" in line and "lr 0.0005" in line for line in remarks(own))
    (line,) = remarks(resolve(ISICConfig, ["--dataset", "isic17", "--recipe", "stable"]))
    assert "stable" in line and "lr 0.0005" in line


# ---- flags


def test_every_flag_wins_even_one_of_the_default_value():
    flags = ["--lr", "1e-3", "--recipe", "stable", "--sch", "CosineAnnealingLR", "--decay", "all"]
    config = resolve(ISICConfig, flags)
    assert (config.lr, config.sch, config.decay, config.clip_grad_norm) == (1e-3, "CosineAnnealingLR", "all", 1.0)
    assert resolve(ISICConfig, ["--recipe=stable", "--lr=1e-3"]).lr == 1e-3
    assert resolve(ISICConfig, ["--antialias", "--no-antialias"]).antialias is False


def test_a_config_made_in_python_is_completed_as_by_flags():
    config = ISICConfig(dataset="own", lr=0.1, sch="StepLR")
    assert resolve(config) == resolve(ISICConfig, ["--dataset", "own", "--lr", "0.1", "--sch", "StepLR"])
    assert config == ISICConfig(dataset="own", lr=0.1, sch="StepLR")  # left as it was
    with pytest.raises(ValueError, match="--epochs.* 0"):
        resolve(ISICConfig(epochs=0))


def test_another_optimizer_brings_the_rate_and_decay_of_its_row():
    def values(*flags):
        config = resolve(ISICConfig, flags)
        return config.lr, config.weight_decay

    assert values() == (1e-3, 1e-2)
    assert values("--opt", "SGD") == (None, None)  # None: those of the row
    assert values("--opt", "AdamW") == (1e-3, 1e-2)
    assert values("--opt", "SGD", "--lr", "1e-3") == (1e-3, None)
    assert values("--opt", "SGD", "--weight-decay", "0") == (None, 0)
    assert values("--opt", "SGD", "--recipe", "stable") == (RECIPES["stable"]["lr"], None)


def test_another_network_brings_its_depths():
    def depths(*flags):
        return resolve(ISICConfig, ["--load-ckpt-path", "none", "--network", *flags]).depths

    assert depths("vmunetv2") == NETWORKS["vmunetv2"].depths_published == (2, 2, 9, 2)
    assert depths("vmunetv2", "--depths", "1", "1", "1", "1") == (1, 1, 1, 1)
    assert depths("vmunetv2", "--depths", "2", "2", "2", "2") == (2, 2, 2, 2)
    assert depths("vmunet") == depths("unet") == (2, 2, 2, 2)


# ---- the configuration of a run or of a checkpoint


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has been started with values of its own."""
    config = resolve(ISICConfig(dataset="demo", lr=0.003, opt="SGD", dims=(8, 16, 32, 64), work_dir=str(tmp_path)))
    folder = start_run(config).folder
    stop_log()
    return folder


def alter(run, **values):
    stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
    stored = {name: value for name, value in {**stored, **values}.items() if value is not ...}
    (run / "config.json").write_text(json.dumps(stored), encoding="utf-8")


def test_a_resumed_run_keeps_its_configuration_but_for_the_epochs(run):
    stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
    found = resolve(ISICConfig, ["--resume", str(run), "--epochs", "400", "--debug"])
    assert (found.resume, found.epochs, found.debug, found.weight_decay) == (str(run), 400, True, None)
    same = json.loads(json.dumps(dataclasses.asdict(found)))
    assert same | {name: stored[name] for name in ("resume", "epochs", "debug")} == stored


def test_other_flags_are_refused_beside_resume(run):
    with pytest.raises(ValueError, match="--resume.* --recipe.* --epochs"):
        resolve(ISICConfig, ["--resume", str(run), "--recipe", "stable"])
    with pytest.raises(ValueError, match="--resume.* --test-only, --lr"):
        resolve(ISICConfig, ["--resume", str(run), "--test-only", "best.pth", "--lr", "1"])


def test_a_run_has_no_fewer_epochs_than_are_done(run):
    (run / "metrics.csv").write_text("epoch,train_loss\n1,0.5\n2,0.4\n")
    assert resolve(ISICConfig, ["--resume", str(run), "--epochs", "2"]).epochs == 2
    with pytest.raises(ValueError, match="--epochs 1.* 2 "):
        resolve(ISICConfig, ["--resume", str(run), "--epochs", "1"])


def test_what_an_older_run_did_not_store_has_its_published_value(run):
    """As runs from before there were recipes, losses to choose, or rates in the config file."""
    alter(run, recipe=..., loss=..., stop_when_lost=..., lr=None)
    found = resolve(ISICConfig, ["--resume", str(run)])
    assert (found.recipe, found.loss, found.stop_when_lost, found.lr) == ("published", "auto", False, None)


@pytest.mark.parametrize("values", [{"colour": 3}, {"lr": "fast"}, {"epochs": 0}])
def test_a_wrong_value_in_a_stored_configuration_is_named_with_its_file(run, values):
    alter(run, **values)
    (name,) = values
    with pytest.raises(ValueError, match=rf"config\.json.*\b{name}"):
        resolve(ISICConfig, ["--resume", str(run)])


def test_a_networks_configuration_leaves_out_what_belongs_to_the_machine_and_the_run(tmp_path):
    stored = dict(dims=[8, 16, 32, 64], normalization="imagenet", device="cuda:7", num_workers=5, work_dir="x")
    found = config_of_checkpoint("images", stored, tmp_path / "best.pth", {"threshold": 0.25})
    assert (found.dims, found.normalization, found.threshold) == ((8, 16, 32, 64), "imagenet", 0.25)
    assert (found.device, found.num_workers, found.work_dir, found.load_ckpt_path) == ("auto", -1, None, "none")
    with pytest.raises(ValueError, match=r"--threshold.*best\.pth.*volumes"):
        config_of_checkpoint("volumes", {}, tmp_path / "best.pth", {"threshold": 0.25})
    with pytest.raises(ValueError, match=r"best\.pth: d_state.* 0"):
        config_of_checkpoint("images", {"d_state": 0}, tmp_path / "best.pth", {})


# ---- a warning


@pytest.mark.parametrize(
    "flags, warned",
    [
        ([], True),
        (["--recipe", "stable"], False),
        (["--load-ckpt-path", "vmamba.pth"], False),
        (["--lr", "1e-4"], False),
        (["--network", "unet"], False),
    ],
)
@pytest.mark.parametrize("kind", [ISICConfig, SynapseConfig])
def test_the_published_schedule_from_random_weights_gets_a_warning(kind, flags, warned):
    warning = collapse_warning(resolve(kind, ["--load-ckpt-path", "none", *flags]))
    assert ("--recipe stable" in (warning or "")) is warned
