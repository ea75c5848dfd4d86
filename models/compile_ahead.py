"""CUDA kernels of a network, compiled before they are wanted: side by side, while data are read and libraries imported.

On a machine that has not compiled them they take 80 s of processor time together, and the first batch would ask for one
after the other."""

import torch
from torch import nn

from .cross_scan import cuda_scan, nvrtc
from .vmunet import conv_silu, layer_norm
from .vmunet.ss2d import SS2D


def compile_ahead(network: nn.Module, dtype: torch.dtype, device: torch.device, trains: bool) -> None:
    """Begins to compile what the network will need in a dtype, under autocast unless that is float32, and what the
    self-tests before it need; what gradients need too if it `trains`. Whether kernels can be compiled at all is for the
    self-tests to say."""
    if nvrtc.why_not(device) is not None:
        return
    scans = [module for module in network.modules() if isinstance(module, SS2D)]
    norms = [module for module in network.modules() if isinstance(module, layer_norm.LayerNorm)]
    if scans:
        cuda_scan.compile_for_self_test(dtype, device)
        sizes = ((scan.out_norm.weight.numel(), scan.split[0]) for scan in scans)
        cuda_scan.compile_ahead(sizes, dtype, device, trains)
        conv_silu.compile_ahead(dtype, device)
    layer_norm.compile_ahead(norms, dtype, device)
