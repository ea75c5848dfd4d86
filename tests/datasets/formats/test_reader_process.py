"""The reader process: a file that hangs, crashes or needs too much costs itself only."""

import builtins
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from datasets.formats import reader_process
from datasets.formats.reader_process import READER, read_apart


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scan.h5"
    path.write_bytes(b"content")
    return path


def test_arrays_and_errors_come_back(file):
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(30, 20, 10)))
    result = read_apart([file], np.negative, array)
    np.testing.assert_array_equal(result, -array)
    assert result.flags.f_contiguous and result.flags.writeable
    with pytest.raises(ValueError, match="scan.h5 .*invalid literal"):
        read_apart([file], int, "x")
    with pytest.raises(FileNotFoundError, match="absent.h5"):
        read_apart([file.with_name("absent.h5")], len, "x")


def test_only_plain_values_are_taken(file):
    for name in ("eval", "getattr"):
        with pytest.raises(ValueError, match=f"scan.h5 .*{name}"):
            read_apart([file], dict.get, {name: getattr(builtins, name)}, name)
    assert read_apart([file], len, "abc") == 3


@pytest.mark.parametrize("function, argument, told", [(os.abort, (), "-6"), (os._exit, (3,), "3")])
def test_a_crash_costs_this_file_only(file, function, argument, told):
    with pytest.raises(ValueError, match=f"scan.h5 .*status {told}"):
        read_apart([file], function, *argument)
    assert read_apart([file], len, "abc") == 3


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of computation")
def test_an_endless_loop_ends_even_if_it_holds_the_lock(file, monkeypatch):
    monkeypatch.setattr(reader_process, "SECONDS", 0.3)
    with pytest.raises(ValueError, match="scan.h5 .*0 s"):
        read_apart([file], pow, 3, 10**9)  # one call of C


def test_waiting_ends_too(file, monkeypatch):
    monkeypatch.setattr(reader_process, "SECONDS", 0.1)
    with pytest.raises(ValueError, match="scan.h5 .*0 s"):
        read_apart([file], time.sleep, 60)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no limit of memory")
def test_too_much_memory_is_named(file):
    with pytest.raises(ValueError, match=r"scan.h5 .*more than \d+\.\d GB"):
        read_apart([file], np.ones, 2**40)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "link.nii").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("link.nii", "pipe.nii"):
        with pytest.raises(ValueError, match=name):
            read_apart([tmp_path / name], len, "x")


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ there")
def test_ctrl_c_does_not_wait_for_the_file(file, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs behind
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    read_apart([file], len, "x")  # it has started
    begun = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        read_apart([file], time.sleep, 50)
    assert time.monotonic() - begun < 20 and READER.process is None
    assert read_apart([file], len, "abc") == 3


def test_the_readers_import_no_pytorch():
    modules = "datasets.volume_sources, datasets.nifti, datasets.formats.dicom, datasets.formats.metaimage_nrrd"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
