"""The commands of training as a user meets them: --help, mistakes, Ctrl-C, tests of checkpoints, longer runs, folds."""

import inspect
import json
import os
import re
import signal
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.optim import OPTIMIZERS, SCHEDULERS
from configs.resolve import resolve
from datasets.classes import ISIC_FOLDERS, SYNAPSE_FOLDERS
from datasets.demo import make_demo_isic, make_demo_synapse
from models.cpu_settings import tune_cpu
from tests.inference.networks import save_trained
from tests.tiny import ROOT, TRAINING, TRAINING_FLAGS
from utils.files import RESULTS, read_rows
from utils.runs.batches import Batches
from utils.runs.checkpoint import save_checkpoint
from utils.runs.command_line import run
from utils.runs.training_state import TrainingState


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("data") / "isic", size=40, train=8, val=4, test=1)


@pytest.fixture
def command(monkeypatch, capsys, caplog):
    """Runs a script's command line in this process: (exit status, what it said)."""

    def run_flags(*flags, script=train):
        config_class = ISICConfig if script is train else SynapseConfig
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, flags)])
        status = 0
        try:
            run(script.main, config_class, resolve)
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr().err + caplog.text
        caplog.clear()
        return status, said

    return run_flags


def flags_of(data, work_dir, *more):
    return ["--dataset", "demo", "--data-path", data, "--work-dir", work_dir, *TRAINING_FLAGS, "--epochs", "1", *more]


def the_run(work_dir):
    (folder,) = (path.parent for path in Path(work_dir).glob("*/config.json"))
    return folder


def config_of(run):
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


# ---- before anything is computed


@pytest.mark.parametrize("config_class", [ISICConfig, SynapseConfig])
def test_help_has_the_sections_of_the_config_and_all_choices(config_class, capsys):
    with pytest.raises(SystemExit):
        resolve(config_class, ["--help"])
    text = capsys.readouterr().out
    titles = re.findall(r"^\W*(\w.*?) options\W*$", text, re.M)
    sections = re.findall(
        r"# --- (.+?)(?: \(.*\))? ---", Path(inspect.getsourcefile(config_class)).read_text(encoding="utf-8")
    )
    assert titles[: len(sections)] == sections and len(sections) >= 5
    parts = dict(zip(titles, re.split(r"^\W*\w.*? options\W*$", text, flags=re.M)[1:], strict=True))
    first = {section.split()[0]: parts[section] for section in sections}
    for section, flags in {"data": "--dataset --num-classes", "training": "--loss --seed", "optimizer": "--lr"}.items():
        assert all(f"{flag} " in first[section] for flag in flags.split())
    rest = "".join(parts[title] for title in titles[len(sections) :])
    assert {"--device", "--scan-backend", "--work-dir", "--resume"} <= set(re.findall(r"--[\w-]+", rest))
    choices = re.sub(r"[^\w{},]+", "", text)
    assert "{" + ",".join(OPTIMIZERS) + "}" in choices and "{" + ",".join(SCHEDULERS) + "}" in choices


@pytest.mark.parametrize(
    "more, said",
    [
        (["--load-ckpt-path", "nowhere.pth"], "nowhere.pth"),
        (["--opt-args", "betas", "3"], "--opt AdamW"),
        (["--sch-args", "T_maxx", "3"], "T_maxx"),
        (["--loss", "hinge"], "--loss"),
        (["--folds", "5", "--fold", "5"], "--folds 5 --fold 5"),
        (["--fold", "all"], "--fold all"),
        (["--input-channels", "2"], "--input-channels 2"),
        (["--dataset", "own", "--data-path", "nowhere"], "nowhere"),
    ],
)
def test_a_command_that_fails_before_training_leaves_no_run(more, said, command, data, tmp_path, monkeypatch):
    """Weights and options are looked at before any image."""
    monkeypatch.setattr("datasets.loaders.fill_cache", lambda *_: pytest.fail("images were read"))
    status, text = command(*flags_of(data, tmp_path / "runs"), *more)
    assert status == 2 and said in text
    assert not list(tmp_path.glob("runs/*"))


