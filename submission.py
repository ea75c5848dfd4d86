"""Trainings as jobs of Slurm, or of this machine, through submitit.

A job that is stopped before its end (by Slurm's time limit, by preemption, or because its training was stopped) goes
back into the queue and resumes its run. submitit keeps a job's log and pickle in WORK_DIR/jobs; jobs.json there says
which job has which training.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.files import read_json, write_atomically
from utils.optional import optional

# exit statuses of a training that somebody stopped; the last two: while it was importing
STOPPED = (75, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
CLUSTERS = ("slurm", "local")
REQUEUES = 1000  # after a time limit; submitit's default is 3
NEEDED_BY = "--submit"


class Training:
    """What a job does: the command that `find_command` returns, None if nothing is left to do.

    submitit pickles it, and calls `checkpoint` from the handler of the signal that announces the end of a job."""

    process: subprocess.Popen | None = None

    def __init__(self, find_command: Callable[[], list[str] | None]):
        self.find_command = find_command

    def __call__(self) -> None:
        command = self.find_command()
        if command is None:
            return
        self.process = subprocess.Popen(command)
        status = self.process.wait()
        if status in STOPPED:  # as if the job had got that signal
            environment = optional("submitit", NEEDED_BY).JobEnvironment
            signal.raise_signal(signal.Signals[f"SIG{environment.USR_SIG}"])
        if status:
            raise RuntimeError(f"the training ended with status {status}")

    def checkpoint(self) -> Any:
        """Let the training save its state, and return the job that continues it."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            with contextlib.suppress(ChildProcessError):  # it has ended already
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # `wait` holds a lock: it is interrupted
        return optional("submitit.helpers", NEEDED_BY).DelayedSubmission(Training(self.find_command))


class Jobs:
    """The jobs of the trainings in `work_dir`. A training is known by its command line, in any text."""

    def __init__(self, work_dir: str | Path):
        self.folder = Path(work_dir, "jobs")
        self.path = self.folder / "jobs.json"
        self.known = read_json(self.path) if self.path.exists() else {}

    def state(self, training: str) -> str | None:
        """Return the job of a training and its state if it is queued or running, else None."""
        if training not in self.known:
            return None
        cluster, number = self.known[training]
        submitit = optional("submitit", NEEDED_BY)
        if cluster == "local":
            job = submitit.LocalJob(self.folder, number)  # which knows only the processes of this program
            return f"job {number} is running" if not job.paths.result_pickle.exists() and _exists(int(number)) else None
        job = submitit.SlurmJob(self.folder, number)
        return None if job.done(force_check=True) else f"job {number} is {job.state}"

    def submit(self, training: str, find_command: Callable[[], list[str] | None], executor: Any) -> str:
        """Submit a training and return a line with its job and log."""
        try:
            job = executor.submit(Training(find_command))
        except RuntimeError as error:  # of sbatch
            raise ValueError(f"{NEEDED_BY} {executor.cluster}: {error}") from error
        self.known[training] = [executor.cluster, job.job_id]
        write_atomically(self.path, json.dumps(self.known, indent=2).encode() + b"\n")
        return f"job {job.job_id}, log {job.paths.stderr}"

    def executor(self, cluster: str, parameters: Sequence[str]) -> Any:
        """Return submitit's executor with `parameters` such as timeout_min=720. Raises ValueError for wrong ones."""
        values: dict[str, int | str] = {}
        for text in parameters:
            name, sign, value = text.partition("=")
            if not sign:
                raise ValueError(f"--submit-args: found {text!r}, expected KEY=VALUE such as timeout_min=720")
            values[name] = int(value) if value.isdecimal() else value
        if "timeout_min" not in values:
            raise ValueError("--submit-args: found no timeout_min, expected the minutes of a job, as timeout_min=720")
        try:
            limit = {f"{cluster}_max_num_timeout": REQUEUES}
            executor = optional("submitit", NEEDED_BY).AutoExecutor(self.folder, cluster=cluster, **limit)
            executor.update_parameters(**values)
        except (AssertionError, NameError, RuntimeError) as error:  # what submitit raises for them
            raise ValueError(f"{NEEDED_BY} {cluster} {' '.join(parameters)}: {error}") from error
        return executor


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # PermissionError: it is not ours
        return False
    return True
