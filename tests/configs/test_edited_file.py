"""What a person writes into a config file is what trains: tested with edited copies of the files."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import configs.config_setting
import configs.config_setting_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.options import (
    FoldOptions,
    MachineOptions,
    NameOptions,
    RunOptions,
    VolumeDataOptions,
    fields_of,
    published_values,
)
from configs.recipes import RECIPES
from configs.resolve import remarks, resolve
from tests.tiny import ROOT


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A function: the class of a copy of a config file, with lines replaced and added."""

    def edit(replaced=(), added="", module=configs.config_setting):
        text = Path(module.__file__).read_text(encoding="utf-8")
        for old, new in dict(replaced).items():
            assert text.count(f"    {old}") == 1, old
            text = text.replace(f"    {old}", f"    {new}")
        name = Path(module.__file__).stem
        path = tmp_path / f"{name}.py"
        path.write_text(text.replace("    of_volumes:", f"    {added}\n    of_volumes:"), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"edited_{name}", path)
        copy = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, copy)
        spec.loader.exec_module(copy)
        return copy.SynapseConfig if "synapse" in name else copy.ISICConfig

    return edit


DIMS = "dims: tuple[int, int, int, int]"
LOWER = {
    "lr: float | None = 1e-3": "lr: float | None = 1e-4",
    "clip_grad_norm: float | None = None": "clip_grad_norm: float | None = 5.0",
}


@pytest.mark.parametrize("module", [configs.config_setting, configs.config_setting_synapse])
def test_every_hyperparameter_stands_in_the_file(module):
    config_class = SynapseConfig if "synapse" in module.__name__ else ISICConfig
    elsewhere = fields_of(NameOptions, MachineOptions, RunOptions, FoldOptions, VolumeDataOptions)
    here = set(config_class.__annotations__)
    assert published_values(config_class).keys() - elsewhere <= here
    assert {"dataset", "lr", "epochs", "batch_size", "opt", "sch", "seed", "network", "protocol", "loss"} <= here


@pytest.mark.parametrize("module", [configs.config_setting, configs.config_setting_synapse])
@pytest.mark.parametrize("dataset", ["own", "isic17", "demo"])
def test_edited_values_win_on_every_data_set(edited, module, dataset):
    config_class = edited(LOWER, module=module)
    config = resolve(config_class, ["--dataset", dataset])
    assert (config.lr, config.clip_grad_norm) == (1e-4, 5.0)
    assert config.sch == ("CosineWarmup" if dataset == "own" else "CosineAnnealingLR")  # what nobody edited
    (line,) = [line for line in remarks(config) if "1e-3" in line or "0.001" in line]
    assert "config_setting" in line and "lr 0.0001" in line and "clip_grad_norm 5.0" in line


def test_a_recipe_that_is_asked_for_replaces_edited_values_and_says_which(edited):
    config = resolve(edited(LOWER), ["--dataset", "own", "--recipe", "stable"])
    assert (config.lr, config.clip_grad_norm) == (RECIPES["stable"]["lr"], RECIPES["stable"]["clip_grad_norm"])
    (line,) = [line for line in remarks(config) if "stable" in line and "0.0001" in line]
    assert all(text in line for text in ("config_setting.py", "lr 0.0001", "0.0005", "clip_grad_norm 5.0", "1.0"))


def test_a_recipe_that_the_file_names_spares_its_edited_values(edited):
    config = resolve(edited(LOWER, 'recipe: str = "stable"'), [])
    assert (config.recipe, config.lr, config.sch) == ("stable", 1e-4, "CosineWarmup")


def test_a_flag_wins_over_file_and_recipe(edited):
    config = resolve(edited(LOWER), ["--dataset", "own", "--recipe", "stable", "--lr", "1e-3", "--clip-grad-norm", "2"])
    assert (config.lr, config.clip_grad_norm, config.sch) == (1e-3, 2.0, "CosineWarmup")


@pytest.mark.parametrize("text", ["lr = 1e-4", "lr: float | None = 1e-4"])
def test_a_subclass_sets_a_value_with_and_without_its_type(text, monkeypatch, tmp_path):
    mine = subclass(monkeypatch, tmp_path, text)
    assert resolve(mine, ["--dataset", "own"]).lr == 1e-4
    assert resolve(mine, ["--lr", "1"]).lr == 1.0


