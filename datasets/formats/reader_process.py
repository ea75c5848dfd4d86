"""Read files of volumes in a separate process, with limits of memory and time.

nibabel, h5py, pydicom and their decoders trust what a file says. An altered file can make them allocate any amount
of memory, loop for ever, or crash. Such a failure ends only the reader process and loses only this file."""

import atexit
import contextlib
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from datasets.formats import reader_main
from utils.files import reading
from utils.machine.memory import free_memory

Result = TypeVar("Result")

SECONDS, BYTES_PER_SECOND = 10, 2**20  # of CPU time: for any file, and what a large file adds
LEAST_MEMORY = 2**31  # bytes
READERS = __name__.replace("formats.reader_process", "volume_sources")  # the module, also in the package vmunet
ROOT = Path(__file__).resolve().parents[READERS.count(".") + 1]  # of that name
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}  # each thread takes memory


class ReaderProcess:
    """A process that starts when it is first needed, and again after it has ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.memory = LEAST_MEMORY
        self.lock = threading.RLock()
        atexit.register(self.stop)

    def start(self) -> None:
        """Start the process unless it runs, and return at once. It then imports what most readers need."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.stop()
                self.memory = max(LEAST_MEMORY, free_memory() // 2)
                command = [sys.executable, reader_main.__file__, str(ROOT), READERS, str(self.memory)]
                pipe = subprocess.PIPE
                self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | ONE_THREAD)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError), process:  # closes its pipes and waits
                pass

    def call(self, seconds: float, function: Callable[..., Result], arguments: tuple) -> Result:
        """Return function(*arguments). Raises its ValueError or OSError, and ValueError if the process ends."""
        with self.lock:
            self.start()
            process, begun = self.process, time.monotonic()
            assert process is not None and process.stdin is not None and process.stdout is not None
            try:
                pickle.dump((os.getcwd(), function, arguments, seconds), process.stdin)
                process.stdin.flush()
                succeeded, result = reader_main.PlainUnpickler(process.stdout).load()
            except (EOFError, BrokenPipeError):
                status = process.wait()
                waited = time.monotonic() - begun >= reader_main.PATIENCE * seconds
                if waited or status == -getattr(signal, "SIGPROF", 0):
                    raise ValueError(f"it could not be read within {seconds:.0f} s, probably damaged") from None
                raise ValueError(f"it ended the process that reads it (status {status}), probably damaged") from None
            except BaseException:  # such as Ctrl-C: nobody waits for the answer
                self.stop()
                raise
        if isinstance(result, MemoryError):
            raise ValueError(f"it needs more than {self.memory / 1e9:.1f} GB of memory")
        if not succeeded:
            raise result
        return result


READER = ReaderProcess()


def read_apart(files: Sequence[Path], function: Callable[..., Result], *arguments: Any) -> Result:
    """Return function(*arguments), called in the reader process; it reads `files`, whose sizes set the time limit.

    Raises ValueError or OSError that names the file, or the folder of several, also for devices and pipes: reading
    these may never end."""
    with reading(files[0] if len(files) == 1 else files[0].parent):
        found = [path.stat() for path in files]
        if not all(stat.S_ISREG(one.st_mode) for one in found):
            raise ValueError("it is no regular file")
        return READER.call(SECONDS + sum(one.st_size for one in found) / BYTES_PER_SECOND, function, arguments)
