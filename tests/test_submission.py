"""Rows of the paper's tables as jobs of submitit, on this machine."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import experiments
from datasets.demo import make_demo_isic
from report.run_index import find_runs
from submission import Jobs
from tests.test_experiments import SMALL, row_of, run
from tests.tiny import ROOT
from utils.files import read_rows

WORK = "--submit", "local", "--submit-args", "timeout_min=10"


# Notes its parent. Started the first time it is stopped by itself, the second time it waits for SIGTERM.
TRAINING = """
import os, pathlib, signal, sys, time
starts = pathlib.Path(sys.argv[1])
number = len(starts.read_text().split()) if starts.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: (starts.with_suffix(".saved").touch(), sys.exit(75)))
with starts.open("a") as file:
    print(os.getppid(), file=file)
if number == 0:
    sys.exit(75)
if number == 1:
    time.sleep(60)
"""


def wait_until(condition, log_folder):
    end = time.monotonic() + 240
    while not condition():
        if time.monotonic() > end:
            pytest.fail("\n".join(path.read_text() for path in log_folder.glob("*_log.*")))
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="submitit needs signals of Unix")
@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # submitit leaves the job to itself
def test_a_job_goes_on_after_its_training_or_itself_was_stopped(tmp_path):
    pytest.importorskip("submitit")
    command = [sys.executable, "-c", TRAINING, str(tmp_path / "starts")]
    jobs = Jobs(tmp_path)
    line = jobs.submit("a training", functools.partial(list, command), jobs.executor("local", WORK[3:]))
    wait_until(lambda: len(starts(tmp_path)) == 2, jobs.folder)  # the first training has ended with status 75
    assert re.fullmatch(r"job \d+ is running", Jobs(tmp_path).state("a training"))
    os.kill(int(starts(tmp_path)[1]), signal.SIGUSR2)  # to the job, as Slurm does before the time limit
    wait_until(lambda: jobs.state("a training") is None, jobs.folder)
    assert len(starts(tmp_path)) == 3 and (tmp_path / "starts.saved").exists()
    assert "completed successfully" in Path(line.split("log ")[1]).with_suffix(".out").read_text()


def starts(folder):
    """The parents of the started trainings."""
    return (folder / "starts").read_text().split() if (folder / "starts").exists() else []


@pytest.mark.slow
def test_a_stopped_run_is_resumed_by_its_job_and_not_submitted_twice(tmp_path, monkeypatch, caplog):
    pytest.importorskip("submitit")
    data, work = make_demo_isic(tmp_path / "data", size=40, train=6, val=3, test=1), tmp_path / "results"
    flags = [*SMALL[:-1], "8", "--checkpoint-interval", "0"]
    command = ["isic17-none", "--seeds", "1", "--work-dir", str(work), "--data-path", str(data), *flags]
    with open(tmp_path / "said", "w") as said:  # no pipe, which the job would keep open
        submit, environment = (
            [sys.executable, "-m", "experiments", *command, *WORK],
            os.environ | {"OMP_NUM_THREADS": "1"},
        )
        subprocess.run(submit, cwd=ROOT, stdout=said, stderr=said, env=environment, check=True)
    assert (tmp_path / "said").read_text().count("submitted: job ") == 1
    submitted = (work / "jobs/jobs.json").read_text()
    wait_until(lambda: list(work.glob("*/checkpoints/latest.pth")), work / "jobs")
    (run_folder,) = (path.parent for path in work.glob("*/config.json"))
    os.kill(int((run_folder / ".lock.process").read_text()), signal.SIGTERM)
    monkeypatch.setattr(experiments, "launch", lambda command: pytest.fail("was started"))
    for again in (WORK, ()):
        caplog.clear()
        assert run(*command, *again) == 0 and " is running" in caplog.text
    assert (work / "jobs/jobs.json").read_text() == submitted
    (training,) = json.loads(submitted)
    wait_until(lambda: Jobs(work).state(training) is None, work / "jobs")
    assert run("--work-dir", work) == 0 and row_of(work, "isic17-none")[0][5] == "1"
    (record,) = find_runs(work)  # no other was started
    assert [row["epoch"] for row in read_rows(record.folder / "metrics.csv")] == [str(n) for n in range(1, 9)]
    assert "resuming" in (record.folder / "log.txt").read_text(encoding="utf-8")


def test_a_job_that_failed_is_submitted_again(tmp_path, monkeypatch, caplog):
    pytest.importorskip("submitit")
    (tmp_path / "jobs").mkdir()
    number = str(os.getpid())  # of a process that runs
    row = ["isic17-none", "--seeds", 7, "--work-dir", tmp_path]
    (tmp_path / "jobs/jobs.json").write_text(json.dumps({"isic17-none --seeds 7": ["local", number]}))
    monkeypatch.setattr(experiments, "launch", lambda command: pytest.fail("was started"))
    assert run(*row) == 0 and f"seed 7: job {number} is running" in caplog.text
    (tmp_path / f"jobs/{number}_0_result.pkl").touch()  # it has ended, and there is no finished run
    caplog.clear()
    assert run(*row, *WORK, "--dry-run") == 0 and "would start 1 of 1 trainings, as jobs" in caplog.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--submit-args", "timeout_min=1"], "found no --submit"),
        (["--submit", "local"], "found no timeout_min"),
        (["--submit", "local", "--submit-args", "timeout_min"], "'timeout_min', expected KEY=VALUE"),
        (["--submit", "local", "--submit-args", "timeout_min=1", "gpu=1"], "'gpu' need to be prefixed"),
        (["--submit", "slurm", "--submit-args", "timeout_min=1"], 'Could not detect "srun"'),
    ],
)
def test_wrong_parameters_are_said_before_anything_is_submitted(arguments, message, tmp_path, monkeypatch, caplog):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm
    assert run("isic17-none", "--work-dir", tmp_path, *arguments) == 2
    assert message in caplog.text and not (tmp_path / "jobs/jobs.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm runs on Unix")
def test_slurm_gets_the_parameters_and_is_asked_for_the_state(tmp_path, monkeypatch):
    """Beside stand-ins for Slurm's programs."""
    pytest.importorskip("submitit")
    programs = {"srun": "", "sbatch": "echo Submitted batch job 17", "sacct": f"cat {tmp_path}/state"}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = Jobs(tmp_path)
    executor = jobs.executor("slurm", ["timeout_min=720", "slurm_partition=gpu", "gpus_per_node=1"])
    assert jobs.submit("a training", functools.partial(list, ["true"]), executor).startswith("job 17, log ")
    script = (tmp_path / "jobs/17_submission.sh").read_text()
    assert all(f"#SBATCH --{line}\n" in script for line in ("time=720", "partition=gpu", "gpus-per-node=1"))
    for state in ("PENDING", "RUNNING", "PREEMPTED", "FAILED"):
        (tmp_path / "state").write_text(f"JobID|State|NodeList\n17|{state}|n1\n")
        assert Jobs(tmp_path).state("a training") == (f"job 17 is {state}" if state != "FAILED" else None)
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2; exit 1\n")
    with pytest.raises(ValueError, match="--submit slurm: .*invalid partition"):
        jobs.submit("another", functools.partial(list, ["true"]), executor)
