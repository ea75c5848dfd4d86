"""How commands start and end. PyTorch is not needed to read a command line, and is not imported for it.

A script whose imports take seconds asks first and imports then:

    from utils.runs.command_line import ask, begin_importing, run_with

    if __name__ == "__main__":
        begin_importing()
        CONFIG = ask(Config)
    import torch ...
    if __name__ == "__main__":
        run_with(main, CONFIG)
"""

import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from utils.errors import LostProcessError, NonFiniteLossError, NotEnoughMemoryError

log = logging.getLogger("vmunet")

GO_ON = "everything is saved, --resume with the run folder goes on with the next batch"
NOTHING_TO_SAVE = "there was nothing new to save"
FINITE = "a lower --lr, --clip-grad-norm 1 or --sch CosineWarmup can prevent it; the last checkpoint is from before"
MEMORY = (
    "less is needed with a smaller --batch-size (--accumulation-steps makes up for it), --use-checkpoint, --precision "
    "bf16, a smaller --image-size, --cache off or fewer --num-workers"
)
WORKER = "the system ended a process that loads data, mostly for lack of memory; try fewer --num-workers, or 0"

Config = TypeVar("Config")


def parse_flags(config_class: type[Config]) -> Config:
    """The config that the command line describes: every field is a flag."""
    from utils.runs import flags

    return flags.parse_flags(config_class)


def begin_importing() -> None:
    """What a script does first: until `run_with`, signals end it (see `end_on_signals`), and Python looks for no
    garbage among the hundreds of thousands of objects that imports make and keep, which takes a fifth of their time."""
    end_on_signals()
    gc.disable()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """The same, without the signals, for imports in this block."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end_on_signals() -> dict[int, Any]:
    """Lets SIGTERM and Ctrl-C end the program at once, with one line: while it is still importing there is nothing to
    save, and an exception would end as whatever the import makes of it. Returns the handlers from before."""
    return {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"stopped by {signal.Signals(number).name}; {NOTHING_TO_SAVE}\n".encode())
    os._exit(128 + number)


def ask(config_class: type[Config], parse: Callable[[type], Any] = parse_flags) -> Config:
    """The config that `parse` makes of the command line. --help, and with one sentence mistakes, end the program."""
    logging.basicConfig(format="%(message)s")  # until the run has its own log
    try:
        return parse(config_class)
    except (ValueError, OSError) as error:
        log.error("error: %s", error)
        sys.exit(2)


def run_command(main: Callable[[Any], Any], config_class: type, parse: Callable[[type], Any] = parse_flags) -> None:
    """`run_with` the config of the command line."""
    before = end_on_signals()
    try:
        run_with(main, ask(config_class, parse))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def run_with(main: Callable[[Any], Any], config: Any) -> None:
    """Calls `main` with a config.

    What a user can mend (a wrong value, a missing file, too little memory) ends with one sentence and exit status 2; a
    loss that is not finite, or another process that is gone, with status 1. --debug shows the traceback. SIGTERM and
    Ctrl-C end with status 75 if --resume can go on from there, otherwise with 128 + the number of the signal.
    """
    with importing():
        from utils.runs.run import stop_log  # these need PyTorch
        from utils.runs.stopping import Stopped, stopped_at_once

    status = 0
    try:
        with stopped_at_once(), explained():
            main(config)
    except Stopped as stopped:
        log.error("stopped by %s; %s", stopped, GO_ON if stopped.saved else NOTHING_TO_SAVE)
        status = stopped.status
    except (ValueError, OSError, NotEnoughMemoryError, NonFiniteLossError, LostProcessError) as error:
        log.error("error: %s", sentence(error))
        if getattr(config, "debug", False):
            raise
        status = 1 if isinstance(error, NonFiniteLossError | LostProcessError) else 2
    finally:
        stop_log()
    if status:
        sys.exit(status)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Gives errors of too little memory, which libraries raise in many forms, one class; and all of them advice."""
    try:
        yield
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error}; {FINITE}") from error
    except MemoryError as error:
        raise NotEnoughMemoryError(f"the memory is not enough ({error}); {MEMORY}") from error
    except RuntimeError as error:
        text, kind = str(error), type(error).__name__  # PyTorch's OutOfMemoryError, by name: it may not be imported
        if kind == "OutOfMemoryError" or "not enough memory" in text or "can't allocate memory" in text:
            raise NotEnoughMemoryError(f"the memory is not enough ({text.splitlines()[0]}); {MEMORY}") from error
        if text.startswith("DataLoader worker (pid"):
            raise NotEnoughMemoryError(f"{text.splitlines()[0]}: {WORKER}") from error
        raise


def sentence(error: BaseException) -> str:
    """The message of an error; for an error in a loader's worker, the last line of the worker's traceback."""
    text = str(error)
    return text.rstrip().rsplit("\n", 1)[-1].split(": ", 1)[-1] if text.startswith("Caught ") else text
