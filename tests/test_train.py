"""Both training scripts on small synthetic data: what they write, resuming, testing checkpoints, several processes."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.recipes import RECIPES
from configs.resolve import resolve
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.transforms import run_angle
from models.vmunet import VMUNet
from report.records import Record
from tests import run_in_float64
from tests.ranks import run_command
from tests.tiny import NETWORK, ROOT, TRAINING, TRAINING_FLAGS
from utils.runs import checkpoint, training_state
from utils.runs.batches import USAGE
from utils.runs.training_state import TrainingState

SMALL = TRAINING | dict(dataset="demo", batch_size=5, epochs=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_demo_isic(folder / "isic", size=40, train=13, val=4)
    make_demo_synapse(folder / "synapse", size=40, train=2, test=2, slices=5)
    return folder


def isic(data, tmp_path, **changes):
    return ISICConfig(**SMALL | {"data_path": str(data / "isic"), "work_dir": str(tmp_path)} | changes)


def synapse(data, tmp_path, **changes):
    return SynapseConfig(**SMALL | {"data_path": str(data / "synapse"), "work_dir": str(tmp_path)} | changes)


def the_run(work_dir):
    (folder,) = Path(work_dir).iterdir()
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(run, name="latest.pth"):
    return torch.load(run / "checkpoints" / name, weights_only=True)["model"]


def without_time(table):
    return [{name: value for name, value in row.items() if name not in USAGE} for row in table]


def test_isic_run_leaves_everything_in_its_folder(data, tmp_path):
    scores = train.main(isic(data, tmp_path, val_interval=1))
    run = the_run(tmp_path)
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["image_size"] == 32
    assert f"{run_angle(42):.2f}" in (run / "log.txt").read_text(encoding="utf-8")
    table = rows(run / "metrics.csv")
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert {"lr", "train_loss", "val_loss", "miou", "dsc", "miou_per_image"} <= set(table[0])
    images = rows(run / "test_images.csv")
    assert [row["name"] for row in images] == [f"DEMO_{i:07d}" for i in range(13, 17)]
    assert np.mean([float(row["dsc"]) for row in images]) == pytest.approx(scores["dsc_per_image"])
    final = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert final["dsc"] == scores["dsc"] and final["images"] == 4
    best = min(table, key=lambda row: float(row["val_loss"]))
    assert final["loss"] == pytest.approx(float(best["val_loss"]), rel=1e-5)
    for row in images:
        mask = np.array(Image.open(run / "predictions" / f"{row['name']}.png"))
        assert mask.shape == (32, 32) and set(np.unique(mask)) <= {0, 255}
        assert (run / "predictions" / f"{row['name']}_overlay.png").exists()
    assert (run / "curves.png").stat().st_size > 0 and (run / "panels.png").stat().st_size > 0
    assert pictures(run) == [("predictions", 3), ("predictions", 6), ("test", 6)]  # at the last steps of the epochs


def pictures(run):
    """[(tag, step)] of the pictures in a run's TensorBoard."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:  # records: length (8 bytes), its sum (4), an event, its sum (4)
            end = 12 + int.from_bytes(content[:8], "little")
            event, content = Event.FromString(content[12:end]), content[end + 4 :]
            found += [(value.tag, event.step) for value in event.summary.value if value.HasField("image")]
    return found


