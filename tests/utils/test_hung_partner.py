"""A process of several that hangs without ending: the others say so and end, instead of waiting for ever."""

import multiprocessing
import os
import signal
from datetime import timedelta

import pytest
import torch

from tests.ranks import START, environments
from utils import distributed
from utils.errors import LostProcessError


def hang(variables, connection):
    os.environ.update(variables)
    try:
        with distributed.process_group(torch.device("cpu"), timeout=timedelta(seconds=5)):
            distributed.barrier()
            connection.send("met")
            if distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            distributed.barrier()
    except LostProcessError as error:
        connection.send(str(error))


@pytest.mark.slow
def test_a_hung_process_is_waited_for_until_the_timeout_only():
    context = multiprocessing.get_context(START)
    with environments() as variables:
        pipes = [context.Pipe() for _ in variables]
        both = zip(variables, pipes, strict=True)
        processes = [context.Process(target=hang, args=(mine, pipe[1]), daemon=True) for mine, pipe in both]
        for process in processes:
            process.start()
        try:
            said = [pipes[0][0].recv() for _ in range(2) if pipes[0][0].poll(120)]
            processes[0].join(60)
            assert processes[0].exitcode == 0
        finally:
            for process in processes:
                process.kill()  # a stopped one too
                process.join()
    assert said[0] == "met" and said[1].startswith("process 0 of 2 ")
