"""The program of the reader process: it calls the functions that are sent to its input, and sends their results.

Nothing here imports PyTorch."""

import builtins
import contextlib
import faulthandler
import importlib
import os
import pickle
import signal
import sys
import warnings
from typing import Any

PLAIN = {  # (package, name) of the types in results
    *(("numpy", name) for name in ("ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar")),
    *((ours, name) for ours in ("datasets", "vmunet") for name in ("StoredVolume", "RawCase", "DicomSlice")),
    *(("nibabel", name) for name in ("Nifti1Header", "Nifti1Extensions")),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath")),
}
PATIENCE = 6  # wall-clock limit, as a multiple of the CPU limit: for a busy machine or a slow disk


class PlainUnpickler(pickle.Unpickler):
    """Unpickles only arrays, paths, errors and this project's records: the reader of a hostile file is not trusted."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if (module.partition(".")[0], name) in PLAIN else None
        if module == "builtins" and isinstance(getattr(builtins, name, None), type):
            found = getattr(builtins, name) if issubclass(getattr(builtins, name), Exception) else None
        if found is None:
            raise ValueError(f"the reader process sent {module}.{name}, expected arrays and plain values")
        return found


def _limit_computation(seconds: float) -> None:
    """End the process after this CPU time; 0 removes the limit."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _plain(error: Exception) -> Exception:
    """Return an error that the other process can unpickle: a MemoryError, OSError or ValueError."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return MemoryError()
    if isinstance(error, OSError | ValueError) and type(error).__module__ == "builtins":
        return error
    return ValueError(str(error) or type(error).__name__)


def main(memory: int) -> None:
    """Serve requests (working folder, function, arguments, seconds) until the input ends, with `memory` bytes.

    The process ends after `seconds` of CPU time. If it waits, or if the system has no such timer, it ends after
    PATIENCE times `seconds` of wall-clock time. This works even while a library holds the GIL, which delays Python's
    signal handlers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the other process decides
    warnings.simplefilter("ignore")
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows and macOS have no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with open(os.devnull, "w") as quiet:
        while True:
            try:
                folder, function, arguments, seconds = pickle.Unpickler(sys.stdin.buffer).load()
            except EOFError:
                return
            faulthandler.dump_traceback_later(PATIENCE * seconds, exit=True, file=quiet)
            _limit_computation(seconds)
            try:
                os.chdir(folder)
                answer: tuple[bool, Any] = True, function(*arguments)
            except Exception as error:
                answer = False, _plain(error)
            _limit_computation(0)
            faulthandler.cancel_dump_traceback_later()
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
            del answer  # a volume need not wait here for the next request


if __name__ == "__main__":
    sys.path[0], module, memory = sys.argv[1:]
    importlib.import_module(module)  # before the first file, whose time is limited
    main(int(memory))
