"""Several processes under torchrun, each with its share of every batch. In a single process all of this does nothing.

torchrun --nproc_per_node=2 train.py
"""

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import LostProcessError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def under_torchrun():
    """Whether torchrun started this process. Raises RuntimeError if it set only some of its variables."""
    found = [name for name in VARIABLES if name in os.environ]
    if found and len(found) < len(VARIABLES):
        raise RuntimeError(f"environment: found {', '.join(found)}, expected all of {', '.join(VARIABLES)} or none")
    return bool(found)


def rank():
    return int(os.environ["RANK"]) if under_torchrun() else 0


def local_rank():
    """This process's number on its machine, which is also the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if under_torchrun() else 0


def world_size():
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def is_main():
    """Only the main process writes files and talks."""
    return rank() == 0


@contextmanager
def process_group(device, timeout=timedelta(minutes=10)):
    """Connects the processes for the length of the block: NCCL on CUDA devices, gloo elsewhere.

    A process whose partner is gone, or that waits longer than `timeout`, gives up with LostProcessError."""
    if not under_torchrun():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    try:
        yield
    except RuntimeError as error:
        # what gloo raises has no class of its own
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise LostProcessError(
                f"process {rank()} of {world_size()} lost the connection to the others, one of which has ended: "
                + str(error).splitlines()[0]
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def all_gather(value):
    """[value of rank 0, value of rank 1, ...] in each process; any picklable value."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def largest(number):
    """The largest of the processes' integers, in each of them."""
    if not dist.is_initialized():
        return number
    value = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.item()


def from_main(value):
    """The main process's `value`, in each process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier():
    """Waits for the other processes."""
    if dist.is_initialized():
        dist.barrier()


def gather_over_ranks(rows):
    """The lists of all ranks, of any lengths, as one in the order of the ranks; `rows` itself in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
