"""Read inputs in threads while others are predicted."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from inference.inputs import Input
from utils.machine.device import available_cpus

LARGEST_PICTURES = 500_000_000  # bytes of images that are read ahead, and of those in one batch

Read = Callable[[Input], tuple[Any, Any]]


def read_ahead(
    inputs: Iterable[Input], read: Read, count: int, device: torch.device
) -> Iterator[tuple[Input, Callable[[], tuple[Any, Any]]]]:
    """Yield pairs (input, function that returns `read(input)` or raises its error), in order.

    Up to `count` images are read ahead. Volumes are large: they are read when the function is called."""
    remaining, waiting = iter(inputs), deque[tuple[Input, Future | None]]()
    threads, beside_gpu = torch.get_num_threads(), device.type != "cpu"
    # beside a GPU each thread of the pool uses one PyTorch thread, as more would compete
    initializer = functools.partial(torch.set_num_threads, 1) if beside_gpu else None
    try:
        with ThreadPoolExecutor(min(8, available_cpus()), initializer=initializer) as pool:
            while True:
                while len(waiting) < count and _bytes_read(waiting) < LARGEST_PICTURES:
                    item = next(remaining, None)
                    if item is None:
                        break
                    waiting.append((item, None if item.is_volume else pool.submit(read, item)))
                if not waiting:
                    return
                item, future = waiting.popleft()
                yield item, functools.partial(read, item) if future is None else future.result
    finally:
        if beside_gpu:
            torch.set_num_threads(threads)  # new threads inherit the value that was set last


def _bytes_read(waiting: Iterable[tuple[Input, Future | None]]) -> int:
    """Count the bytes of the pictures that have been read."""
    done = (future for _, future in waiting if future is not None and future.done())
    return sum(future.result()[0].pixels.nbytes for future in done if future.exception() is None)
