"""Work that goes on in threads beside the main one: drawing, compressing and writing results."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

LARGEST_WAITING = 500_000_000  # bytes of what waits to be worked on


class InOrder:
    """Runs calls in threads, several at once, and hands over their results in the order of the calls.

    threads   that work at the same time
    finished  is given the arguments of each call and its Future, which is done; it runs in the thread that submits

    The block ends when all calls are handed over. After an error in it, a signal's too, the calls that no thread has
    begun are cancelled, and of the others only those are handed over that went well: the first error counts. A signal
    can come between a call and its record here, so that a call is done and not handed over."""

    def __init__(self, threads: int, finished: Callable[[tuple, Future], None]) -> None:
        self.pool, self.finished = ThreadPoolExecutor(threads, thread_name_prefix="results"), finished
        self.limit = 2 * threads
        self.waiting = deque[tuple[tuple, int, Future]]()

    def submit(self, size: int, function: Callable[..., Any], *arguments: Any) -> None:
        """function(*arguments), which hold about `size` bytes. Waits while too many calls or bytes are not done yet,
        and hands over what is done meanwhile."""
        while self.waiting and (self._is_full(size) or self.waiting[0][2].done()):
            self._hand_over()
        self.waiting.append((arguments, size, self.pool.submit(function, *arguments)))

    def finish(self) -> None:
        """Waits for all calls and hands them over."""
        while self.waiting:
            self._hand_over()

    def _is_full(self, size: int) -> bool:
        held = sum(other for _, other, _ in self.waiting)
        return len(self.waiting) >= self.limit or held + size > LARGEST_WAITING

    def _hand_over(self) -> None:
        """The oldest call, once it is done."""
        arguments, _, future = self.waiting[0]
        future.exception()  # waits; a signal that comes meanwhile leaves the call in its place
        self.waiting.popleft()
        self.finished(arguments, future)

    def __enter__(self) -> "InOrder":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self.pool.shutdown(cancel_futures=True)
            for arguments, _, future in self.waiting:  # after an error
                if not future.cancelled() and future.exception() is None:
                    self.finished(arguments, future)
            self.waiting.clear()
