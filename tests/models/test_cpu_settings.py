"""What makes a process compute faster on a CPU, with the same results."""

import subprocess
import sys

import pytest
import torch

from models import cpu_settings
from tests.tiny import ROOT


def test_matmuls_stay_exact_whatever_the_processor_does_with_the_switch():
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        switched = cpu_settings.use_fast_matmuls()
        assert cpu_settings.largest_error() < 1e-6
        assert switched == (torch.backends.mkldnn.matmul.fp32_precision == "bf16")
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_matmuls_that_round_are_refused(monkeypatch):
    """As on processors with bfloat16 matrix units."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    linear = torch.nn.functional.linear
    monkeypatch.setattr(cpu_settings.F, "linear", lambda x, w: linear(x.bfloat16().float(), w.bfloat16().float()))
    assert not cpu_settings.use_fast_matmuls()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    """64 MB from the system cost 16384 page faults, or some with larger pages."""
    code = """
import ctypes, resource
from models.cpu_settings import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = libc.malloc(2**26)
    ctypes.memset(memory, 1, 2**26)
    libc.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults(), faults()
print(keep_freed_memory(), *first, faults(), faults())
"""
    kept, *before, _, after = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    if kept == "False":
        pytest.skip("not glibc")
    assert int(after) < 10 < min(map(int, before))


@pytest.mark.parametrize("surround", [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")])
def test_what_surrounds_the_call_changes_nothing(surround):
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        expected = cpu_settings.use_fast_matmuls()
        with surround():
            assert cpu_settings.use_fast_matmuls() == expected
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