@pytest.mark.parametrize(
    "replaced, added, expected",
    [
        ({}, "learning_rte = 1e-4", ["learning_rte"]),
        ({}, "epoch: int = 20", ["epoch", "epochs"]),
        ({}, "batchsize = 4", ["batchsize", "batch_size"]),
        ({"epochs: int = 300": "epoch: int = 20"}, "", ["epochs", "epoch"]),
        ({"epochs: int = 300": 'epochs: int = "20"'}, "", ["epochs", "'20'", "int"]),
        ({f"{DIMS} = (96, 192, 384, 768)": f"{DIMS} = (96, 192)"}, "", ["dims", "(96, 192)"]),
        ({"epochs: int = 300": "epochs: int = 0"}, "", ["epochs", "0", "1"]),
        ({'opt: Optimizer = "AdamW"': 'opt: Optimizer = "Adamw"'}, "", ["opt", "Adamw", "AdamW"]),
        ({'loss: str = "auto"': 'loss: str = "dise"'}, "", ["loss", "dise", "bce_dice"]),
        ({'network: str = "vmunet"': 'network: str = "vmunet3"'}, "", ["network", "vmunet3", "vmunetv2"]),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_with_file_field_and_what_was_expected(edited, replaced, added, expected):
    with pytest.raises(ValueError) as error:
        resolve(edited(replaced, added), [])
    text = str(error.value)
    assert "config_setting.py: " in text and "\n" not in text and "found" in text
    assert all(part in text for part in expected), text


def test_a_mistake_in_the_file_that_a_flag_corrects_is_still_named(edited):
    with pytest.raises(ValueError, match=r"config_setting\.py: epochs: .*'20'"):
        resolve(edited({"epochs: int = 300": 'epochs: int = "20"'}), ["--epochs", "3"])


def test_a_new_option_is_one_line(edited):
    config_class = edited({}, "focal_gamma: float = 2.0  # of the focal loss")
    assert resolve(config_class, []).focal_gamma == 2.0
    assert resolve(config_class, ["--focal-gamma", "1.5"]).focal_gamma == 1.5


def test_another_optimizer_or_network_brings_its_own_values_but_not_in_place_of_edited_ones(edited):
    found = resolve(ISICConfig, ["--opt", "SGD", "--network", "vmunetv2"])
    assert (found.lr, found.weight_decay, found.depths) == (None, None, (2, 2, 9, 2))  # none: those of the row
    assert resolve(ISICConfig, ["--opt", "SGD", "--lr", "0.001"]).lr == 0.001
    assert resolve(edited(LOWER), ["--opt", "SGD"]).lr == 1e-4
    in_file = resolve(edited({'opt: Optimizer = "AdamW"': 'opt: Optimizer = "SGD"'}), [])
    assert in_file.lr == 1e-3  # as the file shows it; the log compares it with the row
    assert any("lr 0.001" in line and "0.01" in line for line in remarks(in_file))


def test_a_resumed_run_has_its_own_values_whatever_the_file_says(edited, tmp_path):
    stored = json.loads((ROOT / "results/isic17/stable_42/config.json").read_text(encoding="utf-8"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    config = resolve(
        edited(LOWER | {'loss: str = "auto"': 'loss: str = "ce_dice"'}), ["--resume", str(tmp_path / "run")]
    )
    assert (config.lr, config.clip_grad_norm, config.epochs) == (stored["lr"], 1.0, 300)
    assert config.loss == "auto"  # the published value: the run is older than this option
    assert resolve(ISICConfig, ["--resume", str(tmp_path / "run"), "--epochs", "600"]).epochs == 600


def test_resolving_changes_nothing_and_gives_every_process_the_same(edited):
    config_class = edited(LOWER)
    before = config_class()
    first, second = (resolve(config_class, ["--dataset", "own", "--recipe", "stable"]) for _ in range(2))
    assert first == second and config_class() == before


def test_a_config_made_in_python_counts_like_flags():
    config = resolve(ISICConfig(dataset="own", lr=0.1))
    assert (config.lr, config.recipe, config.sch) == (0.1, "stable", "CosineWarmup")


def subclass(monkeypatch, tmp_path, body):
    """A config class in a file of its own, below ISICConfig."""
    path = tmp_path / "config_mine.py"
    head = "from dataclasses import dataclass\nfrom configs.config_setting import ISICConfig\n\n"
    path.write_text(f"{head}@dataclass(kw_only=True)\nclass Mine(ISICConfig):\n    {body}\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("config_mine", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "config_mine", module)
    spec.loader.exec_module(module)
    return module.Mine


def test_a_subclass_that_declares_a_published_value_means_it(monkeypatch, tmp_path):
    assert resolve(subclass(monkeypatch, tmp_path, "lr: float | None = 1e-3"), ["--dataset", "own"]).lr == 1e-3


def test_a_subclass_that_chooses_a_network_or_optimizer_gets_its_own_values(monkeypatch, tmp_path):
    assert resolve(subclass(monkeypatch, tmp_path, 'network: str = "vmunetv2"'), []).depths == (2, 2, 9, 2)
    assert resolve(subclass(monkeypatch, tmp_path, 'opt = "SGD"'), []).lr is None


def test_a_run_to_resume_may_be_named_in_a_class(monkeypatch, tmp_path):
    run = ROOT / "results/isic17/stable_42"
    config = resolve(subclass(monkeypatch, tmp_path, f'resume: str | None = "{run}"'), [])
    assert (config.lr, config.sch, config.dataset) == (5e-4, "CosineWarmup", "isic17")


def test_a_new_option_is_in_the_log(edited):
    config = resolve(edited({}, "learning_rate: float = 2e-4"), [])
    assert any("learning_rate 0.0002" in line for line in remarks(config))
