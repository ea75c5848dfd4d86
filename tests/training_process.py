"""Training runs as separate processes, small enough to be killed and resumed many times in test_kill.py."""

import csv
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tests.tiny import ROOT, TRAINING_FLAGS
from utils.runs.batches import USAGE

FLAGS = ["--dataset", "demo", *TRAINING_FLAGS, "--print-interval", "1"]


def start(script, *flags, **options):
    """The script as a process, its messages in a pipe."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("environment", {})
    command, output = [sys.executable, script, *map(str, flags)], dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return subprocess.Popen(command, cwd=ROOT, env=environment, encoding="utf-8", **output, **options)


def finish(process, timeout=500):
    """(exit status, what it said)."""
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()  # if it is still there
    return process.returncode, said


def the_run(work_dir):
    """The one run folder that can be resumed; None if the process was killed before it had one."""
    folders = [path.parent for path in Path(work_dir).glob("*/config.json")]
    return folders[0] if folders else None


def wait_for(condition, process, timeout=300):
    """Waits until `condition()` is true; False if the process ended before."""
    end = time.monotonic() + timeout
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.0005)
    return False


def kill(process):
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


# ---- what a run left behind


def results(folder):
    """Everything that must not depend on interruptions: {name: content}."""
    tables = [*folder.glob("test_*.csv"), folder / "metrics.json"]
    found = {path.name: path.read_bytes() for path in tables}
    with open(folder / "metrics.csv", newline="") as file:
        found["metrics.csv"] = [
            {name: value for name, value in row.items() if name not in USAGE} for row in csv.DictReader(file)
        ]
    found["losses"] = losses(folder / "tensorboard")
    found["checkpoints"] = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.suffix != ".tmp")
    for name in ("latest.pth", "best.pth"):
        found[name] = torch.load(folder / "checkpoints" / name, weights_only=True)
        del found[name]["config"]  # its number of workers, and where it lies
    return found


def differences(found, expected):
    """The names of the entries that are not equal bit for bit."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return ["names"]
        return [f"{name}/{d}" for name in expected for d in differences(found[name], expected[name])]
    if isinstance(expected, torch.Tensor):
        same = found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, list | tuple):
        same = len(found) == len(expected) and not any(map(differences, found, expected))
    else:
        same = found == expected
    return [] if same else [""]


def losses(folder):
    """{step: loss of the batch} as TensorBoard shows it: a restart at a step hides what was written from there on."""
    curve = {}
    for path in sorted(folder.iterdir()):
        content, position = path.read_bytes(), 0
        while position + 12 <= len(content):  # each record: length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", content, position)
            if position + 16 + length > len(content):
                break  # cut off by a kill
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length
            if event.session_log.status == SessionLog.START:
                curve = {step: loss for step, loss in curve.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "step/loss":
                    curve[event.step] = value.simple_value
    return curve
