"""Prepare the process. Every command imports this module first.

The module explains what to do if a package is missing, and discards printed text if the shell has closed the output. It
also sets how long PyTorch's OpenMP threads spin on a CPU before they sleep; OpenMP reads this setting once. OpenMP's
default of some milliseconds suits a machine without other work. Beside other processes, spinning threads occupy cores
that busy threads need, and a training step takes many times as long (docs/library.md has the numbers)."""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"  # of `make demo`
SPINS = "1000"  # a few microseconds


def explain(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print one sentence, not a traceback, if a package of requirements.txt is not installed."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return sys.__excepthook__(kind, error, traceback)
    expected = f"the packages of {ROOT / 'requirements.txt'}"
    if __name__.startswith("vmunet."):  # the installed package
        expected = "the packages of an extra"
        advice = "pip install 'vmunet[train]', or for predictions alone 'vmunet[predict]'"
    elif ENVIRONMENT.is_dir() and Path(sys.prefix).resolve() != ENVIRONMENT.resolve():
        advice = f"they are installed in {ENVIRONMENT}: source {ENVIRONMENT}/bin/activate"
    else:
        advice = "`make demo` installs them into .venv, `pip install -r requirements.txt` into this Python"
    print(f"error: found no module {error.name!r} in {sys.executable}, expected {expected}; {advice}", file=sys.stderr)


status: int | None = None  # of a process that `run_process` has done with


def run_process(command: Callable[[], object]) -> None:
    """Call a command, which is all that this process does, and end the process at once.

    Python itself would first take all modules apart, those of PyTorch for one to three seconds."""
    global status
    try:
        command()
        status = 0
    except SystemExit as end:
        code = end.code or 0
        status = code if isinstance(code, int) else None  # Python prints what is no number
        raise


def leave() -> None:
    """End the process after `run_process`. Threads have ended and files of the log are closed by then."""
    if status is not None:
        with contextlib.suppress(OSError):  # of a closed pipe, which Python reports
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


atexit.register(leave)  # registered first, so it is called after all others
sys.excepthook = explain
for name in ("stdout", "stderr"):  # None where the shell has closed them
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "w"))
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS
