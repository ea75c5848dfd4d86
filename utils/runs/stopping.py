"""SIGTERM (from Slurm or torchrun) and Ctrl-C: training finishes its batch, saves, and ends with exit status 75."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from utils import distributed
from utils.distributed import AsyncScalar

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVED = 75  # exit status of a stopped run that --resume can continue (EX_TEMPFAIL of sysexits.h)


class Stopped(KeyboardInterrupt):
    """A signal ended the run. `saved`: everything is saved, and a resumed run continues with the next batch."""

    def __init__(self, number: int, saved: bool = False):
        super().__init__(signal.Signals(number).name)
        self.number, self.saved = number, saved

    @property
    def status(self) -> int:
        """Return the exit status: 75 if everything is saved, else the shell's 128 + number of the signal."""
        return SAVED if self.saved else 128 + self.number


@contextlib.contextmanager
def on_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` for SIGTERM and Ctrl-C in this block."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


@contextlib.contextmanager
def stopped_at_once() -> Iterator[None]:
    """Raise Stopped at once for SIGTERM and Ctrl-C: in this block there is nothing to save yet.

    A library may turn it into another error or swallow it; the block ends with Stopped all the same."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise Stopped(number)

    with on_signals(stop):
        try:
            yield
        except (Stopped, SystemExit):  # SystemExit: from a command that handles Ctrl-C itself
            received.clear()
            raise
        finally:
            if received:
                raise Stopped(received[0])


class StopRequest:
    """Remember a signal, with `on_signals(stop.remember)`; `check` ends the run where that is safe."""

    number = 0  # of the first signal
    pending: AsyncScalar | None = None  # the answer of all processes to the question of the step before

    def remember(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            # not through the log, which may be in the middle of a line
            os.write(2, f"\n{signal.Signals(number).name}: stopping as soon as a batch is done\n".encode())

    def check(self) -> None:
        """Raise Stopped, in every process if one of them got a signal; all must call it at the same point."""
        self._end(int(distributed.all_reduce_max(self.number).item()))

    def check_while_computing(self) -> None:
        """Raise Stopped like `check`, after each step of training. Several processes stop one step later: if they
        waited for the answer, their GPUs would be without work."""
        if not distributed.connected():
            self._end(self.number)
            return
        before, self.pending = self.pending, distributed.all_reduce_max(self.number)
        if before is not None:
            self._end(int(before.item()))

    def _end(self, number):
        if number:
            raise Stopped(number)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back until the block ends.

    Start a loader's workers in it: they inherit the blocked signals, which could otherwise end them before they call
    `leave_signals_to_main`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_main(worker: int) -> None:
    """Let a loader's worker ignore signals meant for the run: Ctrl-C and Slurm send them to every process.

    A SIGTERM from its own main process still ends it: that is how Python stops its workers when it exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere SIGTERM ends the worker, and the run with an error
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _obey_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
