"""How a command starts and ends: `run(main, config_class)`. A dataclass is the command line, every field a flag.

A comment behind a field is its help. --help has a box for each class that declares fields, and for each section
`# --- data ---` within it.
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import logging
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from utils.errors import LostProcessError, NonFiniteLossError, NotEnoughMemoryError
from utils.runs.run_folder import log_to_console, stop_log
from utils.runs.stopping import Stopped, stopped_at_once

log = logging.getLogger("vmunet")

RESUMABLE = "everything is saved, --resume with the run folder continues with the next batch"
NOTHING_TO_SAVE = "there was nothing new to save"
FINITE = "a lower --lr, --clip-grad-norm 1 or --sch CosineWarmup can prevent it; the last checkpoint is from before"
MEMORY = (
    "less is needed with a smaller --batch-size (--accumulation-steps makes up for it), --use-checkpoint, --precision "
    "bf16, a smaller --image-size, --cache off or fewer --num-workers"
)
WORKER = (
    "the processes that load data lack memory or shared memory (64 MB in Docker); try a lower --num-workers, such "
    "as 0, or docker run --shm-size 8g"
)
Config = TypeVar("Config")

# HelptextFromCommentsOff: tyro need not look for help in the sources, `places_of` does
TYRO = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)
SECTION = re.compile(r" +# --- (?P<title>.+?)(?: \(.*\))? ---")
FIELD = re.compile(r" +(?P<name>\w+): .*?(?:  # (?P<help>.*))?")


def parse_flags(
    config_class: type[Config],
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> Config:
    """Return the config that a command line (default: sys.argv) describes. --help and mistakes end the program."""
    helps, sections = places_of(config_class), {}  # type: ignore[arg-type]
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        title, text = helps[field.name]
        value = dataclasses.field(default=field.default, default_factory=field.default_factory)  # type: ignore[call-overload]
        sections.setdefault(title, []).append(
            (field.name, Annotated[hints[field.name], tyro.conf.arg(help=text)], value)
        )
    boxes = []
    for title in dict.fromkeys(title for title, _ in helps.values()):
        box = dataclasses.make_dataclass("Box", sections.get(title, []), kw_only=True)
        box.__doc__ = " "
        boxes.append((f"box_{len(boxes)}", Annotated[box, tyro.conf.arg(name=title)]))
    grouped = dataclasses.make_dataclass(config_class.__name__, boxes, kw_only=True)
    check_names(sys.argv[1:] if arguments is None else arguments, helps)
    description = description or sys.modules[config_class.__module__].__doc__
    parsed = tyro.cli(grouped, prog=prog, args=arguments, description=description, config=TYRO)
    return config_class(**{name: value for box in vars(parsed).values() for name, value in vars(box).items()})


def check_names(arguments: Sequence[str], fields: Iterable[str]) -> None:
    """End the program if a flag is misspelt, and suggest the closest flag, whatever else is wrong."""
    known = ["--help", *(f"--{prefix}{field}".replace("_", "-") for field in fields for prefix in ("", "no-"))]
    for text in arguments:
        name = text.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known and (close := difflib.get_close_matches(name, known, n=1)):
            print(f"error: {name}: found no such option, expected {close[0]}", file=sys.stderr)
            sys.exit(2)


@functools.cache
def places_of(config_class: Any) -> dict[str, tuple[str, str]]:
    """Return {field: (title of its box, help)}, the class's own fields first."""
    places: dict[str, tuple[str, str]] = {}
    parts: list[Any] = [part for part in config_class.__mro__ if dataclasses.is_dataclass(part)]
    for part in parts:
        title = (part.__doc__ or "").partition("\n")[0].rstrip(".") if part is not config_class else "options"
        lines = inspect.getsource(part).splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if match := SECTION.fullmatch(line):
                title = match["title"]
            elif (match := FIELD.fullmatch(line)) and match["name"] in config_class.__dataclass_fields__:
                text = match["help"] or following.strip().strip('"') * following.strip().startswith('"""')
                if match["name"] not in places or not places[match["name"]][1]:
                    places[match["name"]] = (places.get(match["name"], (title, ""))[0], text)
    return places


def run(main: Callable[[Any], Any], config_class: type, parse: Callable[[type], Any] = parse_flags) -> None:
    """Call `main` with the config that `parse` makes of the command line.

    What a user can mend (a wrong value, a missing file, too little memory) ends with one sentence and exit status 2; a
    loss that is not finite, or another process that is gone, with status 1. --debug shows the traceback. SIGTERM and
    Ctrl-C end with status 75 if --resume can continue from there, otherwise with 128 + the number of the signal."""
    log_to_console()  # until the run starts its own log
    config, status = None, 0
    try:
        with stopped_at_once(), advice():
            config = parse(config_class)
            main(config)
    except Stopped as stopped:
        log.error("stopped by %s; %s", str(stopped), RESUMABLE if stopped.saved else NOTHING_TO_SAVE)
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
def advice() -> Iterator[None]:
    """Add advice to errors. Raise NotEnoughMemoryError for the many forms in which libraries report it."""
    try:
        yield
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error}; {FINITE}") from error
    except MemoryError as error:
        raise NotEnoughMemoryError(f"the memory is not enough ({error}); {MEMORY}") from error
    except RuntimeError as error:
        text, kind = str(error), type(error).__name__
        if kind == "OutOfMemoryError" or "not enough memory" in text or "can't allocate memory" in text:
            raise NotEnoughMemoryError(f"the memory is not enough ({text.splitlines()[0]}); {MEMORY}") from error
        if text.startswith("DataLoader worker (pid") or "shared memory" in text or "</torch_" in text:
            raise NotEnoughMemoryError(f"{sentence(error).splitlines()[0]}: {WORKER}") from error
        raise


def sentence(error: BaseException) -> str:
    """Return the message of an error; for an error in a loader's worker, the last line of the worker's traceback."""
    text = str(error)
    return text.rstrip().rsplit("\n", 1)[-1].split(": ", 1)[-1] if text.startswith("Caught ") else text
