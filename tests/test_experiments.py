"""Rows of the paper's tables: what is run, what is recognised and resumed, and what the table says."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

import experiments
import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.optim import OPTIMIZERS, SCHEDULERS
from configs.recipes import RECIPES
from configs.resolve import resolve
from datasets.demo import make_demo_isic, make_demo_synapse
from report.paper import ROWS, differences, initial_weights
from report.records import Record
from report.run_index import find_runs
from tests.report.made_runs import make_run
from tests.tiny import NETWORK_FLAGS
from utils.files import read_rows
from utils.optimizers import optimization_values
from utils.runs.training_state import TrainingState

SMALL = [*NETWORK_FLAGS, *"--image-size 32 --batch-size 4 --num-workers 0 --device cpu --epochs 2".split()]


def in_this_process(command):
    train.main(resolve(ISICConfig, command[2:]))
    return 0


def run(*arguments):
    """The exit status of the command."""
    with pytest.raises(SystemExit) as end:
        experiments.main([str(argument) for argument in arguments])
    return end.value.code


def row_of(work_dir, name):
    lines = (Path(work_dir) / "table.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(f"| {name} ")]


@pytest.mark.slow
def test_seeds_are_run_recognised_and_resumed(tmp_path, monkeypatch):
    data, work = make_demo_isic(tmp_path / "data", size=40, train=6, val=3, test=1), tmp_path / "results"
    command = ["isic17-none", "--seeds", 1, 2, "--work-dir", work, "--data-path", data, *SMALL]
    started = []

    def launch(parts):
        started.append(parts)
        return in_this_process(parts)

    def killed(parts):
        """The second seed is stopped after its first epoch, as by Ctrl-C."""
        if len(started) == 0:
            return launch(parts)

        def stop_after_one(progress, row, *args):
            finish_epoch(progress, row, *args)
            raise KeyboardInterrupt

        finish_epoch = TrainingState.finish_epoch
        with monkeypatch.context() as patch:
            patch.setattr(TrainingState, "finish_epoch", stop_after_one)
            return launch(parts)

    monkeypatch.setattr(experiments, "launch", killed)
    assert run(*command) == 130
    assert [parts[1].rsplit("/", 1)[-1] for parts in started] == ["train.py"] * 2
    assert row_of(work, "isic17-none")[0][5] == "1"  # the table was made after the first seed

    monkeypatch.setattr(experiments, "launch", launch)
    assert run(*command) == 0
    (_, resumed) = [record for record in find_runs(work)]
    assert started[2][2:] == ["--resume", str(resumed.folder)]
    assert [row["epoch"] for row in read_rows(resumed.folder / "metrics.csv")] == ["1", "2"]
    assert run(*command) == 0 and len(started) == 3  # nothing left to do

    records = [Record(path.parent) for path in work.glob("*/config.json")]
    assert sorted(record.config["seed"] for record in records) == [1, 2]
    scores = [100 * record.scores["miou"] for record in records]
    mean, deviation = sum(scores) / 2, abs(scores[0] - scores[1]) / 2**0.5
    ((name, paper, here, *_, seeds, recipe, remarks),) = row_of(work, "isic17-none")
    assert (name, paper, here) == ("isic17-none", "77.59", f"{mean:.2f} ± {deviation:.2f}")
    assert recipe == "published"
    assert sorted(seeds.split(", ")) == ["1", "2"]
    assert remarks.startswith("not comparable: ") and "epochs is 2, published 300" in remarks
    assert "tested on 3 images or volumes, published 650" in remarks


def test_dry_run_runs_and_writes_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(experiments, "launch", lambda command: pytest.fail("was started"))
    arguments = ["--seeds", 7, "--dry-run", "--work-dir", tmp_path / "r", "--epochs", 1]
    assert run("isic18-none", "synapse-vmamba-s", *arguments) == 0
    assert not (tmp_path / "r").exists()
    isic, synapse, summary = caplog.messages
    assert "isic18-none, seed 7: start" in isic and "--dataset isic18 --network vmunet --load-ckpt-path none" in isic
    assert "train_synapse.py --dataset synapse" in synapse and "--load-ckpt-path vmamba-small" in synapse
    assert synapse.endswith("--epochs 1")
    assert (
        summary == f"--dry-run: would start 2 of 2 trainings, one after the other, and write {tmp_path / 'r/table.md'}"
    )
    caplog.clear()
    assert run("--dry-run", "--work-dir", tmp_path / "r") == 0 and not (tmp_path / "r").exists()
    assert caplog.messages == [f"--dry-run: nothing to train; would write {tmp_path / 'r/table.md'}"]


def test_other_values_are_another_run_and_execution_is_not(tmp_path):
    make_run(tmp_path / "done", [0.8, 0.6], seed=1, num_workers=3, scan_backend="torch", work_dir="elsewhere")
    ((_, state, command),) = experiments.plan("isic17-none", [1], str(tmp_path), ["--device", "cpu"])
    assert state == f"finished in {tmp_path / 'done'}" and command is None
    for flags in (["--epochs", "1"], ["--sch-args", "T_max", "300"]):
        ((_, state, command),) = experiments.plan("isic17-none", [1], str(tmp_path), flags)
        assert state == "start" and command[-len(flags) :] == flags
    (tmp_path / "done" / "metrics.json").unlink()
    ((_, state, command),) = experiments.plan("isic17-none", [1], str(tmp_path), [])
    assert state == "resume" and command[-2:] == ["--resume", str(tmp_path / "done")]


def test_table_has_every_row_of_the_paper_and_groups_of_equal_values(tmp_path):
    make_run(tmp_path / "a", [0.9] * 650, seed=1)
    make_run(tmp_path / "b", [0.8] * 650, seed=2)
    make_run(tmp_path / "c", [0.7] * 650, seed=1, epochs=3)
    make_run(tmp_path / "d", [0.6] * 650, seed=1, network="unet")
    make_run(tmp_path / "tested", [0.1] * 650, test_only="best.pth")
    make_run(tmp_path / "demo", [0.1] * 650, dataset="demo")
    shutil.copytree(tmp_path / "a", tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{")
    assert run("--work-dir", tmp_path) == 0
    full, short = row_of(tmp_path, "isic17-none")
    assert full[3:] == ["87.38", "85.00 ± 7.07", "1, 2", "published", "as published"]
    assert short[3:] == ["87.38", "70.00", "1", "published", "not comparable: epochs is 3, published 300"]
    assert row_of(tmp_path, "isic17-unet-none")[0][1:5] == ["", "30.00", "", "60.00"]
    assert row_of(tmp_path, "synapse-vmamba-s") == [
        ["synapse-vmamba-s", "81.08", "not run yet", "19.21", "not run yet", "", "", ""]
    ]
    assert all(row_of(tmp_path, row) for row in ROWS) and not row_of(tmp_path, "demo-none")


def test_table_remarks_a_run_that_lost_what_it_had_learned(tmp_path):
    lost = "lost what it had learned: from epoch 98 on"
    make_run(tmp_path / "a", [0.9] * 650, seed=1)
    make_run(tmp_path / "b", [0.8] * 650, seed=2, facts={"lost": lost})
    assert run("--work-dir", tmp_path) == 0
    assert row_of(tmp_path, "isic17-none")[0][-1] == f"as published; seed 2: {lost}"


def test_a_recipe_is_that_of_the_training_script(tmp_path):
    """`--recipe stable` means its values, also where runs are recognised, and single flags still win."""
    changes = RECIPES["stable"] | {"clip_grad_norm": 5.0}
    make_run(tmp_path / "published", [0.9] * 650, seed=1)
    flags = ["--recipe", "stable", "--clip-grad-norm", "5"]
    ((_, state, command),) = experiments.plan("isic17-none", [1], str(tmp_path), flags)
    assert state == "start" and command[-4:] == flags
    make_run(tmp_path / "stable", [0.9] * 650, seed=1, recipe="stable", **changes)
    ((_, state, _),) = experiments.plan("isic17-none", [1], str(tmp_path), flags)
    assert state == f"finished in {tmp_path / 'stable'}"
    assert run("--work-dir", tmp_path) == 0
    assert [row[6] for row in row_of(tmp_path, "isic17-none")] == ["published", "stable"]


def test_a_run_with_other_rows_of_the_optimizer_is_another_run(tmp_path):
    built = optimization_values(ISICConfig(), OPTIMIZERS, SCHEDULERS)
    folder = make_run(tmp_path / "done", [0.8, 0.6], seed=1, facts={"optimization": built})
    ((_, state, _),) = experiments.plan("isic17-none", [1], str(tmp_path), [])
    assert state == f"finished in {folder}"
    built["optimizer"]["weight_decay"] = 0.05  # as configs/optim.py had it when the run was started
    (folder / "facts.json").write_text(json.dumps({"optimization": built}))
    ((_, state, _),) = experiments.plan("isic17-none", [1], str(tmp_path), [])
    assert state == "start"


def test_runs_are_resumed_that_lack_later_fields_but_not_those_with_unknown_ones(tmp_path):
    folder = make_run(tmp_path / "old", [0.8, 0.6], seed=1)
    (folder / "metrics.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for field in ("recipe", "threshold"):
        config.pop(field)
    (folder / "config.json").write_text(json.dumps(config))
    ((_, state, _),) = experiments.plan("isic17-none", [1], str(tmp_path), [])
    assert state == "resume"
    (folder / "config.json").write_text(json.dumps(config | {"unknown": 1}))
    ((_, state, _),) = experiments.plan("isic17-none", [1], str(tmp_path), [])
    assert state == "start"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["isic19-none"], "found no experiment 'isic19-none', expected some of isic17-vmamba-s"),
        (["isic17-none", "--dataset", "isic18"], "expected none of --dataset"),
        (["isic17-none", "--seed", "3"], "expected none of --dataset, --network, --seed"),
        (["isic17-none", "--resume", "somewhere"], "--resume"),
        (["isic17-vmamba-s", "--load-ckpt-path", "vmamba_tiny.pth"], "whose name says small or tiny like the row"),
        (["--epochs", "1"], "found --epochs 1 without an experiment"),
    ],
)
def test_mistakes_are_said_before_anything_runs(arguments, message, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(experiments, "launch", lambda command: pytest.fail("was started"))
    assert run(*arguments, "--work-dir", tmp_path / "results") == 2
    assert message in caplog.text and not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_failed_seed_does_not_stop_the_others_a_refused_flag_does(tmp_path, monkeypatch, caplog):
    statuses, started = [1, 0], []

    def launch(command):
        started.append(command)
        return statuses[len(started) - 1]

    monkeypatch.setattr(experiments, "launch", launch)
    assert run("isic17-none", "--seeds", 1, 2, "--work-dir", tmp_path) == 1
    assert len(started) == 2 and "seed 1: the training ended with status 1" in caplog.text
    statuses[:] = [0, 0, 2]
    assert run("isic17-none", "--seeds", 1, 2, "--work-dir", tmp_path) == 2
    assert len(started) == 3
    with FileLock(tmp_path / ".experiments.lock"):
        assert run("isic17-none", "--seeds", 1, "--work-dir", tmp_path) == 2
    assert "another process of this command" in caplog.text and len(started) == 3


def test_a_training_that_was_stopped_stops_the_others(tmp_path, monkeypatch, caplog):
    started = []
    monkeypatch.setattr(experiments, "launch", lambda command: started.append(command) or 75)
    assert run("isic17-none", "--seeds", 1, 2, "--work-dir", tmp_path) == 130
    assert len(started) == 1 and "stopped" in caplog.text


def test_launch_returns_the_status_of_a_process_of_its_own():
    assert experiments.launch([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_a_stopped_command_lets_its_training_save_and_end(tmp_path):
    saves = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w'), sys.exit(75)))"
    training = f"{saves}; open('started', 'w'); time.sleep(60)"
    launch = f"experiments.launch([sys.executable, '-c', {training!r}])"
    command = f"import experiments, sys; experiments.stop_on_sigterm(); {launch}"
    path = {**os.environ, "PYTHONPATH": str(experiments.REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", command], cwd=tmp_path, env=path)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143 and (tmp_path / "saved").exists()


def test_initial_weights_come_from_the_files_names():
    def weights(path):
        return initial_weights({"load_ckpt_path": path})

    assert weights("none") == "none" and weights("None") == "none"
    assert weights("pretrained_weights/vssmsmall_dp03_ckpt_epoch_238.pth") == "vmamba-s"
    assert weights("tiny/vmamba_small_e238_ema.pth") == "vmamba-s"  # a folder says nothing
    assert weights("C:\\weights\\vssmtiny_dp01_ckpt_epoch_292.pth") == "vmamba-t"
    assert weights("mine.pth") is None


def test_published_values_alone_are_comparable():
    defaults = json.loads(json.dumps(vars(ISICConfig())))
    config = defaults | {"dataset": "isic18", "seed": 7, "num_workers": 4, "device": "cpu", "save_interval": 5}
    assert differences(config, defaults, 808) == []
    assert differences(config | {"lr": 0.1, "dims": [1, 2]}, defaults, 808) == [
        "dims is 1 2, published 96 192 384 768",
        "lr is 0.1, published 0.001",
    ]
    assert differences(config, defaults, 100) == ["tested on 100 images or volumes, published 808"]


def test_a_finished_run_on_prepared_volumes_is_recognised_by_what_its_folder_says(tmp_path):
    data = make_demo_synapse(tmp_path / "data", size=40, train=1, val=1, test=1, slices=4)
    intensities = {"kind": "percentiles", "low": 0.5, "high": 99.5}
    record = {"class_names": list("abcdefgh"), "intensities": intensities, "orientation": "stored"}
    (data / "preparation.json").write_text(json.dumps(record))
    flags, work = ["--data-path", str(data), *SMALL[:-1], "1"], str(tmp_path / "runs")
    arguments = experiments.arguments_of("acdc-none", 7, work, flags)
    train_synapse.main(resolve(SynapseConfig, arguments))
    (record,) = find_runs(work)
    assert record.row == "acdc-none" and record.class_names == list("abcdefgh")
    assert record.config["scaling"] == "percentiles" and record.config["recipe"] == "stable"
    assert experiments.plan("acdc-none", [7], work, flags) == [(7, f"finished in {record.folder}", None)]
