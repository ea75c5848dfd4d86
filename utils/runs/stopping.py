"""SIGTERM (Slurm's notice, torchrun's) and Ctrl-C: training finishes its batch, saves, and its exit status says so."""

import contextlib
import os
import signal
import threading

from utils import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVED = 75  # exit status of a run that a signal stopped and --resume goes on with (EX_TEMPFAIL of sysexits.h)


class Stopped(KeyboardInterrupt):
    """A signal ended the run; `saved`: with everything saved, so that a resumed run goes on with the next batch."""

    def __init__(self, number, saved=False):
        super().__init__(signal.Signals(number).name)
        self.number, self.saved = number, saved

    @property
    def status(self):
        """The exit status: 75, or without anything to go on from, the shell's 128 + number of the signal."""
        return SAVED if self.saved else 128 + self.number


@contextlib.contextmanager
def on_signals(handler):
    """SIGTERM and Ctrl-C call `handler` in this block."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


@contextlib.contextmanager
def stopped_at_once():
    """For the time in which there is nothing to save: SIGTERM and Ctrl-C raise Stopped wherever the program is.

    That may be inside a library, which makes another error of it or swallows it; the block ends with Stopped anyway."""
    received = []

    def stop(number, frame):
        received.append(number)
        raise Stopped(number)

    with on_signals(stop):
        try:
            yield
        except (Stopped, SystemExit):  # the latter from a command that has its own way to stop
            raise
        except BaseException as error:
            if received:
                raise Stopped(received[0]) from error
            raise
        if received:
            raise Stopped(received[0])


class StopRequest:
    """A signal that is remembered, `on_signals(stop.remember)`; `check` ends the run where it is safe."""

    number = 0  # of the first signal

    def remember(self, number, frame):
        if not self.number:
            self.number = number
            # the log may be in the middle of a line
            os.write(2, f"\n{signal.Signals(number).name}: stopping after this batch\n".encode())

    def check(self):
        """Raises Stopped, in every process if one of them got a signal; all must call it at the same point."""
        number = distributed.largest(self.number)
        if number:
            raise Stopped(number)


@contextlib.contextmanager
def signals_held():
    """SIGTERM and Ctrl-C wait until the block ends. A loader's workers that start in it never see them: they take over
    the mask, before `leave_signals_to_main` has had its turn."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_main(worker):
    """Makes a loader's worker deaf to signals meant for the run: Ctrl-C and Slurm send them to every process.

    SIGTERM of its own main process still ends it; that is how Python takes its workers along when it exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere SIGTERM ends the worker, and the run with an error
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _obey_main_process():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