def test_defaults_lie_beside_the_code_and_typed_paths_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RESULTS == ROOT / "results"
    assert all(folder.is_relative_to(ROOT / "data") for folder in [*ISIC_FOLDERS.values(), *SYNAPSE_FOLDERS.values()])
    assert resolve(ISICConfig, ["--work-dir", "mine"]).work_dir == "mine"


# ---- testing a checkpoint


@pytest.fixture
def trained(tmp_path, data):
    """A checkpoint of other values than the default ones."""
    values = dict(image_size=48, normalization="imagenet", threshold=0.3, input_channels=1, data_path=str(data))
    flags = [*TRAINING_FLAGS, "--dataset", "demo"]
    config = resolve(ISICConfig, flags + [t for n, v in values.items() for t in (f"--{n}".replace("_", "-"), str(v))])
    return save_trained(tmp_path, config)


def overridden(text):
    """The lines of a log about flags that are not the checkpoint's."""
    return re.findall(r"(--[\w-]+ \S+) instead .*", text)


def test_a_test_takes_everything_from_the_checkpoint(trained, data, command, tmp_path):
    status, text = command("--test-only", trained, "--work-dir", tmp_path / "runs")
    assert status == 0, text
    assert "network vmunet, num_classes 1, image_size 48" in text and overridden(text) == []
    config = config_of(the_run(tmp_path / "runs"))
    assert (config["input_channels"], config["dims"], config["dataset"]) == (1, [8, 16, 32, 64], "demo")
    assert (config["normalization"], config["threshold"]) == ("imagenet", 0.3)
    assert np.array(Image.open(the_run(tmp_path / "runs") / "predictions" / "DEMO_0000008.png")).shape == (48, 48)


def test_a_test_takes_no_memory_for_a_network_that_the_weights_are_not_of(trained, command, tmp_path):
    """Sizes that are right by themselves, and would take tens of gigabytes."""
    content = torch.load(trained, weights_only=True)
    huge = dict(dims=[512, 1024, 2048, 4096], depths=[64] * 4, depths_decoder=[64] * 4)
    save_checkpoint(tmp_path / "altered.pth", content | {"config": content["config"] | huge})
    status, text = command("--test-only", tmp_path / "altered.pth", "--work-dir", tmp_path / "runs")
    assert status == 2 and re.search(r"altered\.pth.*\b131\b", text)


def test_a_flag_overrides_the_checkpoint_and_the_log_says_so(trained, command, tmp_path):
    """Also one that says the default."""
    status, text = command("--test-only", trained, "--work-dir", tmp_path / "runs", "--threshold", "0.5")
    assert status == 0 and overridden(text) == ["--threshold 0.5"] and re.search(r"--threshold 0\.5 .* 0\.3", text)


def test_other_data_are_not_tested_by_the_checkpoints_folds(tmp_path):
    config = resolve(ISICConfig, [*TRAINING_FLAGS, "--dataset", "demo", "--data-path", "x", "--folds", "3"])
    path = str(save_trained(tmp_path, config))
    again = resolve(ISICConfig, ["--test-only", path])
    assert (again.dataset, again.data_path, again.folds) == ("demo", "x", 3)
    other = resolve(ISICConfig, ["--test-only", path, "--dataset", "isic18"])
    assert (other.dataset, other.data_path, other.folds, other.image_size) == ("isic18", None, 0, 32)


def test_a_checkpoint_of_the_other_script_is_refused(trained, command):
    status, text = command("--test-only", trained, script=train_synapse)
    assert status == 2 and re.search(r"--test-only.*images.*\btrain\.py", text)


