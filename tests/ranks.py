"""Several connected processes, without the seconds that torchrun and the imports of each process take."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch.distributed import TCPStore

from utils import distributed

START = "forkserver"  # the server imports these once, and every process is a copy of it
multiprocessing.set_forkserver_preload(["train", "train_synapse", "torch._dynamo", "report.run_page"])


@contextmanager
def environments() -> Iterator[list[dict[str, str]]]:
    """The variables that torchrun would set for rank 0 and for rank 1; they can meet for the length of the block."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a port that no other program has
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    yield [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def run_in_two_processes(function, *args) -> None:
    """Runs function(rank, *args) in each of two processes, connected as in a training. Raises what a process raises."""
    with environments() as variables:
        mp.start_processes(_connected, (variables, function, args), nprocs=2, start_method=START)


def _connected(rank, variables, function, args):
    os.environ.update(variables[rank])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        function(rank, *args)
    assert_no_thread_of_gloo()


def run_command(processes, function, *args) -> None:
    """Runs function(*args), which connects the processes itself as commands do, in one process or in each of two."""
    with environments() as variables:
        variables = variables if processes == 2 else [{}]
        mp.start_processes(_command, (variables, function, args), nprocs=processes, start_method=START)


def _command(rank, variables, function, args):
    os.environ.update(variables[rank])
    torch.set_num_threads(1)
    function(*args)


def assert_no_thread_of_gloo() -> None:
    """Threads of gloo that outlive the process group abort the program, now and then, as Python ends. Only Linux tells
    the names of threads."""
    names = []
    for thread in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # of a thread that has ended since
            names.append(thread.read_text().strip())
    assert not [name for name in names if "gloo" in name], names
