"""The backends of the scan: which there are, which one fits the machine, and whether it computes what it should.

A backend is a module with `why_not` and one of two interfaces: `scan`, which takes the tensors one by one and consists
of operators that autograd knows, or `forward` and `backward` (see `operator.py`).
"""

import functools
import importlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import torch

from . import reference
from .problems import present

log = logging.getLogger("vmunet")

MODULES = {
    "cuda": "cuda.cuda_scan",
    "triton": "triton.triton_scan",
    "mamba_ssm": "mamba",
    "cpu": "cpu.cpu_scan",
    "torch": "torch_loop",
    "reference": "reference",
    "exportable": "export.exportable",
}
PREFERENCE = ("cuda", "triton", "mamba_ssm", "cpu", "torch")
PLAIN = ("exportable", "reference")  # made of PyTorch's own operators, which have all derivatives
SLOW = ", with which training takes about eight times as long"
SELF_TEST = dict(b=1, H=3, W=5, I=32, R=4)  # sizes of its inputs
SELF_TEST_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def load(name: str) -> ModuleType:
    """Import the module of one backend."""
    return importlib.import_module("." + MODULES[name], __package__)


# What torch.compiler.assume_constant_result does, without its import of Dynamo, which takes a second of every start.
load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_fused(name: str) -> bool:
    """Return whether the backend computes the norm and the gate after the scan too, in kernels that wait for nothing,
    so that CUDA graphs can record them."""
    return hasattr(load(name), "gated_forward")


def in_fresh_thread(function: Callable, *args: Any) -> Any:
    """Call a function in a separate thread. Modes and transforms of PyTorch (FakeTensorMode, `with torch.device`, vmap,
    jvp, autocast) that surround a self-test apply only to the thread that entered them."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def _self_test(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if the backend agrees with the definition on a tiny input, otherwise the reason: how far it is off,
    or why it can't be run. On cards that a kernel was not built for, some libraries return zeros without an error;
    others need a C compiler at run time."""
    what = f"its self-test on {device.type} in {dtype}"
    try:
        inputs = reference.make_inputs(**SELF_TEST, dtype=dtype, device=device)
        with torch.no_grad():
            expected = reference.scan(*(t.double() for t in present(inputs)))
            backend = load(name)
            found = backend.scan(*inputs) if hasattr(backend, "scan") else backend.forward(inputs, save=False)[0]
        error = ((found.double() - expected).norm() / expected.norm()).item()
    except (MemoryError, torch.OutOfMemoryError):  # says nothing about the backend
        raise
    except Exception as failure:  # whatever a compiler or a driver raises
        return f"{what} ended with {describe_failure(failure)}"
    if not error < SELF_TEST_TOLERANCE[dtype]:
        return f"{what} is off by {error:.1e} of the reference"
    return None


def describe_failure(failure: Exception) -> str:
    """Return an exception in one line."""
    return f"{type(failure).__name__}: {(str(failure).strip() or 'no message').splitlines()[0]}"


@functools.cache
def why_not(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Return None if the backend can run there, otherwise the reason. Tested once in a process."""
    device = torch.device(device_type)
    if device_type == "cuda" and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())  # each thread has its own current device
    reason = load(name).why_not(device, dtype)
    return reason or (None if name == "reference" else in_fresh_thread(_self_test, name, device, dtype))


@functools.cache
def choose(device_type: str, dtype: torch.dtype) -> str:
    """Return the best backend for a device and a dtype. Log the backends passed over and the reasons; on a CPU, where
    most backends cannot run, only with --debug. Warn if no backend with kernels works where one should."""
    passed_over = []
    for name in PREFERENCE:
        reason = why_not(name, device_type, dtype)
        if reason is None:
            others = "; ".join(passed_over) or "none passed over"
            level, cost = logging.DEBUG if device_type == "cpu" else logging.INFO, ""
            if name == "torch" and device_type in ("cpu", "cuda") and dtype != torch.float64:
                level, cost = logging.WARNING, SLOW
            dtype_name = str(dtype).removeprefix("torch.")
            log.log(level, "scan backend on %s in %s: %s%s (%s)", device_type, dtype_name, name, cost, others)
            return name
        passed_over.append(f"{name}: {reason}")
    raise RuntimeError(f"no scan backend for {device_type} in {dtype}: " + "; ".join(passed_over))


def resolve(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """Return the name of the backend to use. Raises RuntimeError, with the reason, for one that can't be used."""
    if backend not in ("auto", *MODULES):
        raise ValueError(f"scan backend: found {backend!r}, expected 'auto' or one of {', '.join(MODULES)}")
    if device_type == "meta":
        return "torch"  # whose operator tells the shapes
    if backend == "auto":
        return choose(device_type, dtype)
    reason = why_not(backend, device_type, dtype)
    if reason is not None:
        raise RuntimeError(f"scan backend {backend!r} can't be used: {reason}")
    return backend


resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]  # it looks at the machine, while a model is compiled
