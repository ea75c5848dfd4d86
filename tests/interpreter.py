"""Runs a test file as a program in which Triton's kernels are interpreted; it must be so from the import on."""

import json
import os
import subprocess
import sys


def run_interpreted(file):
    """What the program prints, read as JSON."""
    run = subprocess.run(
        [sys.executable, file], capture_output=True, encoding="utf-8", timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)
