"""Nothing is lost: training is killed, stopped, or its disk full, or its files damaged; resumed, it ends as if
undisturbed.

VMUNET_KILLS=30 kills each of the runs 30 times instead of a few."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic, make_demo_synapse
from tests.training_process import FLAGS, ROOT, differences, finish, kill, results, start, the_run, wait_for
from utils.runs.stopping import SAVED, Stopped, stopped_at_once
from utils.runs.training_state import TrainingState

KILLS = int(os.environ.get("VMUNET_KILLS", 2))
MODULES = {"isic": (train, ISICConfig), "synapse": (train_synapse, SynapseConfig)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_demo_isic(folder / "isic", size=40, train=13, val=4)
    make_demo_synapse(folder / "synapse", size=40, train=2, test=1, slices=6)
    return folder


@pytest.fixture(scope="module")
def flags(data):
    """Flags of the runs that all tests compare with: augmentation, stochastic depth, several batches an epoch."""
    epochs = 2 + 2 * KILLS
    flags = [*FLAGS, "--epochs", epochs, "--val-interval", 3]
    return {
        kind: [*flags, "--data-path", data / kind, "--checkpoint-interval", seconds]
        for kind, seconds in (("isic", 0), ("synapse", 1))  # after every epoch; after some
    }


def in_this_process(kind, *flags):
    """Runs the script to its end: no process is needed where none is disturbed."""
    module, config_class = MODULES[kind]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        module.main(resolve(config_class, [*map(str, flags)]))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    """The results of both runs without interruption."""
    found = {}
    for kind in MODULES:
        work_dir = tmp_path_factory.mktemp("undisturbed")
        in_this_process(kind, *flags[kind], "--work-dir", work_dir)
        found[kind] = results(the_run(work_dir))
    return found


def resume(script, work_dir, flags):
    folder = the_run(work_dir)
    return start(script, *(["--resume", folder] if folder else [*flags, "--work-dir", work_dir]))


def in_writing(work_dir):
    """(path, time) of the checkpoint files that are being written or renamed, or that a kill then left."""
    found = set()
    for pattern in ("*/checkpoints/.*.tmp", "*/checkpoints/latest.next.pth"):
        for path in work_dir.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # it has been renamed
                found.add((path, path.stat().st_mtime_ns))
    return found


def wait_for_training(process, work_dir):
    """Waits until a process that was just started is about to train; False if it ends before."""
    old = set(work_dir.glob("*/tensorboard/*"))
    return wait_for(lambda: set(work_dir.glob("*/tensorboard/*")) - old, process)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_random_moments_a_run_ends_as_if_undisturbed(flags, undisturbed, tmp_path, caplog):
    """A third of the kills comes while a file is written, a third during training, a third at any time."""
    script, moments, killed = "train.py", random.Random("isic"), []
    while len(killed) < KILLS:
        old = in_writing(tmp_path)
        process = resume(script, tmp_path, [*flags["isic"], "--num-workers", 2])
        if len(killed) % 3 == 0:  # while a checkpoint is written
            in_time = wait_for(lambda old=old: in_writing(tmp_path) - old, process)
            time.sleep(moments.choice((0, moments.uniform(0, 0.02))))
        elif len(killed) % 3 == 1:  # while it trains
            in_time = wait_for_training(process, tmp_path)
            time.sleep(moments.uniform(0, 1))
        else:  # at any time, often before it trains
            end = time.monotonic() + moments.uniform(0.5, 6)
            in_time = wait_for(lambda end=end: time.monotonic() > end, process)
        if not in_time:
            assert process.returncode == 0, finish(process)[1]
            break
        kill(process)
        killed.append(sorted(path.name for path, _ in in_writing(tmp_path) - old))
    folder = the_run(tmp_path)
    in_this_process("isic", *(["--resume", folder] if folder else [*flags["isic"], "--work-dir", tmp_path]))
    print(f"{len(killed)} kills, {sum(map(bool, killed))} while files were written: {killed}")
    assert len(killed) == KILLS
    assert "Traceback" not in caplog.text
    assert differences(results(the_run(tmp_path)), undisturbed["isic"]) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # resumed between an epoch and its step
def test_a_signal_finishes_the_batch_saves_and_says_so(flags, undisturbed, tmp_path, caplog):
    """Slurm and terminals send signals to every process of the run; the workers must ignore them."""
    moments = random.Random(1)
    options = [*flags["isic"], "--num-workers", 2, "--work-dir", tmp_path]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start("train.py", *options, start_new_session=True)
        assert wait_for_training(process, tmp_path)
        time.sleep(moments.uniform(0, 0.5))
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)  # torchrun repeats a terminal's Ctrl-C
        status, said = finish(process)
        assert status == SAVED, said
        assert re.search(rf"{number.name}.*--resume", said) and "Traceback" not in said
        options = ["--resume", the_run(tmp_path)]
    in_this_process("isic", *options)
    assert "Traceback" not in caplog.text
    assert differences(results(the_run(tmp_path)), undisturbed["isic"]) == []


def test_before_and_after_training_a_signal_ends_at_once(flags, tmp_path):
    process = start("train.py", *flags["isic"], "--work-dir", tmp_path)
    assert wait_for(lambda: the_run(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    assert status == 128 + signal.SIGTERM and "SIGTERM" in said and "Traceback" not in said
    assert "--resume" not in said  # there is nothing to continue from


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_library_can_neither_rename_nor_swallow_a_signal(swallowed):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped) as stopped, stopped_at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            if not swallowed:
                raise AttributeError("a lock that was being made") from None
    assert stopped.value.status == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_command_may_have_its_own_way_to_stop():
    """Like predict.py, which reports what it has done."""
    with pytest.raises(SystemExit, match="130"), stopped_at_once():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


@pytest.mark.slow
def test_of_two_processes_the_survivor_ends_soon_and_says_why(flags, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    endless = [*flags["isic"], "--work-dir", tmp_path, "--epochs", 1000]
    environments = (both | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01")
    processes = [start("train.py", *endless, environment=environment) for environment in environments]
    assert wait_for(lambda: list(tmp_path.glob("*/checkpoints/latest.pth")), processes[0])
    kill(processes[1])
    start_of_waiting = time.monotonic()
    status, said = finish(processes[0])
    assert time.monotonic() - start_of_waiting < 60
    assert status == 1 and "process 0 of 2" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_and_the_one_before_used(flags, undisturbed, tmp_path, monkeypatch, caplog):
    finish_epoch = TrainingState.finish_epoch

    def stop_after_three(training, *args):
        finish_epoch(training, *args)
        if training.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "finish_epoch", stop_after_three)
        in_this_process("synapse", *flags["synapse"], "--work-dir", tmp_path, "--checkpoint-interval", 0)
    latest = the_run(tmp_path) / "checkpoints" / "latest.pth"
    assert latest.with_name("latest.previous.pth").exists()
    os.truncate(latest, latest.stat().st_size // 2)
    in_this_process("synapse", "--resume", the_run(tmp_path))
    assert f"{latest}: " in caplog.text and re.search(r"latest\.previous\.pth.* \d", caplog.text)
    assert differences(results(the_run(tmp_path)), undisturbed["synapse"]) == []


FULL_DISK = """
mount -t tmpfs -o size=5m none "$0" || exit 99
"$@"; status=$?
cp -r "$0"/. "$0".copy && exit $status
"""


@pytest.mark.slow
def test_a_full_disk_is_named_and_costs_nothing_saved_before(flags, undisturbed, tmp_path):
    """On a disk of 5 MB, too small for the third checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "train.py", *map(str, flags["isic"]), "--work-dir", disk]
    command = ["unshare", "-rm", "sh", "-c", FULL_DISK, disk, *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, timeout=500, encoding="utf-8", capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode in (1, 99) and "train" not in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    assert done.returncode == 2 and f"error: {disk}" in done.stderr and "Traceback" not in done.stderr, done.stderr
    copy = tmp_path / "disk.copy"
    assert (the_run(copy) / "checkpoints" / "latest.pth").exists()
    in_this_process("isic", "--resume", the_run(copy))
    assert differences(results(the_run(copy)), undisturbed["isic"]) == []