def test_weights_alone_tell_the_networks_shape(tmp_path, trained):
    torch.save(torch.load(trained, weights_only=True)["model"], tmp_path / "bare.pth")
    config = resolve(ISICConfig, ["--test-only", str(tmp_path / "bare.pth")])
    assert (config.dims, config.d_state, config.input_channels, config.image_size) == ((8, 16, 32, 64), 4, 1, 256)


# ---- resuming


@pytest.mark.slow
def test_a_finished_run_is_extended(data, command, tmp_path):
    flags = [*flags_of(data, tmp_path / "runs"), "--sch", "CosineWarmup", "--sch-args", "warm_up_epochs", "1"]
    assert command(*flags, "--epochs", "2")[0] == 0
    run = the_run(tmp_path / "runs")
    status, text = command("--resume", run, "--epochs", "4")
    assert status == 0, text
    assert json.loads((run / "facts.json").read_text(encoding="utf-8"))["extended"] in text
    assert re.search(r"CosineWarmup.* 4 epochs", text)
    assert config_of(run)["epochs"] == 4 and config_of(run)["resume"] is None
    rates = [float(row["lr"]) for row in read_rows(run / "metrics.csv")]
    assert len(rates) == 4 and rates[2] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5) and rates[3] == pytest.approx(1e-5)
    assert (run / "metrics_2_epochs.json").exists() and (run / "metrics.json").exists()
    status, text = command("--resume", run, "--epochs", "3")
    assert status == 2 and re.search(r"--epochs 3.* 4 ", text)
    status, text = command("--resume", run, "--lr", "0.1")
    assert status == 2 and re.search(r"--resume.*--lr.*--epochs", text)


@pytest.mark.slow
def test_a_schedule_that_ignores_the_length_goes_on(data, command, tmp_path):
    assert command(*flags_of(data, tmp_path / "runs"))[0] == 0
    status, text = command("--resume", the_run(tmp_path / "runs"), "--epochs", "2")
    assert status == 0 and "CosineAnnealingLR" in text


# ---- folds


@pytest.mark.slow
def test_all_folds_are_run_once_and_end_with_a_table(data, command, tmp_path, monkeypatch):
    flags = [*flags_of(data, tmp_path / "runs"), "--folds", "2", "--fold", "all"]
    status, text = command(*flags)
    assert status == 0, text
    (path,) = tmp_path.glob("runs/cross_validation_*.csv")
    rows = read_rows(path)
    assert [row["fold"] for row in rows] == ["0", "1", "mean", "deviation"]
    dice = [json.loads((tmp_path / "runs" / row["run"] / "metrics.json").read_text())["dsc"] for row in rows[:2]]
    assert float(rows[2]["dsc"]) == pytest.approx(np.mean(dice))
    assert float(rows[3]["dsc"]) == pytest.approx(np.std(dice, ddof=1))
    assert re.search(rf"DSC.* 2 folds: {100 * np.mean(dice):.2f} ± ", text)
    assert [config_of(tmp_path / "runs" / row["run"])["fold"] for row in rows[:2]] == [0, 1]

    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained again"))
    status, text = command(*flags)
    assert status == 0 and all(row["run"] in text for row in rows[:2]) and read_rows(path) == rows

    facts = tmp_path / "runs" / rows[1]["run"] / "facts.json"  # as of a fold that was drawn from more images
    facts.write_text(facts.read_text().replace(json.loads(facts.read_text())["pool"], 64 * "0"))
    status, text = command(*flags)
    assert status != 0 and all(row["run"] in text for row in rows[:2]) and "pool" in text


# ---- what is said and shown


def test_a_log_in_a_file_has_no_bar_but_a_line_an_epoch_with_the_time_left(data, command, tmp_path):
    status, text = command(*flags_of(data, tmp_path / "runs"), "--epochs", "3")
    assert status == 0 and "\r" not in text and "it/s" not in text
    lines = [line for line in text.splitlines() if " epoch " in line and "train_loss" in line]
    times = [re.search(r"epoch \d of 3, .* (\d+):(\d\d):(\d\d)\D*$", line).groups() for line in lines]
    assert len(times) == 3 and times[-1] == ("0", "00", "00")
    assert text.count("scan backend") == 1 and "oneDNN" not in text and "compiling" not in text


