import dataclasses
import json
import logging
import random
from datetime import datetime

import numpy as np
import pytest
import torch

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from tests.ranks import run_in_two_processes
from tests.tiny import empty_state
from utils import distributed
from utils.errors import CheckpointError
from utils.files import read_rows
from utils.machine.device import choose_device
from utils.runs.checkpoint import restore, save_latest, training_state
from utils.runs.run_folder import find_run, make_run_folder, set_seed, start_run, stop_log


@pytest.fixture
def config(tmp_path):
    yield ISICConfig(work_dir=str(tmp_path / "results"), dataset="isic17", depths=(1, 1, 1, 1))
    stop_log()


# ---- folder and config


def test_a_run_has_a_folder_with_its_config_and_log(config):
    run = start_run(config)
    assert run.folder.parent.name == "results" and run.folder.name.startswith("vmunet_isic17_")
    datetime.strptime(run.folder.name.removeprefix("vmunet_isic17_"), "%Y-%m-%d_%H-%M-%S")
    assert run.checkpoints.is_dir()
    logging.getLogger("vmunet").info("épocha 1")
    assert "épocha 1" in (run.folder / "log.txt").read_text(encoding="utf-8")
    stored = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    assert stored["batch_size"] == 32 and stored["depths"] == [1, 1, 1, 1]


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    folders = [make_run_folder(tmp_path, "vmunet_my/set") for _ in range(4)]
    assert len(set(folders)) == 4 and all(folder.parent == tmp_path for folder in folders)


def test_a_work_dir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(OSError, match="--work-dir .*results"):
        make_run_folder(tmp_path / "results", "vmunet_demo")


@pytest.mark.parametrize("part", [".", "checkpoints", "checkpoints/latest.pth"])
def test_a_run_is_found_by_its_folder_or_a_checkpoint(config, part):
    run = start_run(config)
    save_latest(run.checkpoints, empty_state(1))
    assert find_run(run.folder / part) == run.folder


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--resume .*typo.*config\.json"):
        find_run(tmp_path / "typo")


@pytest.mark.parametrize("kind", [ISICConfig, SynapseConfig])
def test_a_resumed_run_has_the_config_it_was_started_under(kind, tmp_path):
    started = kind(work_dir=str(tmp_path), depths=(1, 2, 1, 1), lr=0.003, opt_args={"eps": "1e-6"}, loss_weight=(1, 2))
    folder = start_run(started).folder
    stop_log()
    assert resolve(kind, ["--resume", str(folder)]) == dataclasses.replace(started, resume=str(folder))
    assert resolve(kind(resume=str(folder), epochs=500)) == dataclasses.replace(started, resume=str(folder), epochs=500)


def test_a_run_of_the_other_script_is_refused(config):
    folder = start_run(config).folder
    with pytest.raises(ValueError, match=r"config\.json.* images"):
        resolve(SynapseConfig, ["--resume", str(folder)])


# ---- facts


def test_facts_are_logged_and_kept_and_replaced_when_the_run_is_resumed(config):
    run = start_run(config)
    run.note("device", "device cpu, 2 CPU threads")
    run.note("scan", "cpu", level=None)
    run.note("optimization", {"optimizer": {"name": "AdamW", "betas": (0.9, 0.999)}}, level=None)
    stop_log()
    again = start_run(dataclasses.replace(config, resume=str(run.folder)))
    again.note("device", "device cuda:0, 8 CPU threads")
    assert json.loads((run.folder / "facts.json").read_text(encoding="utf-8")) == {
        "recipe": "recipe published",
        "device": "device cuda:0, 8 CPU threads",
        "scan": "cpu",
        "optimization": {"optimizer": {"name": "AdamW", "betas": [0.9, 0.999]}},
    }
    lines = [line.split(" ", 2)[2] for line in (run.folder / "log.txt").read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if line.startswith("device")] == [
        "device cpu, 2 CPU threads",
        "device cuda:0, 8 CPU threads",
    ]
    assert "cpu" not in lines and not any("AdamW" in line for line in lines)


def test_facts_that_are_no_facts_are_named(config):
    run = start_run(config)
    (run.folder / "facts.json").write_text("[]")
    with pytest.raises(ValueError, match=r"facts\.json.*list"):
        run.note("scan", "cpu")
    (run.folder / "facts.json").write_text("{")
    with pytest.raises(ValueError, match=r"facts\.json"):
        run.note("scan", "cpu")


# ---- metrics


