"""What the scripts set before they compute on a CPU."""

import subprocess
import sys

import pytest

from tests.tiny import ROOT


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "environment, expected",
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(environment, expected):
    code = "import sys, os, utils.machine.openmp as _; assert 'torch' not in sys.modules; "
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run_python(code, **environment) == expected


@pytest.mark.parametrize("script", ["train.py", "train_synapse.py", "benchmarks/__init__.py"])
def test_the_scripts_set_it_before_anything_imports_torch(script):
    lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports[0].startswith("import utils.machine.openmp")


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    """64 MB from the system cost 16384 page faults, or some with larger pages."""
    code = """
import ctypes, resource
from utils.machine.memory import keep_freed_memory

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
    kept, *before, _, after = run_python(code).split()
    if kept == "False":
        pytest.skip("not glibc")
    assert int(after) < 10 < min(map(int, before))
