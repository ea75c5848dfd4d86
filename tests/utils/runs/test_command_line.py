"""How commands start."""

import gc
import subprocess
import sys

import pytest

from tests.tiny import ROOT
from utils.runs.command_line import importing

SCRIPT = """
import gc
from utils.runs.command_line import begin_importing, run_with
begin_importing()
assert not gc.isenabled()
run_with(lambda config: print("collects", gc.isenabled()), None)
"""


def test_garbage_is_collected_in_what_a_command_does_and_not_while_it_imports():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=100)
    assert done.stdout.strip() == "collects True", done.stderr


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ModuleNotFoundError), importing():
        assert not gc.isenabled()
        import no_such_module  # noqa: F401
    assert gc.isenabled()
