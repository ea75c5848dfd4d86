"""How a command ends: with one sentence and an exit status for what a user can mend, with a traceback for the rest."""

import signal
import sys
from dataclasses import dataclass

import pytest

from utils.errors import CheckpointError, LostProcessError, NonFiniteLossError
from utils.runs.command_line import run
from utils.runs.stopping import Stopped


@dataclass(kw_only=True)
class Options:
    rate: float = 0.1
    debug: bool = False


@pytest.fixture
def command(monkeypatch, caplog):
    """Runs a main function that raises an error, under flags: (exit status, what it logged)."""

    def end(error, *flags):
        def main(config):
            assert config == Options(debug="--debug" in flags)
            if error is not None:
                raise error

        monkeypatch.setattr(sys, "argv", ["command", *flags])
        caplog.clear()
        try:
            run(main, Options)
        except SystemExit as exit:
            return exit.code, caplog.text
        return 0, caplog.text

    return end


OUT_OF_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
WORKER = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly\nmore")


@pytest.mark.parametrize(
    "error, status, words",
    [
        (None, 0, []),
        (ValueError("--rate: found 3"), 2, ["--rate: found 3"]),
        (CheckpointError("best.pth: damaged"), 2, ["best.pth: damaged"]),
        (FileNotFoundError("nowhere.pth"), 2, ["nowhere.pth"]),
        (MemoryError("9 bytes"), 2, ["9 bytes", "--batch-size", "--precision"]),
        (OUT_OF_MEMORY, 2, ["9 bytes", "--batch-size", "--use-checkpoint"]),
        (WORKER, 2, ["12", "--num-workers"]),
        (ValueError("Caught ValueError in DataLoader worker\nTraceback\nValueError: a.png"), 2, ["error: a.png\n"]),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), 2, ["--num-workers", "--shm-size"]),
        (NonFiniteLossError("nan at batch 3"), 1, ["nan at batch 3", "--lr", "--clip-grad-norm"]),
        (LostProcessError("process 1 of 2"), 1, ["process 1 of 2"]),
        (Stopped(signal.SIGTERM), 128 + signal.SIGTERM, ["SIGTERM"]),
        (Stopped(signal.SIGINT, saved=True), 75, ["SIGINT", "--resume"]),
    ],
)
def test_the_exit_status_tells_what_has_ended_a_command(error, status, words, command):
    found, text = command(error)
    assert found == status and all(word in text for word in words)
    assert "Traceback" not in text and text.count("\n") == (status != 0)


def test_debug_and_errors_of_the_program_itself_end_with_their_traceback(command):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        command(FileNotFoundError("nowhere"), "--debug")
    with pytest.raises(RuntimeError, match="shapes"):
        command(RuntimeError("shapes"))
