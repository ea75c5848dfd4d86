"""The commands of training as a user meets them: --help, mistakes, Ctrl-C, tests of checkpoints, longer runs, folds."""

import json
import os
import re
import signal
import subprocess
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
from configs.recipes import parse_config
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.loaders import ISIC_FOLDERS, SYNAPSE_FOLDERS
from predict import Predictor
from tests.inference.networks import save_trained
from tests.tiny import ROOT, TRAINING, TRAINING_FLAGS
from utils.files import read_rows
from utils.repository import RESULTS
from utils.runs.batches import Batches
from utils.runs.checkpoint import save_checkpoint
from utils.runs.command_line import run_command, run_with

SCRIPTS = ("train.py", "train_synapse.py", "export.py", "experiments.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("data") / "isic", size=40, train=8, val=4, test=1)


@pytest.fixture
def command(monkeypatch, capsys, caplog):
    """Runs a script's command line in this process: (exit status, what it said)."""

    def run(*flags, script=train):
        config_class = ISICConfig if script is train else SynapseConfig
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, flags)])
        status = 0
        try:
            run_command(script.main, config_class, parse_config)
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr().err + caplog.text
        caplog.clear()
        return status, said

    return run


def flags_of(data, work_dir, *more):
    return ["--dataset", "demo", "--data-path", data, "--work-dir", work_dir, *TRAINING_FLAGS, "--epochs", "1", *more]


def the_run(work_dir):
    (folder,) = (path.parent for path in Path(work_dir).glob("*/config.json"))
    return folder


def config_of(run):
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


# ---- before anything is computed

LOOK = """
import runpy, sys
sys.argv = {arguments}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("status", end.code)
print("imported", [name for name in ("torch", "matplotlib", "numba", "tensorboardX") if name in sys.modules])
"""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag, status", [("--help", 0), ("--epohcs", 2)])
def test_help_and_mistakes_need_no_slow_imports(script, flag, status):
    code = LOOK.format(arguments=[script, flag])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.endswith(f"status {status}\nimported []\n"), done.stdout + done.stderr


