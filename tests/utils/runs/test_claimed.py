import os
import subprocess
import sys
import textwrap

import pytest

from configs.config_setting import ISICConfig
from utils.files import read_rows
from utils.runs.claimed import HOLDER, claimed
from utils.runs.run import Run, start_run, started_run, stop_log

HOLD = """
    import sys, time
    from utils.runs.claimed import claimed
    with claimed(sys.argv[1], "holding"):
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
        pytest.raises(ValueError, match=rf"--output x: found process {holder.pid} working in"),
        claimed(tmp_path, "--output x"),
    ):
        pass


def test_a_dead_process_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with claimed(tmp_path, "--output x"):
        assert (tmp_path / HOLDER).read_text() == str(os.getpid())


def test_it_is_free_again_after_the_block(tmp_path):
    for _ in range(2):
        with claimed(tmp_path, "x"):
            pass


def test_a_run_that_is_in_training_can_not_be_resumed(tmp_path):
    """Two processes that write one folder would mix their epochs."""
    with started_run(ISICConfig(work_dir=str(tmp_path), dataset="demo")) as run:
        code = f"""
            from configs.config_setting import ISICConfig
            from utils.runs.run import started_run
            try:
                with started_run(ISICConfig(resume={str(run.folder)!r})):
                    pass
            except ValueError as error:
                print(error)
        """
        other = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
    assert f"found process {os.getpid()} working in {run.folder}, expected to be alone" in other.stdout
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