def test_metrics_keep_every_digit_and_take_new_columns(config):
    run = start_run(config)
    run.add_metrics({"epoch": 1, "loss": 0.1 + 0.2})
    run.add_metrics({"epoch": 2, "loss": 1 / 3, "dsc": 0.5})
    rows = read_rows(run.metrics)
    assert [float(row["loss"]) for row in rows] == [0.1 + 0.2, 1 / 3]
    assert [row["dsc"] for row in rows] == ["", "0.5"]


def test_resuming_cuts_the_metrics_back_to_the_checkpoint(config):
    run = start_run(config)
    for epoch in (1, 2):
        run.add_metrics({"epoch": epoch, "loss": 1 / epoch})
        save_latest(run.checkpoints, empty_state(epoch))
    before = run.metrics.read_bytes()
    run.add_metrics({"epoch": 3, "loss": 0.1})  # killed before the checkpoint of epoch 3
    again = start_run(dataclasses.replace(config, resume=str(run.folder)))
    assert again == run and again.resume()["epoch"] == 2
    assert run.metrics.read_bytes() == before
    assert "resuming" in (run.folder / "log.txt").read_text(encoding="utf-8")


def test_resuming_before_the_first_checkpoint_starts_at_the_beginning(config):
    run = start_run(config)
    run.add_metrics({"epoch": 1, "loss": 1.0})
    assert run.resume() is None
    assert read_rows(run.metrics) == []
    run.add_metrics({"epoch": 1, "loss": 2.0})
    assert read_rows(run.metrics) == [{"epoch": "1", "loss": "2.0"}]


def test_resuming_from_damaged_checkpoints_only_is_an_error(config):
    run = start_run(config)
    (run.checkpoints / "latest.pth").write_bytes(b"half")
    with pytest.raises(CheckpointError):
        run.resume()


# ---- log


def test_the_log_has_each_line_once(config, capsys):
    start_run(config)
    run = start_run(config)
    logging.getLogger("vmunet").info("only once")
    assert (run.folder / "log.txt").read_text(encoding="utf-8").count("only once") == 1
    assert capsys.readouterr().err.count("only once") == 1


def test_other_processes_write_nothing_but_warnings(config, capsys, monkeypatch):
    folder = start_run(config).folder
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    run = start_run(dataclasses.replace(config, resume=str(folder)))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    logging.getLogger("vmunet").info("not heard")
    logging.getLogger("vmunet").warning("heard")
    run.add_metrics({"epoch": 1, "loss": 1.0})
    run.note("scan", "cpu")
    err = capsys.readouterr().err
    assert "not heard" not in err and "process 1: heard" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# ---- seed, device, processes


def test_a_seed_fixes_all_generators():
    draws = []
    for seed in (3, 3, 4):
        set_seed(seed)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1] and all(a != b for a, b in zip(draws[1], draws[2], strict=True))


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected
    with pytest.raises(ValueError, match="--device.*'gpu'.*auto, cpu, cuda"):
        choose_device("gpu")


@pytest.mark.parametrize(
    "build, environment, reason",
    [
        (None, {}, "PyTorch"),
        ("13.0", {}, "driver"),
        ("13.0", {"CUDA_VISIBLE_DEVICES": ""}, "DEVICES=''"),
    ],
)
def test_a_missing_gpu_is_explained(monkeypatch, build, environment, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"--device cuda.*{reason}.*--device auto"):
        choose_device("cuda")


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert choose_device("auto") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="--device cuda:2.* 2 "):
        choose_device("cuda:2")


def test_half_of_torchruns_variables_are_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="RANK.*RANK, LOCAL_RANK, WORLD_SIZE"):
        distributed.rank()


def share(rank, work_dir):
    run = start_run(ISICConfig(work_dir=work_dir, dataset="demo"))
    assert distributed.all_gather(run.folder) == [run.folder] * 2
    assert distributed.broadcast_object(rank) == 0 and distributed.all_reduce_max(rank).item() == 1

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    parts = dict(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    state = training_state(parts, epoch=1, step=1, losses=[], best={"value": 1.0, "epoch": 1}, config={}, data="")
    drawn = torch.rand(1)
    restore(state, parts)
    assert torch.equal(torch.rand(1), drawn)
    assert distributed.all_gather(drawn.item()) == 2 * [drawn.item()]  # stochastic depth is drawn for the whole batch
    distributed.barrier()


@pytest.mark.slow
def test_two_processes_share_a_folder_and_their_random_numbers(tmp_path):
    run_in_two_processes(share, str(tmp_path / "results"))
    (folder,) = (tmp_path / "results").iterdir()
    assert (folder / "log.txt").read_text(encoding="utf-8").count("run folder") == 1
