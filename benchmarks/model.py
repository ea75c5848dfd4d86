"""VM-UNet on this machine's CPU: time, growth with the image, memory, layout copies, beside a Swin U-Net.

    python -m benchmarks.model [--output FILE]

Times are medians of runs that take turns, in one process. The floor is the time of the same matmuls and convolutions
alone, plus that of the scans alone."""

import functools
import math
import resource
import sys
from collections.abc import Callable

import models.torchvision_compat  # noqa: F401  isort: skip (before torchvision)

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models.swin_transformer import SwinTransformerBlock

from benchmarks import common
from benchmarks.common import make_images, training_step
from models.cross_scan import cross_selective_scan
from models.cross_scan.reference import make_inputs
from models.vmunet import VMUNet
from models.vmunet.ss2d import SS2D

LARGE = 2**14  # elements; a tensor with as many counts as an activation
WINDOW = 8  # of the Swin blocks


def swin_unet() -> VMUNet:
    """Return a network like `VMUNet()` with torchvision's Swin blocks instead of the VSS blocks, 26.7 M parameters."""
    model = VMUNet(depths=(2, 2, 2, 1), depths_decoder=(1, 2, 2, 2), drop_path_rate=0)
    for stage in (*model.vmunet.layers, *model.vmunet.layers_up):
        (dim,) = stage.blocks[0].ln_1.normalized_shape
        shifts = [i % 2 * WINDOW // 2 for i in range(len(stage.blocks))]
        stage.blocks = nn.ModuleList(SwinTransformerBlock(dim, dim // 32, [WINDOW] * 2, [n, n]) for n in shifts)
    return model


def forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def with_default_matmuls(function: Callable[[], object]) -> Callable[[], None]:
    """Return `function` with PyTorch's own choice of library for float32 matmuls."""

    def run() -> None:
        matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = matmul.fp32_precision
        matmul.fp32_precision = "none"
        function()
        matmul.fp32_precision = before

    return run


def parts_alone(model: nn.Module, x: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two functions: one runs every matmul and convolution of the network on inputs of its own shapes, the other
    every scan."""
    matmuls, scans = [], []  # convolutions are among the matmuls

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (tokens,) = inputs
        if isinstance(module, SS2D):
            rank, states, _ = module.split
            scan_inputs = make_inputs(*tokens.shape[:-1], module.out_norm.normalized_shape[0], states, rank)
            inner = scan_inputs[0]
            weights = [*module.in_proj.weight.chunk(2), module.x_proj_weight.flatten(0, 1), module.out_proj.weight]
            matmuls.extend((F.linear, (tokens if w.shape[1] == tokens.shape[-1] else inner, w)) for w in weights)
            matmuls.append((module.conv2d.forward, (inner.permute(0, 3, 1, 2),)))
            scans.append((cross_selective_scan, scan_inputs))
        else:
            matmuls.append((module.forward, inputs))

    ends = ("reduction", "expand", "final_conv", "embed.proj")
    layers = [m for name, m in model.named_modules() if isinstance(m, SS2D) or name.endswith(ends)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    forward(model, x)
    for hook in hooks:
        hook.remove()

    @torch.inference_mode()
    def run(calls: list[tuple]) -> None:
        for function, inputs in calls:
            function(*inputs)

    return functools.partial(run, matmuls), functools.partial(run, scans)


def layout_copies(run: Callable[[], object]) -> int:
    """Count the copies in a call of `run`, outside of this project's operators, that only change the memory layout of
    an activation or a gradient."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()

    def is_layout_copy(event) -> bool:
        parent = event
        while parent := parent.cpu_parent:
            if parent.name.startswith("models::"):
                return False
        return event.name == "aten::cat" or event.name == "aten::copy_" and math.prod(event.input_shapes[0]) >= LARGE

    return sum(map(is_layout_copy, profiler.events()))


def peak_growth(size: int) -> float:
    """Return the GiB that training steps at batch 1 add to a process that has made a step at 32 x 32."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

    training_step(VMUNet(), make_images(1, 32))()
    before, step = peak(), training_step(VMUNet(), make_images(1, size))
    step(), step()
    return peak() - before


def as_library() -> dict[str, float]:
    """Return the milliseconds of a forward and a training step in a process that has not called `tune_cpu`."""
    networks, x = {"VM-UNet": VMUNet().eval(), "Swin U-Net": swin_unet().eval()}, make_images(1, 256)
    times = common.medians({name: functools.partial(forward, model, x) for name, model in networks.items()}, 9)
    return times | common.medians({f"{name}, step": training_step(m, x) for name, m in networks.items()}, 5)


def rows_of(times: dict[str, float], unit: str) -> list[dict]:
    """Return rows of times, each also as a multiple of the time called `unit`."""
    return [{"": name, "ms": ms, f"of {unit}": ms / times[unit]} for name, ms in times.items()]


def main() -> None:
    report = common.start(__doc__, "model")
    # first, because a process inherits the peak of the one that started it
    peaks = {f"{size} x {size}": common.in_new_process(peak_growth, size) for size in (256, 512)}
    report.table("memory", [{"training step": size, "peak growth, GiB": gib} for size, gib in peaks.items()])
    untuned = common.in_new_process(as_library)
    report.table("as a library, without tune_cpu, 256 x 256, batch 1", rows_of(untuned, "VM-UNet"))
    torch.manual_seed(0)
    model, swin, loop, x = VMUNet().eval(), swin_unet().eval(), VMUNet(scan_backend="torch").eval(), make_images(1, 256)
    matmuls, scans = parts_alone(model, x)
    forwards = {
        "VM-UNet": lambda: forward(model, x),
        "its matmuls and convolutions alone": matmuls,
        "its scans alone": scans,
        "VM-UNet in bf16": torch.autocast("cpu", torch.bfloat16)(lambda: forward(model, x)),
        "Swin U-Net": lambda: forward(swin, x),
        "Swin U-Net, PyTorch's default matmuls": with_default_matmuls(lambda: forward(swin, x)),
        "VM-UNet, backend torch": lambda: forward(loop, x),
    }
    times = common.medians(forwards, 5)
    times["its floor"] = times["its matmuls and convolutions alone"] + times["its scans alone"]
    report.table("forward, 256 x 256, batch 1", rows_of(times, "VM-UNet"))

    batches = {f"{size} x {size}": make_images(1, size) for size in (256, 512, 1024)}
    batches["256 x 256, batch 8"] = make_images(8, 256)
    runs = {name: functools.partial(forward, model, images) for name, images in batches.items()}
    report.table("forward, growth", rows_of(common.medians(runs, 3), "256 x 256"))
    copies = {"forward": layout_copies(forwards["VM-UNet"])}

    networks = {"VM-UNet": model, "Swin U-Net": swin, "VM-UNet, backend torch": loop}
    steps = {name: training_step(network, x) for name, network in networks.items()}
    steps["Swin U-Net, PyTorch's default matmuls"] = with_default_matmuls(steps["Swin U-Net"])
    report.table("training step, 256 x 256, batch 1", rows_of(common.medians(steps, 5), "VM-UNet"))
    copies["training step"] = layout_copies(steps["VM-UNet"])
    report.table("layout copies", [copies])
    del batches["1024 x 1024"]
    runs = {name: training_step(model, images) for name, images in batches.items()}
    report.table("training step, growth", rows_of(common.medians(runs, 3), "256 x 256"))


if __name__ == "__main__":
    main()
