"""Several processes under torchrun, each with its share of every batch. In a single process all of this does nothing.

torchrun --nproc_per_node=2 train.py
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F

from utils.errors import LostProcessError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
T = TypeVar("T")


def under_torchrun() -> bool:
    """Return whether torchrun started this process. Raise RuntimeError if only some of its variables are set."""
    found = [name for name in VARIABLES if name in os.environ]
    if found and len(found) < len(VARIABLES):
        raise RuntimeError(f"environment: found {', '.join(found)}, expected all of {', '.join(VARIABLES)} or none")
    return bool(found)


def rank() -> int:
    return int(os.environ["RANK"]) if under_torchrun() else 0


def local_rank() -> int:
    """Return this process's number on its machine, which is also the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if under_torchrun() else 0


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def is_main() -> bool:
    """Return whether this is the main process: it alone writes files and logs."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout: timedelta = timedelta(minutes=10)) -> Iterator[None]:
    """Connect the processes for the length of the block: NCCL on CUDA devices, gloo elsewhere.

    Raise LostProcessError if another process has ended, or does not answer within `timeout`."""
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
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        lost = f"process {rank()} of {world_size()} lost the connection to the others, one of which has ended"
        raise LostProcessError(f"{lost}: {str(error).splitlines()[0]}") from error
    finally:
        dist.destroy_process_group()


# ---- exchange; every process must make the same calls in the same order


def connected() -> bool:
    """Return whether this process is in a `process_group`."""
    return dist.is_available() and dist.is_initialized()


def all_gather(value: T) -> list[T]:
    """Return [value of rank 0, value of rank 1, ...] in each process; any picklable value."""
    if not connected():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: list[T]) -> list[T]:
    """Return the lists of all ranks, of any lengths, as one in the order of the ranks."""
    return [row for part in all_gather(rows) for row in part]


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part, shares):
        ctx.start, ctx.size = sum(shares[: rank()]), len(part)
        padded = F.pad(part.contiguous(), (0, 0) * (part.ndim - 1) + (0, max(shares) - len(part)))
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.start : ctx.start + ctx.size], None


def gather_batch(values: Any, shares: Sequence[int]) -> Any:
    """Return the whole batch, of all ranks, in place of this rank's part of it: of a tensor (b, ...), or of each tensor
    in a tuple or list.

    Every rank then computes the same loss of the whole batch, whatever function that is. Each rank's gradient is with
    respect to its own part; their sum is the gradient that one process would get (`all_reduce_gradients`).

    shares  the number of images of each rank"""
    if not connected():
        return values
    if isinstance(values, tuple | list):
        return type(values)(gather_batch(value, shares) for value in values)
    return _GatherBatch.apply(values, shares)


def all_reduce_gradients(model: torch.nn.Module) -> None:
    """Replace each gradient by its sum over the ranks, in one exchange, which works after a CUDA graph too."""
    if connected():
        gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
        together = torch.cat([gradient.flatten() for gradient in gradients.values()])
        dist.all_reduce(together)
        for parameter, part in zip(gradients, together.split([p.numel() for p in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)


@torch.no_grad()
def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite the tensors with those of the main process."""
    if connected():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def broadcast_object(value: T) -> T:
    """Return the main process's `value`, any picklable one, in each process."""
    if not connected():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


class AsyncScalar:
    """A number on its way from the device to the CPU.

    Reading it waits for what the device was given before, not for what it was given since: the CPU sees the loss while
    a GPU is busy with the backward pass, and has the next step ready in time."""

    def __init__(self, number: torch.Tensor):
        self.number = number.detach().to("cpu", non_blocking=number.is_cuda)
        self.event = torch.cuda.Event() if number.is_cuda else None
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(number.device))

    def item(self) -> int | float:
        if self.event is not None:
            self.event.synchronize()
        return self.number.item()


def all_reduce_max(number: int) -> AsyncScalar:
    """Start to compute the largest of the processes' integers."""
    on_gpus = connected() and dist.get_backend() == "nccl"
    value = torch.full((), number, device="cuda" if on_gpus else "cpu")  # made there: sending it would take a wait
    if connected():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return AsyncScalar(value)


def barrier() -> None:
    """Wait for the other processes."""
    if connected():
        dist.barrier()