def test_debug_says_more(data, command, tmp_path):
    tune_cpu.cache_clear()  # which speaks once in a process
    status, text = command(*flags_of(data, tmp_path / "runs"), "--debug")
    assert status == 0 and "oneDNN" in text


@pytest.mark.slow
def test_predictions_are_shown_in_tensorboard(data, command, tmp_path):
    """Of the last epoch, and of the test."""
    assert command(*flags_of(data, tmp_path / "runs"))[0] == 0
    events = b"".join(path.read_bytes() for path in (the_run(tmp_path / "runs") / "tensorboard").iterdir())
    assert b"predictions" in events and b"test" in events and events.count(b"PNG") == 2


@pytest.mark.slow
def test_volumes_are_shown_in_tensorboard_too(command, tmp_path):
    folder = make_demo_synapse(tmp_path / "synapse", size=40, train=1, val=1, test=1, slices=4)
    status, text = command(*flags_of(folder, tmp_path / "runs", "--val-interval", "1"), script=train_synapse)
    assert status == 0, text
    events = b"".join(path.read_bytes() for path in (the_run(tmp_path / "runs") / "tensorboard").iterdir())
    assert events.count(b"PNG") == 2


# ---- grey images


@pytest.mark.slow
def test_a_network_of_one_channel_trains_on_grey_images_and_predicts(tmp_path, command):
    """The same scores whether a grey image is stored with one channel or with three equal ones."""
    scores = {}
    for mode in ("L", "RGB"):
        folder = tmp_path / mode
        for split in ("train", "val"):
            for kind in ("images", "masks"):
                (folder / split / kind).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 255, (40, 40), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / split / "images" / f"{i}.png")
                Image.fromarray(np.where(pixels > 128, np.uint8(255), np.uint8(0))).save(
                    folder / split / "masks" / f"{i}.png"
                )
        flags = flags_of(folder, tmp_path / f"runs_{mode}", "--dataset", "own", "--input-channels", "1")
        status, text = command(*flags)
        assert status == 0, text
        run = the_run(tmp_path / f"runs_{mode}")
        scores[mode] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        weights = torch.load(run / "checkpoints" / "best.pth", weights_only=True)["model"]
        assert weights["vmunet.patch_embed.proj.weight"].shape[1] == 1
    assert scores["L"] == scores["RGB"]
    from predict import Predictor

    result = Predictor(str(run), device="cpu").predict(str(folder / "val" / "images" / "0.png"))
    assert result.mask.shape == (40, 40)
    stored = np.array(Image.open(run / "predictions" / "0.png").resize((40, 40), Image.NEAREST)) > 0
    assert np.mean(stored == (np.asarray(result.mask) > 0)) > 0.8


def test_when_a_stopped_command_ends_its_loaders_are_gone(tmp_path, monkeypatch):
    """The end of a program waits 5 s for each worker of a loader that still lives, such as in a traceback."""
    loaders = []

    class WatchedBatches(Batches):
        def __init__(self, loader, *rest):
            loaders.append(weakref.ref(loader))
            super().__init__(loader, *rest)

    def stopped(training, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        finish_epoch(training, *args)

    finish_epoch = TrainingState.finish_epoch
    monkeypatch.setattr("utils.runs.training_state.Batches", WatchedBatches)
    monkeypatch.setattr(TrainingState, "finish_epoch", stopped)
    data = make_demo_isic(tmp_path / "data", size=40, train=6, val=3, test=1)
    values = TRAINING | dict(dataset="demo", data_path=str(data), epochs=2, work_dir=str(tmp_path / "runs"))
    with pytest.raises(SystemExit) as end:
        run(train.main, ISICConfig, lambda config_class: config_class(**values))
    assert end.value.code == 75 and [loader() for loader in loaders] == [None]
