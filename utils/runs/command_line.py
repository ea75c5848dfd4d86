"""The command line of both training scripts: every field of the config is a flag."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import tyro

from utils.errors import LostProcessError, NonFiniteLossError, NotEnoughMemoryError
from utils.runs.run import stop_log
from utils.runs.stopping import Stopped, stopped_at_once

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
    return tyro.cli(config_class, description=sys.modules[config_class.__module__].__doc__)


def run_command(main: Callable[[Any], Any], config_class: type, parse: Callable[[type], Any] = parse_flags) -> None:
    """Calls `main` with the config that `parse` makes of the command line.

    What a user can mend (a wrong value, a missing file, too little memory) ends with one sentence and exit status 2; a
    loss that is not finite, or another process that is gone, with status 1. --debug shows the traceback. SIGTERM and
    Ctrl-C end with status 75 if --resume can go on from there, otherwise with 128 + the number of the signal.
    """
    logging.basicConfig(format="%(message)s")  # until the run has its own log
    config = None
    try:
        with stopped_at_once(), explained():
            config = parse(config_class)
            main(config)
    except Stopped as stopped:
        log.error("stopped by %s; %s", stopped, GO_ON if stopped.saved else NOTHING_TO_SAVE)
        sys.exit(stopped.status)
    except (ValueError, OSError, NotEnoughMemoryError, NonFiniteLossError, LostProcessError) as error:
        log.error("error: %s", sentence(error))
        if getattr(config, "debug", False):
            raise
        sys.exit(1 if isinstance(error, NonFiniteLossError | LostProcessError) else 2)
    finally:
        stop_log()


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
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate memory" in text:
            raise NotEnoughMemoryError(f"the memory is not enough ({text.splitlines()[0]}); {MEMORY}") from error
        if text.startswith("DataLoader worker (pid"):
            raise NotEnoughMemoryError(f"{text.splitlines()[0]}: {WORKER}") from error
        raise


def sentence(error: BaseException) -> str:
    """The message of an error; for an error in a loader's worker, the last line of the worker's traceback."""
    text = str(error)
    return text.rstrip().rsplit("\n", 1)[-1].split(": ", 1)[-1] if text.startswith("Caught ") else text
