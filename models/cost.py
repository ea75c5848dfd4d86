"""What a forward pass costs, counted twice: as the literature quotes it, and in full.

The figure published for VM-UNet, 4.11 G at 256 x 256 with 22.04 M parameters, came from the package thop. It is the
multiply-adds of the convolutions and Linear modules plus four for each element that a LayerNorm sees. The projections
of the scan, the scan itself and the parameters that belong to no such module are not in it. The figure of UltraLight
VM-UNet, 0.060 G, is found by the same rule. That of VM-UNetV2 has 0.46 G more: of the encoder's last blocks, whose
output nothing reads and which are not run here.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .cross_scan import backends
from .cross_scan.operator import recurrence_flops
from .network import SegmentationNetwork
from .ultralight import Mamba
from .vmunet.ss2d import SS2D
from .vmunet.vmamba import FinalPatchExpand2D

CONVOLUTION = nn.Conv2d | nn.ConvTranspose2d
LAYER_NORM_FLOPS = 5  # per element: mean, difference, square, scale, shift


@dataclass(frozen=True)
class Cost:
    """The cost of one image of `image_size`; a multiply-add is two FLOP."""

    image_size: tuple[int, int]
    parameters: int
    flops: int  # of everything but activations
    matmul_macs: int  # multiply-adds of all matmuls and convolutions
    scan_flops: int  # of the recurrence; the matmul that makes its steps is among the matmuls
    published_parameters: int  # those that thop sees
    published_macs: int  # thop's figure

    def __str__(self) -> str:
        height, width = self.image_size
        thop = f"{shown(self.published_macs / 1e9)} G and {shown(self.published_parameters / 1e6)} M"
        return (
            f"{shown(self.parameters / 1e6)} M parameters; at {height}x{width} {shown(self.flops / 1e9)} GFLOP: "
            f"{shown(self.matmul_macs / 1e9)} G multiply-adds in matmuls, {shown(self.scan_flops / 1e9)} GFLOP in the "
            f"scan (thop, as papers quote it: {thop})"
        )


def shown(number: float) -> str:
    """With two decimals or, below 0.1, two digits that count."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def measure_cost(model: SegmentationNetwork, height: int, width: int) -> Cost:
    """The `Cost` of a network for one image. Nothing is computed: a copy of the model runs on shapes alone."""
    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        if isinstance(module, SS2D | Mamba):
            module.scan_backend = "torch"  # any machine can count with it
    backends.resolve("torch", "cpu", torch.float32)  # its self-test needs real tensors, so it runs before the fake ones

    seen = dict(macs=0, norm_elements=0, scan_flops=0)
    _watch(model, lambda module, inputs, output: _add(seen, module, *inputs, output=output))
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, model.input_channels, height, width))
    counted = counter.get_total_flops()
    return Cost(
        image_size=(height, width),
        parameters=sum(p.numel() for p in model.parameters()),
        flops=counted + LAYER_NORM_FLOPS * seen["norm_elements"],
        matmul_macs=(counted - seen["scan_flops"]) // 2,
        scan_flops=seen["scan_flops"],
        published_parameters=sum(
            p.numel()
            for module in model.modules()
            if isinstance(module, CONVOLUTION | nn.Linear | nn.LayerNorm)
            for p in module.parameters()
        ),
        published_macs=seen["macs"] + 4 * seen["norm_elements"],
    )


def _watch(module, count):
    """Calls `count(module, inputs, output)` for every layer. SS2D and Mamba count as one: they apply weights
    themselves."""
    if isinstance(module, SS2D | Mamba | FinalPatchExpand2D | CONVOLUTION | nn.Linear | nn.LayerNorm):
        module.register_forward_hook(count)
    if not isinstance(module, SS2D | Mamba):
        for child in module.children():
            _watch(child, count)


def _add(seen, module, x, head=None, *, output):
    """Adds what one call of a layer costs."""
    if isinstance(module, SS2D):  # x (B, H, W, C)
        tokens, channels, states = x.shape[:-1].numel(), module.out_norm.weight.numel(), module.A_logs.shape[1]
        weights = (module.in_proj.weight, module.out_proj.weight, module.conv2d.weight)
        seen["macs"] += tokens * sum(weight.numel() for weight in weights)
        seen["norm_elements"] += tokens * channels
        seen["scan_flops"] += recurrence_flops(tokens, channels, states)
    elif isinstance(module, Mamba):  # x (B, L, C); thop saw none of its matmuls, which ran in one kernel
        seen["scan_flops"] += recurrence_flops(x.shape[:-1].numel(), *module.A_log.shape)
    elif isinstance(module, FinalPatchExpand2D):  # which applies the weights of the last convolution, `head`
        seen["macs"] += output[:, 0].numel() * head.weight.numel()
    elif isinstance(module, CONVOLUTION):
        seen["macs"] += output[:, 0].numel() * module.weight.numel()
    elif isinstance(module, nn.Linear):
        seen["macs"] += x.shape[:-1].numel() * module.weight.numel()
    else:
        seen["norm_elements"] += x.numel()
