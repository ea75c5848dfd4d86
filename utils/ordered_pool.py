"""A thread pool that returns results in order and limits the memory of pending calls."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

MAX_PENDING_BYTES = 500_000_000


class OrderedPool:
    """Runs calls in threads and reports them in the order in which they were submitted.

    threads   number of calls that run at the same time
    finished  called in the submitting thread with the arguments and the finished Future of each call

    The block ends when all calls are reported. After an error or a signal in the block, calls that have not begun are
    cancelled, and of the others only those without an error are reported. A signal between a call and its record here
    leaves that call unreported."""

    def __init__(self, threads: int, finished: Callable[[tuple, Future], None]) -> None:
        self.pool, self.finished = ThreadPoolExecutor(threads, thread_name_prefix="results"), finished
        self.limit = 2 * threads
        self.pending = deque[tuple[tuple, int, Future]]()

    def submit(self, size: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Run function(*arguments), which hold about `size` bytes. Wait while too many calls or bytes are pending."""
        while self.pending and (self._is_full(size) or self.pending[0][2].done()):
            self._report_oldest()
        self.pending.append((arguments, size, self.pool.submit(function, *arguments)))

    def _is_full(self, size: int) -> bool:
        held = sum(other for _, other, _ in self.pending)
        return len(self.pending) >= self.limit or held + size > MAX_PENDING_BYTES

    def _report_oldest(self) -> None:
        """Wait for the oldest call and report it."""
        arguments, _, future = self.pending[0]
        future.exception()  # waits; a signal meanwhile leaves the call in the queue
        self.pending.popleft()
        self.finished(arguments, future)

    def __enter__(self) -> "OrderedPool":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            while error is None and self.pending:
                self._report_oldest()
        finally:
            self.pool.shutdown(cancel_futures=True)
            for arguments, _, future in self.pending:  # after an error
                if not future.cancelled() and future.exception() is None:
                    self.finished(arguments, future)
            self.pending.clear()
