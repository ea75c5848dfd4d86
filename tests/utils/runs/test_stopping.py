"""When training heeds a signal."""

import signal

import pytest
import torch

from utils import distributed
from utils.distributed import AsyncScalar
from utils.runs.stopping import Stopped, StopRequest


def test_a_single_process_stops_after_the_step_in_which_the_signal_came(capfd):
    stop = StopRequest()
    stop.check_while_computing()
    stop.remember(signal.SIGTERM, None)
    with pytest.raises(Stopped, match="SIGTERM"):
        stop.check_while_computing()
    assert capfd.readouterr().err.startswith("\nSIGTERM: ")


def test_several_processes_stop_after_the_same_step_the_one_that_follows(monkeypatch):
    """Two processes in one, whose exchange is a maximum over both: the second gets the signal in step 2."""
    stops, asked = [StopRequest(), StopRequest()], []
    monkeypatch.setattr(distributed, "connected", lambda: True)
    monkeypatch.setattr(
        distributed, "all_reduce_max", lambda number: AsyncScalar(torch.tensor(max(s.number for s in stops)))
    )
    for step in (1, 2, 3):
        if step == 2:
            stops[1].remember(signal.SIGTERM, None)
        for rank, stop in enumerate(stops):
            try:
                stop.check_while_computing()
            except Stopped:
                asked.append((step, rank))
    assert asked == [(3, 0), (3, 1)]