@pytest.mark.parametrize("name", ["save_curves", "draw_panels"])
def test_a_figure_that_can_not_be_drawn_ends_the_run_with_its_error(name, data, tmp_path, monkeypatch):
    def wrong(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(f"utils.figures.{name}", wrong)
    with pytest.raises(RuntimeError, match="no fonts"):
        train.main(isic(data, tmp_path, val_interval=1))
    assert len(rows(the_run(tmp_path) / "metrics.csv")) == 1  # while the second epoch goes on


def test_synapse_run_writes_volumes_with_their_spacing(data, tmp_path):
    scores = train_synapse.main(synapse(data, tmp_path, val_interval=1))
    run = the_run(tmp_path)
    assert {"dice_transunet", "hd95_transunet", "dice_strict", "hd95_strict"} <= set(rows(run / "metrics.csv")[0])
    cases = rows(run / "test_volumes.csv")
    assert [row["name"] for row in cases] == (data / "synapse/lists/list_Synapse/test_vol.txt").read_text().split()
    organs = [np.mean([float(row[name]) for row in cases]) for name in cases[0] if name.startswith("dice_transunet")]
    assert len(organs) == 8 and np.mean(organs) == pytest.approx(scores["dice_transunet"])
    image, prediction = (
        nibabel.load(run / "predictions" / f"{cases[0]['name']}_{kind}.nii.gz") for kind in ("img", "pred")
    )
    assert prediction.shape == (40, 40, 5)
    assert prediction.header.get_zooms() == image.header.get_zooms()
    assert prediction.header.get_zooms()[2] > 1  # the volumes' own spacing, not the published 1 mm


def test_the_published_numbers_of_volumes_do_not_move(tmp_path):
    """Losses and scores of a short run as the published recipe gave them before volumes of other kinds were read."""
    data = make_demo_synapse(tmp_path / "data", size=40, train=2, val=1, test=2, slices=5)
    scores = train_synapse.main(
        SynapseConfig(
            **TRAINING | {"d_state": 16}, dataset="demo", data_path=str(data), work_dir=str(tmp_path / "runs"),
            epochs=2, val_interval=1,
        )
    )  # fmt: skip
    table = rows(the_run(tmp_path / "runs") / "metrics.csv")
    assert [float(row["train_loss"]) for row in table] == pytest.approx([3.6544463, 3.5989092], rel=1e-5)
    # rounding that differs between processors turns a few voxels, which Dice of the smallest organs feels most
    assert scores["dice_transunet"] == pytest.approx(0.0049448, abs=5e-4)
    assert scores["hd95_transunet"] == pytest.approx(8.82267, rel=1e-3)
    assert scores["hd95_strict"] == pytest.approx(424.910, rel=1e-3)


ROBUST = dict(RECIPES["robust"], recipe="robust")


@pytest.mark.parametrize(
    "script, kind, make, recipe",
    [
        (train, ISICConfig, isic, ROBUST),
        (train_synapse, SynapseConfig, synapse, dict(ema=0.99)),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(script, kind, make, recipe, data, tmp_path, monkeypatch):
    """Two epochs and two resumed ones equal four: weights, losses, scores; with augmentation and stochastic depth."""
    script.main(make(data, tmp_path / "whole", epochs=4, val_interval=2, **recipe))
    whole = the_run(tmp_path / "whole")

    finish_epoch = TrainingState.finish_epoch

    def stop_after_two(training, *args):
        finish_epoch(training, *args)
        if training.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "finish_epoch", stop_after_two)
        script.main(make(data, tmp_path / "stopped", epochs=4, val_interval=2, **recipe))
    stopped = the_run(tmp_path / "stopped")
    assert len(rows(stopped / "metrics.csv")) == 2
    script.main(resolve(kind(resume=str(stopped))))

    assert without_time(rows(stopped / "metrics.csv")) == without_time(rows(whole / "metrics.csv"))
    for name in ("latest.pth", "best.pth"):
        for found, expected in zip(weights(stopped, name).values(), weights(whole, name).values(), strict=True):
            assert torch.equal(found, expected)
    assert (stopped / "metrics.json").read_text(encoding="utf-8") == (whole / "metrics.json").read_text()


def test_the_robust_recipe_tests_the_average_of_the_last_epoch(data, tmp_path, monkeypatch):
    finish_epoch = TrainingState.finish_epoch

    def worse(training, scores, selected_by, samples):  # from epoch to epoch
        finish_epoch(training, scores | {"val_loss": training.epoch}, training.epoch, samples)

    monkeypatch.setattr(TrainingState, "finish_epoch", worse)
    scores = train.main(isic(data, tmp_path / "run", epochs=3, **ROBUST))
    run = the_run(tmp_path / "run")
    best, latest = (torch.load(run / "checkpoints" / name, weights_only=True) for name in ("best.pth", "latest.pth"))
    assert best["epoch"] == latest["best"]["epoch"] == Record(run).best_epoch == 3
    assert latest["average"]["updates"] == 9  # of three batches an epoch
    for name, weight in best["model"].items():
        assert torch.equal(weight, latest["model"][name])
    trained = latest["average"]["weights"].items()
    assert any(not torch.equal(weight, best["model"][name]) for name, weight in trained)
    config = resolve(isic(data, tmp_path / "test", test_only=str(run / "checkpoints/best.pth")))
    assert train.main(config) == scores


def test_checkpoints_wait_until_there_is_work_to_lose(data, tmp_path, monkeypatch):
    """The first and the last epoch are saved, and every one if nothing may be lost; best.pth is the best of those that
    latest.pth knows."""
    written, write = [], checkpoint.save_latest

    def look(folder, state):
        write(folder, state)
        latest, best = (torch.load(folder / name, weights_only=True) for name in ("latest.pth", "best.pth"))
        assert latest["best"]["epoch"] == best["epoch"]
        written.append(latest["epoch"])

    monkeypatch.setattr(training_state, "save_latest", look)
    for interval, expected in ((60, [1, 4]), (0, [1, 2, 3, 4])):
        written.clear()
        train.main(isic(data, tmp_path / str(interval), epochs=4, checkpoint_interval=interval))
        assert written == expected


def test_only_testing_gives_the_runs_own_scores(data, tmp_path):
    scores = train.main(isic(data, tmp_path / "run", epochs=1))
    best = the_run(tmp_path / "run") / "checkpoints" / "best.pth"
    missing = "pretrained_weights/not_there.pth"
    again = train.main(resolve(isic(data, tmp_path / "test", test_only=str(best), load_ckpt_path=missing)))
    assert again == scores
    assert not list((the_run(tmp_path / "test") / "checkpoints").iterdir())


def test_checkpoints_of_the_original_can_be_tested(data, tmp_path):
    """Its ISIC checkpoints hold thop's counters beside the weights."""
    torch.manual_seed(3)
    config = isic(data, tmp_path)
    model = VMUNet(**NETWORK)
    state = {**model.state_dict(), "vmunet.total_ops": torch.zeros(1).double(), "total_params": torch.zeros(1).double()}
    torch.save(state, tmp_path / "original.pth")
    config = replace(config, test_only=str(tmp_path / "original.pth"), work_dir=str(tmp_path / "runs"))
    scores = train.main(resolve(config))
    assert 0 <= scores["dsc"] <= 1


def test_several_classes_from_folders(data, tmp_path):
    """Masks of three grey values train with cross-entropy and Dice over the classes."""
    folder = tmp_path / "three"
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / split / "images" / f"{i}.png")
            mask = np.repeat(np.array([0, 128, 255], np.uint8), [10, 10, 20])[None].repeat(40, 0)
            Image.fromarray(mask).save(folder / split / "masks" / f"{i}.png")
    classes = dict(num_classes=3, mask_values=("0", "128", "255"))
    scores = train.main(isic(data, tmp_path / "runs", dataset="own", data_path=str(folder), batch_size=2, **classes))
    run = the_run(tmp_path / "runs")
    assert len(scores["classes"]) == 3 and "dsc_class2" in rows(run / "test_images.csv")[0]
    assert set(np.unique(np.array(Image.open(run / "predictions" / "0.png")))) <= {0, 1, 2}


@pytest.mark.slow
def test_no_process_reads_the_best_weights_before_they_are_written(data, tmp_path):
    flags = ["--dataset", "demo", "--data-path", str(data / "isic"), "--work-dir", str(tmp_path), "--epochs", "1"]
    torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=2".split()]
    command = [*torchrun, "tests/run_in_float64.py", "train.py", *flags, *TRAINING_FLAGS, "--batch-size", "5"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("--recipe stable") == 1  # nor says what the main process says


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, kind, recipe",
    [("train.py", "isic", "robust"), ("train_synapse.py", "synapse", "published")],
)
def test_two_processes_follow_one_processs_losses(script, kind, recipe, data, tmp_path):
    """13 images, or 10 slices, in batches of 5, in double precision; without stochastic depth."""
    tables = {}
    for processes in (1, 2):
        work_dir = tmp_path / str(processes)
        flags = ["--dataset", "demo", "--data-path", str(data / kind), "--work-dir", str(work_dir), "--epochs", "2"]
        flags += [*TRAINING_FLAGS, "--batch-size", "5", "--drop-path-rate", "0", "--recipe", recipe]
        flags += ["--val-interval", "1" if kind == "isic" else "3"]  # volumes go through the network in float32
        run_command(processes, run_in_float64.main, script, *flags)
        tables[processes] = without_time(rows(the_run(work_dir) / "metrics.csv"))
    assert len(tables[1]) == 2
    tolerance = 1e-5 if recipe == "robust" else 1e-9  # the images of a batch are augmented in float32
    for one, two in zip(tables[1], tables[2], strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert math.isclose(float(one[name]), float(two[name]), rel_tol=tolerance), name


@pytest.mark.parametrize("panels", [2, 5])  # of 4 images
def test_the_test_shows_its_first_predictions(panels, data, tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(train, "PANELS", panels)
    train.main(isic(data, tmp_path, epochs=1))
    with Image.open(the_run(tmp_path) / "panels.png") as picture:
        assert picture.height == 40 + 320 * min(panels, 4)
