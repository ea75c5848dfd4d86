"""The processors: which device a network runs on, how many CPUs there are."""

import logging
import os
import re

import torch

from utils import distributed

log = logging.getLogger("vmunet")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of --precision


def choose_device(name: str) -> torch.device:
    """The torch.device for "auto" (CUDA, else Apple's GPU, else the CPU), "cpu", "cuda", "cuda:<number>" or "mps".

    Under torchrun "cuda" means each process's own GPU. Raises ValueError for an unknown name or a device not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: found no Apple GPU that PyTorch can use; use --device auto or cpu")
    if name in ("cpu", "mps"):
        return torch.device(name)
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ValueError(f"--device: found {name!r}, expected auto, cpu, cuda, cuda:<number> or mps")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: found {_why_no_cuda()}, expected a usable GPU; use --device auto or cpu")
    number = int(match[1]) if match[1] else distributed.local_rank()
    if number >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: found {torch.cuda.device_count()} GPUs, expected one with number {number}")
    return torch.device("cuda", number)


def _why_no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"a PyTorch without CUDA ({torch.__version__})"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return f"no GPU with CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
    return "no GPU or no driver (see nvidia-smi)"


def available_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16 matmuls; without, they take six times as long as float32."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def warn_of_slow_bf16() -> None:
    if not has_bf16():
        log.warning("--precision bf16: this processor has no instructions for it, --precision fp32 is faster here")