def test_ctrl_c_while_importing_ends_without_a_traceback(tmp_path):
    """A made-up torch stands for the one that takes seconds to import."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for script in ("train.py", "train_synapse.py"):
        done = subprocess.run(
            [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=60
        )
        assert done.returncode == 128 + signal.SIGINT
        assert done.stderr == "stopped by SIGINT; there was nothing new to save\n"


@pytest.mark.parametrize("config_class", [ISICConfig, SynapseConfig])
def test_help_has_the_sections_of_the_config_and_all_choices(config_class, capsys):
    with pytest.raises(SystemExit):
        parse_config(config_class, ["--help"])
    text = capsys.readouterr().out
    titles = [title.split()[-1] for title in re.findall(r"(\w[\w ]*) options\b", text)]
    assert titles[:5] == ["model", "data", "optimisation", "execution", "run"]
    for section, flag in (("model", "--depths "), ("data", "--dataset "), ("optimisation", "--loss-weight ")):
        assert flag in text.split(f"{section} options")[1].split(" options")[0]
    choices = re.sub(r"[^\w{},]+", "", text)
    assert "{" + ",".join(OPTIMIZERS) + "}" in choices and "{" + ",".join(SCHEDULERS) + "}" in choices


@pytest.mark.parametrize(
    "more, said",
    [
        (["--load-ckpt-path", "nowhere.pth"], "nowhere.pth: there is no such file"),
        (["--opt-args", "betas", "3"], "their values can't be meant"),
        (["--sch-args", "T_maxx", "3"], "has no T_maxx"),
        (["--folds", "5", "--fold", "5"], "expected at least 2 folds, and one of 0..folds-1 or all"),
        (["--fold", "all"], "--fold all: found no --folds"),
        (["--input-channels", "2"], "--input-channels 2: expected 3 (colour) or 1 (grey)"),
        (["--dataset", "own", "--data-path", "nowhere"], "nowhere is not a folder"),
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
    assert parse_config(ISICConfig, ["--work-dir", "mine"]).work_dir == "mine"


# ---- testing a checkpoint


@pytest.fixture
def trained(tmp_path, data):
    """A checkpoint of other values than the default ones."""
    values = dict(image_size=48, normalization="imagenet", threshold=0.3, input_channels=1, data_path=str(data))
    flags = [*TRAINING_FLAGS, "--dataset", "demo"]
    config = parse_config(
        ISICConfig, flags + [t for n, v in values.items() for t in (f"--{n}".replace("_", "-"), str(v))]
    )
    return save_trained(tmp_path, config)


def test_a_test_takes_everything_from_the_checkpoint(trained, data, command, tmp_path):
    status, text = command("--test-only", trained, "--work-dir", tmp_path / "runs")
    assert status == 0, text
    assert "tested with network vmunet, num_classes 1, image_size 48, normalization imagenet, threshold 0.3" in text
    assert "instead of the checkpoint's" not in text
    config = config_of(the_run(tmp_path / "runs"))
    assert (config["input_channels"], config["dims"], config["dataset"]) == (1, [8, 16, 32, 64], "demo")
    assert np.array(Image.open(the_run(tmp_path / "runs") / "predictions" / "DEMO_0000008.png")).shape == (48, 48)


def test_a_test_takes_no_memory_for_a_network_that_the_weights_are_not_of(trained, command, tmp_path):
    """Sizes that are right by themselves, and would take tens of gigabytes."""
    content = torch.load(trained, weights_only=True)
    huge = dict(dims=[512, 1024, 2048, 4096], depths=[64] * 4, depths_decoder=[64] * 4)
    save_checkpoint(tmp_path / "altered.pth", content | {"config": content["config"] | huge})
    status, text = command("--test-only", tmp_path / "altered.pth", "--work-dir", tmp_path / "runs")
    assert status == 2 and "altered.pth: found 131 of this network's" in text


def test_a_flag_overrides_the_checkpoint_and_the_log_says_so(trained, command, tmp_path):
    """Also one that says the default."""
    status, text = command("--test-only", trained, "--work-dir", tmp_path / "runs", "--threshold", "0.5")
    assert status == 0 and "--threshold 0.5 instead of the checkpoint's 0.3" in text
    assert text.count("instead of the checkpoint's") == 1


def test_other_data_are_not_tested_by_the_checkpoints_folds(tmp_path):
    config = parse_config(ISICConfig, [*TRAINING_FLAGS, "--dataset", "demo", "--data-path", "x", "--folds", "3"])
    path = str(save_trained(tmp_path, config))
    again = parse_config(ISICConfig, ["--test-only", path])
    assert (again.dataset, again.data_path, again.folds) == ("demo", "x", 3)
    other = parse_config(ISICConfig, ["--test-only", path, "--dataset", "isic18"])
    assert (other.dataset, other.data_path, other.folds, other.image_size) == ("isic18", None, 0, 32)


def test_a_checkpoint_of_the_other_script_is_refused(trained, command):
    status, text = command("--test-only", trained, script=train_synapse)
    assert status == 2 and "its network is for images: python train.py" in text


def test_weights_alone_tell_the_networks_shape(tmp_path, trained):
    torch.save(torch.load(trained, weights_only=True)["model"], tmp_path / "bare.pth")
    config = parse_config(ISICConfig, ["--test-only", str(tmp_path / "bare.pth")])
    assert (config.dims, config.d_state, config.input_channels, config.image_size) == ((8, 16, 32, 64), 4, 1, 256)


# ---- recipes


def test_own_data_have_the_stable_recipe_unless_another_is_said():
    own = parse_config(ISICConfig, ["--dataset", "own"])
    assert (own.recipe, own.lr, own.sch, own.rotation) == ("stable", 5e-4, "CosineWarmup", "sample")
    assert parse_config(ISICConfig, ["--dataset", "own", "--recipe", "published"]) == ISICConfig(dataset="own")
    assert parse_config(ISICConfig, ["--dataset", "own", "--lr", "0.1"]).lr == 0.1
    assert parse_config(SynapseConfig, ["--dataset", "own"]).recipe == "stable"
    assert parse_config(ISICConfig, ["--dataset", "isic17"]).recipe == "published"


# ---- resuming


@pytest.mark.slow
def test_a_finished_run_is_extended(data, command, tmp_path):
    flags = [*flags_of(data, tmp_path / "runs"), "--sch", "CosineWarmup", "--sch-args", "warm_up_epochs", "1"]
    assert command(*flags, "--epochs", "2")[0] == 0
    run = the_run(tmp_path / "runs")
    status, text = command("--resume", run, "--epochs", "4")
    assert status == 0, text
    assert "after epoch 2: a run of 4 epochs instead of 2" in text
    assert "the schedule CosineWarmup is now that of 4 epochs: the learning rate of the next one is" in text
    assert config_of(run)["epochs"] == 4 and config_of(run)["resume"] is None
    rates = [float(row["lr"]) for row in read_rows(run / "metrics.csv")]
    assert len(rates) == 4 and rates[2] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5) and rates[3] == pytest.approx(1e-5)
    assert (run / "metrics_2_epochs.json").exists() and (run / "metrics.json").exists()
    status, text = command("--resume", run, "--epochs", "3")
    assert status == 2 and "--epochs 3: the run has 4 already" in text
    status, text = command("--resume", run, "--lr", "0.1")
    assert status == 2 and "found also --lr, expected nothing but --epochs" in text


@pytest.mark.slow
def test_a_schedule_that_ignores_the_length_goes_on(data, command, tmp_path):
    assert command(*flags_of(data, tmp_path / "runs"))[0] == 0
    status, text = command("--resume", the_run(tmp_path / "runs"), "--epochs", "2")
    assert status == 0 and "the schedule CosineAnnealingLR goes on as it was" in text


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
    assert f"DSC % over 2 folds: {100 * np.mean(dice):.2f} ± " in text
    assert [config_of(tmp_path / "runs" / row["run"])["fold"] for row in rows[:2]] == [0, 1]

    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained again"))
    status, text = command(*flags)
    assert status == 0 and text.count("finished in") == 2 and read_rows(path) == rows


# ---- what is said and shown


def test_a_log_in_a_file_has_no_bar_but_a_line_an_epoch_with_the_time_left(data, command, tmp_path):
    status, text = command(*flags_of(data, tmp_path / "runs"), "--epochs", "3")
    assert status == 0 and "\r" not in text and "it/s" not in text
    lines = [line for line in text.splitlines() if " epoch " in line and "train_loss" in line]
    assert [re.search(r"\(of 3; (.*)\)$", line)[1].split()[-1] for line in lines] == ["left", "left", "last"]
    assert text.count("scan backend") == 1 and "oneDNN" not in text and "compiling" not in text


def test_debug_says_more(data, command, tmp_path):
    status, text = command(*flags_of(data, tmp_path / "runs"), "--debug")
    assert status == 0 and "oneDNN's float32 matmuls" in text


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
    result = Predictor(str(run), device="cpu").predict(str(folder / "val" / "images" / "0.png"))
    assert result.mask.shape == (40, 40)
    stored = np.array(Image.open(run / "predictions" / "0.png").resize((40, 40), Image.NEAREST)) > 0
    assert np.mean(stored == (np.asarray(result.mask) > 0)) > 0.8


def test_when_a_stopped_command_ends_its_loaders_are_gone(tmp_path, monkeypatch):
    """The end of a program waits 5 s for each worker of a loader that still lives, such as in a traceback."""
    loaders = []

    class Seen(Batches):
        def __init__(self, loader, *rest):
            loaders.append(weakref.ref(loader))
            super().__init__(loader, *rest)

    def stopped(progress, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        finish_epoch(progress, *args)

    finish_epoch = train.Progress.finish_epoch
    monkeypatch.setattr("utils.runs.progress.Batches", Seen)
    monkeypatch.setattr(train.Progress, "finish_epoch", stopped)
    data = make_demo_isic(tmp_path / "data", size=40, train=6, val=3, test=1)
    values = TRAINING | dict(dataset="demo", data_path=str(data), epochs=2, work_dir=str(tmp_path / "runs"))
    with pytest.raises(SystemExit) as end:
        run_with(train.main, ISICConfig(**values))
    assert end.value.code == 75 and [loader() for loader in loaders] == [None]
