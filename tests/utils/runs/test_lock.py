import contextlib
import errno
import os
import re
import subprocess
import sys
import textwrap

import pytest

from configs.config_setting import ISICConfig
from utils.files import read_rows
from utils.runs.lock import HOLDER, LOCK, locked_folder
from utils.runs.run_folder import Run, start_run, started_run, stop_log

HOLD = """
    import sys, time
    from utils.runs.lock import locked_folder
    with locked_folder(sys.argv[1], "holding"):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in tmp_path."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_command_is_refused_and_told_by_whom(tmp_path, holder):
    with (
        pytest.raises(ValueError, match=rf"--output x.*\b{holder.pid}\b.*{tmp_path}"),
        locked_folder(tmp_path, "--output x"),
    ):
        pass


def test_a_dead_process_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked_folder(tmp_path, "--output x"):
        assert (tmp_path / HOLDER).read_text() == str(os.getpid())


def test_it_is_free_again_after_the_block(tmp_path):
    for _ in range(2):
        with locked_folder(tmp_path, "x"):
            pass


def test_links_in_a_folder_from_elsewhere_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    for name in (HOLDER, LOCK):
        folder = tmp_path / f"with{name}"
        folder.mkdir()
        (folder / name).symlink_to(secret)
        with contextlib.suppress(OSError), locked_folder(folder, "x"):
            pass
    assert secret.read_text() == "mine"


def test_a_file_system_without_locks_is_mentioned(tmp_path, monkeypatch, caplog):
    """Some clusters have such."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked_folder(tmp_path, "x"):
        assert str(tmp_path) in caplog.text


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".0123456789abcdef.tmp").write_bytes(b"half a file")
    (tmp_path / ".notes.tmp").write_text("the user's own")
    with locked_folder(tmp_path, "x"):
        assert {path.name for path in tmp_path.rglob("*.tmp")} == {".notes.tmp"}


def test_two_processes_may_write_one_file_at_a_time(tmp_path):
    """The file is one of both, whole; neither finds the other's half."""
    code = """
        import sys
        from utils.files import write_atomically
        for _ in range(200):
            write_atomically(sys.argv[1], sys.argv[2].encode() * 100_000)
    """
    commands = ([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "table.md"), name] for name in "ab")
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert (tmp_path / "table.md").read_text() in ("a" * 100_000, "b" * 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_a_run_that_is_in_training_can_not_be_resumed(tmp_path):
    """Two processes that write one folder would mix their epochs."""
    with started_run(ISICConfig(work_dir=str(tmp_path), dataset="demo")) as run:
        code = f"""
            from configs.config_setting import ISICConfig
            from utils.runs.run_folder import started_run
            try:
                with started_run(ISICConfig(resume={str(run.folder)!r})):
                    pass
            except ValueError as error:
                print(error)
        """
        other = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
    assert re.search(rf"--resume.*\b{os.getpid()}\b.*{run.folder}", other.stdout)
    stop_log()


def test_a_row_replaces_one_of_the_same_epoch(tmp_path):
    run = Run(tmp_path)
    for epoch, loss in ((1, 0.5), (2, 0.4), (2, 0.3)):
        run.add_metrics({"epoch": epoch, "train_loss": loss})
    assert [(row["epoch"], row["train_loss"]) for row in read_rows(run.metrics)] == [("1", "0.5"), ("2", "0.3")]


def test_a_run_that_failed_at_once_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no data"), started_run(ISICConfig(work_dir=str(tmp_path), dataset="demo")):
        raise ValueError("no data")
    assert list(tmp_path.iterdir()) == []
    folder = start_run(ISICConfig(work_dir=str(tmp_path), dataset="demo")).folder
    assert folder.is_dir()
    stop_log()
