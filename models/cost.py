"""What a forward pass costs, counted twice: as papers quote it, and in full.

The figure published for VM-UNet, 4.11 G at 256 x 256 with 22.04 M parameters, came from the package thop. It counts the
multiply-adds of the convolutions and Linear modules, and four for each element that a LayerNorm sees. It leaves out the
projections of the scan, the scan itself and the parameters that belong to no such module. The figure of UltraLight
VM-UNet, 0.060 G, follows the same rule. That of VM-UNetV2 is 0.46 G higher than ours: the original runs the encoder's
last blocks, whose output nothing reads.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .network import SegmentationNetwork
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
        thop = f"{short(self.published_macs / 1e9)} G and {short(self.published_parameters / 1e6)} M"
        return (
            f"{short(self.parameters / 1e6)} M parameters; at {height}x{width} {short(self.flops / 1e9)} GFLOP: "
            f"{short(self.matmul_macs / 1e9)} G multiply-adds in matmuls, {short(self.scan_flops / 1e9)} GFLOP in the "
            f"scan (thop, as papers quote it: {thop})"
        )


def short(number: float) -> str:
    """Return a number with two decimals or, below 0.1, two significant digits."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def measure_cost(model: SegmentationNetwork, height: int, width: int) -> Cost:
    """Return the `Cost` of a network for one image. Nothing is computed: a copy of the model runs on shapes alone."""
    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        if hasattr(module, "scan_backend"):
            module.scan_backend = "torch"  # type: ignore[assignment]  # any machine can count with it

    counts: Counter[str] = Counter()
    _watch(model, lambda module, inputs, output: counts.update(_cost_of_call(module, *inputs, output=output)))
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, model.input_channels, height, width))
    counted = counter.get_total_flops()
    seen_by_thop = [m for m in model.modules() if isinstance(m, CONVOLUTION | nn.Linear | nn.LayerNorm)]
    return Cost(
        image_size=(height, width),
        parameters=sum(p.numel() for p in model.parameters()),
        flops=counted + LAYER_NORM_FLOPS * counts["norm_elements"],
        matmul_macs=(counted - counts["scan_flops"]) // 2,
        scan_flops=counts["scan_flops"],
        published_parameters=sum(p.numel() for module in seen_by_thop for p in module.parameters()),
        published_macs=counts["macs"] + 4 * counts["norm_elements"],
    )


def _watch(module, count):
    """Call `count(module, inputs, output)` after every layer. A module with a `cost` of its own counts as one layer."""
    own = hasattr(module, "cost")
    if own or isinstance(module, FinalPatchExpand2D | CONVOLUTION | nn.Linear | nn.LayerNorm):
        module.register_forward_hook(count)
    for child in () if own else module.children():
        _watch(child, count)


def _cost_of_call(module, x, head=None, *, output):
    """Return what one call of a layer adds to the counts."""
    if hasattr(module, "cost"):
        return module.cost(x.shape[:-1].numel())
    if isinstance(module, FinalPatchExpand2D | CONVOLUTION):
        layer: Any = module if head is None else head  # FinalPatchExpand2D applies the last convolution, `head`
        return dict(macs=output[:, 0].numel() * layer.weight.numel())
    if isinstance(module, nn.Linear):
        return dict(macs=x.shape[:-1].numel() * module.weight.numel())
    return dict(norm_elements=x.numel())
