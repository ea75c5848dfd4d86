"""A process of several that hangs without ending: the others say so and end, instead of waiting for ever."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.ranks import environments
from tests.tiny import ROOT

CODE = """
    import os, signal, sys, torch
    from datetime import timedelta
    from utils import distributed
    from utils.errors import LostProcessError
    try:
        with distributed.process_group(torch.device("cpu"), timeout=timedelta(seconds=5)):
            distributed.barrier()
            print("met", flush=True)
            if distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            distributed.barrier()
    except LostProcessError as error:
        print("said:", error, flush=True)
"""


@pytest.mark.slow
def test_a_hung_process_is_waited_for_until_the_timeout_only(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(CODE))
    with environments() as variables:
        processes = [
            subprocess.Popen(
                [sys.executable, script],
                env=os.environ | {"PYTHONPATH": str(ROOT)} | variables[rank],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            said, _ = processes[0].communicate(timeout=120)
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)  # a stopped one too
                process.communicate()
    assert said.startswith("met\nsaid: process 0 of 2 ")
