"""Several processes under torchrun, each with its share of every batch. In a single process all of this does nothing.

torchrun --nproc_per_node=2 train.py
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
import torch.distributed as dist

from utils.arriving import Arriving
from utils.errors import LostProcessError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
T = TypeVar("T")


def under_torchrun() -> bool:
    """Whether torchrun started this process. Raises RuntimeError if it set only some of its variables."""
    found = [name for name in VARIABLES if name in os.environ]
    if found and len(found) < len(VARIABLES):
        raise RuntimeError(f"environment: found {', '.join(found)}, expected all of {', '.join(VARIABLES)} or none")
    return bool(found)


def rank() -> int:
    return int(os.environ["RANK"]) if under_torchrun() else 0


def local_rank() -> int:
    """This process's number on its machine, which is also the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if under_torchrun() else 0


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def is_main() -> bool:
    """Whether this is the main process: it alone writes files and logs."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout: timedelta = timedelta(minutes=10)) -> Iterator[None]:
    """Connects the processes for the length of the block: NCCL on CUDA devices, gloo elsewhere.

    Raises LostProcessError if another process has ended, or does not answer within `timeout`."""
    if not under_torchrun():
        yield
        return
    # Its default arguments are the group of the time at which it is imported, as PyTorch's optimizers do. Imported in
    # the block it would keep the group, and gloo's threads, which then abort the program as Python ends under them.
    import_module("torch.distributed.nn.functional")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    try:
        yield
        # All leave together, long after their last exchange of values: a thread of gloo lets go of its tensors, for
        # which it needs Python's lock, while the main thread holds that lock and waits for it to end.
        barrier()
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


# ---- exchange; every process must make the same calls in the same order


def connected() -> bool:
    """Whether this process is in a `process_group`, with others to exchange values with."""
    return dist.is_available() and dist.is_initialized()


def all_gather(value: T) -> list[T]:
    """[value of rank 0, value of rank 1, ...] in each process; any picklable value."""
    if not connected():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_over_ranks(rows: list[T]) -> list[T]:
    """The lists of all ranks, of any lengths, as one in the order of the ranks."""
    return [row for part in all_gather(rows) for row in part]


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, grad):
        return grad  # of the same loss in every rank, with respect to the rank's own part of the sum


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sums of the ranks' `values` (any shape), in float64, for a loss whose gradients are added by `add_gradients`."""
    return _SumOverRanks.apply(values.double()).to(values.dtype) if connected() else values


def add_gradients(model: torch.nn.Module) -> None:
    """Replaces each gradient by the sum over the ranks, in one exchange, which works after a CUDA graph too."""
    if connected():
        gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
        together = torch.cat([gradient.flatten() for gradient in gradients.values()])
        dist.all_reduce(together)
        for parameter, part in zip(gradients, together.split([p.numel() for p in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)


@torch.no_grad()
def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrites the tensors with those of the main process."""
    if connected():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def largest(number: int) -> Arriving:
    """The largest of the processes' integers, on its way to each of them."""
    on_gpus = connected() and dist.get_backend() == "nccl"
    value = torch.full((), number, device="cuda" if on_gpus else "cpu")  # made there: sending it would take a wait
    if connected():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return Arriving(value)


def from_main(value: T) -> T:
    """The main process's `value`, in each process."""
    if not connected():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Waits for the other processes."""
    if connected():
        dist.barrier()
