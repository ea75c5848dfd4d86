"""CUDA kernels of a network, compiled before they are needed: side by side, while data are read and libraries imported.

On a machine that has not compiled them they take 80 s of processor time together, and the first batch would ask for one
after the other."""

from typing import Any

import torch
from torch import nn

from .cross_scan import backends
from .kernels import nvrtc


def compile_ahead(network: nn.Module, dtype: torch.dtype, device: torch.device, trains: bool) -> None:
    """Start compiling what the network's layers need in a dtype, under autocast unless that is float32, and what the
    self-tests before it need; what gradients need too if it `trains`. Without NVRTC or a GPU nothing is done: the
    self-tests log the reason."""
    if nvrtc.why_not(device) is not None:
        return
    layers: list[Any] = [module for module in network.modules() if hasattr(module, "programs")]
    programs = [program for layer in layers for program in layer.programs(dtype, trains)]
    programs.sort(key=lambda program: -dict(program[1]).get("R", 0))  # the largest scans take longest
    if any("R" in dict(defines) for _, defines in programs):
        programs = backends.load("cuda").self_test_programs(dtype) + programs
    for source, defines in dict.fromkeys(programs):
        nvrtc.compile_ahead(source, defines, nvrtc.capability(device))
