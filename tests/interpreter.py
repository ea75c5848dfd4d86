"""Runs a test file as a program in which Triton interprets its kernels; it decides so when it is imported."""

import functools
import json
import os
import subprocess
import sys


def run_interpreted(file):
    """What the program prints, read as JSON."""
    settings = {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment = os.environ | settings
    run = subprocess.run([sys.executable, file], capture_output=True, encoding="utf-8", timeout=600, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def patch_language_once() -> None:
    """The interpreter replaces the functions of triton.language whenever a function is called, and puts them back: a
    third of its time. In a program that only interprets they can stay replaced."""
    from triton.runtime import interpreter

    interpreter._patch_lang = functools.cache(interpreter._patch_lang)
    interpreter._LangPatchScope.restore = lambda scope: None
