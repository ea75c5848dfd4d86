"""Which backends there are, which one fits, and whether it computes what it should."""

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch

from . import reference
from .inputs import present

log = logging.getLogger("vmunet")
Function = TypeVar("Function", bound=Callable[..., Any])

MODULES = {
    "cuda": "cuda_scan",
    "triton": "triton_scan",
    "mamba_ssm": "mamba",
    "cpu": "cpu",
    "torch": "torch_loop",
    "reference": "reference",
    "exportable": "exportable",
}
PREFERENCE = ("cuda", "triton", "mamba_ssm", "cpu", "torch")
# made of pieces that autograd knows: `scan`, which takes the tensors one by one, instead of `forward`
DIFFERENTIABLE = {"mamba_ssm", "reference", "exportable"}
FUSED = {"cuda", "triton"}  # have `gated_forward` and `gated_backward`: the scan with the norm and the gate after it
SELF_TEST = dict(b=1, H=3, W=5, I=32, R=4)  # sizes of its inputs
SELF_TEST_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def constant_for_compiler(function: Function) -> Function:
    """torch.compiler.assume_constant_result, which imports the compiler: a second or two of every command's start."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@functools.cache
def load(name: str) -> ModuleType:
    """The module of one backend."""
    return importlib.import_module("." + MODULES[name], __package__)


def _self_test(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the backend agrees with the definition on a tiny input, otherwise a sentence: how far it is, or why it
    can't be run. On cards that a kernel was not built for, some libraries return zeros without an error; others need a
    C compiler at run time."""
    what = f"its self-test on {device.type} in {dtype}"
    try:
        inputs = reference.make_inputs(**SELF_TEST, dtype=dtype, device=device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            expected = reference.scan(*(t.double() for t in present(inputs)))
            backend = load(name)
            found = backend.scan(*inputs) if name in DIFFERENTIABLE else backend.forward(inputs, save=False)[0]
        error = ((found.double() - expected).norm() / expected.norm()).item()
    except Exception as failure:  # whatever a compiler or a driver raises
        return f"{what} ended with {describe_failure(failure)}"
    if not error < SELF_TEST_TOLERANCE[dtype]:
        return f"{what} is off by {error:.1e} of the reference"
    return None


def describe_failure(failure: Exception) -> str:
    """An exception in one line."""
    return f"{type(failure).__name__}: {(str(failure).strip() or 'no message').splitlines()[0]}"


@functools.cache
def why_not(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """None if the backend can run there, otherwise why not. Tried once in a process."""
    device = torch.device(device_type)
    reason = load(name).why_not(device, dtype)
    return reason or (None if name == "reference" else _self_test(name, device, dtype))


@functools.cache
def choose(device_type: str, dtype: torch.dtype) -> str:
    """The best backend for a device and a dtype; the log says why the others were passed over, on a CPU,
    where most of them can't run, with --debug only."""
    passed_over = []
    for name in PREFERENCE:
        reason = why_not(name, device_type, dtype)
        if reason is None:
            others = "; ".join(passed_over) or "none passed over"
            level = logging.DEBUG if device_type == "cpu" else logging.INFO
            dtype_name = str(dtype).removeprefix("torch.")
            log.log(level, "scan backend on %s in %s: %s (%s)", device_type, dtype_name, name, others)
            return name
        passed_over.append(f"{name}: {reason}")
    raise RuntimeError(f"no scan backend for {device_type} in {dtype}: " + "; ".join(passed_over))


def resolve(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The name of the backend to use. Raises RuntimeError if the one asked for is not there, with the reason."""
    if backend == "auto":
        return choose(device_type, dtype)
    if backend not in MODULES:
        raise ValueError(f"scan backend: found {backend!r}, expected 'auto' or one of {', '.join(MODULES)}")
    reason = why_not(backend, device_type, dtype)
    if reason is not None:
        raise RuntimeError(f"scan backend {backend!r} can't be used: {reason}")
    return backend
