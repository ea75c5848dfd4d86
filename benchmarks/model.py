"""VM-UNet on this machine's CPU: time, growth with the image, memory, where the time goes, beside a Swin U-Net.

    python -m benchmarks.model [--output FILE]

Times are medians of runs that take turns, in one process. The floor is the time of the same matmuls and convolutions
alone, plus that of the scans alone."""

import functools
import math
import resource
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.swin_unet import swin_unet
from configs.config_setting import ISICConfig
from configs.optim import OPTIMIZERS
from models.cross_scan import cross_selective_scan
from models.cross_scan.reference import make_inputs
from models.vmunet import VMUNet
from models.vmunet.ss2d import SS2D
from utils.losses import BceDiceWithLogitsLoss
from utils.optim import build_optimizer

GROUPS = {  # what the profiler's operators belong to
    "scan": ("models::", "GeneratedBackwardFor_models"),
    "matmuls": ("aten::mm", "aten::addmm", "aten::bmm"),
    "convolutions": ("aten::mkldnn_convolution", "aten::_slow_conv2d", "aten::convolution_backward"),
    "norms": ("aten::native_layer_norm",),
    "activations": ("aten::silu", "aten::mul"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_"),
    "optimizer": ("aten::_fused_adam",),
}
LARGE = 2**14  # elements; what has as many counts as an activation


def images(batch: int, size: int) -> Tensor:
    return 255 * torch.rand(batch, 3, size, size)


def forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def forward_bf16(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return forward(model, x)


def with_default_matmuls(function: Callable[[], object]) -> Callable[[], None]:
    """`function` with PyTorch's own choice of library for float32 matmuls."""

    def run() -> None:
        matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = matmul.fp32_precision
        matmul.fp32_precision = "none"
        function()
        matmul.fp32_precision = before

    return run


def training_step(model: nn.Module, batch: int, size: int) -> Callable[[], None]:
    """A function that computes a step as `train.py` does, on one batch."""
    model.train()
    optimizer, criterion = build_optimizer(model, ISICConfig(), OPTIMIZERS), BceDiceWithLogitsLoss()
    x, target = images(batch, size), torch.rand(batch, 1, size, size).round()

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), target).backward()
        optimizer.step()

    return step


def parts_alone(model: nn.Module, x: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two functions: one runs every matmul and convolution of the network on inputs of its own shapes, the other every
    scan, and nothing else."""
    matmuls, scans = [], []  # and convolutions among the matmuls

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


def shares(what: str, run: Callable[[], object]) -> dict:
    """A row: the milliseconds that a call of `run` spends in each of GROUPS, and the number of its layout copies."""
    run()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    spent = dict.fromkeys((*GROUPS, "other"), 0.0)
    for event in profiler.key_averages():
        group = next((name for name, keys in GROUPS.items() if event.key.startswith(keys)), "other")
        spent[group] += event.self_cpu_time_total / 1e3
    copies = sum(map(is_layout_copy, profiler.events()))
    return {"ms, profiled": what} | spent | {"all": sum(spent.values()), "layout copies": copies}


def is_layout_copy(event) -> bool:
    """Whether a profiler's event is a copy, outside of this project's operators, that only changes the memory layout of
    an activation or a gradient."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("models::"):
            return False
        parent = parent.cpu_parent
    return event.name == "aten::cat" or event.name == "aten::copy_" and math.prod(event.input_shapes[0]) >= LARGE


def peak_growth(size: int) -> float:
    """GiB that training steps at batch 1 add to a process that holds the model and has made a step at 32 x 32."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

    training_step(VMUNet(), 1, 32)()
    before, step = peak(), training_step(VMUNet(), 1, size)
    step(), step()
    return peak() - before


def as_library() -> dict[str, float]:
    """Milliseconds of the forward and the step before a process has called `tune_cpu`."""
    model, swin, x = VMUNet().eval(), swin_unet().eval(), images(1, 256)
    times = common.medians({"VM-UNet": lambda: forward(model, x), "Swin U-Net": lambda: forward(swin, x)}, 9)
    steps = {f"{name}, step": training_step(net, 1, 256) for name, net in (("VM-UNet", model), ("Swin U-Net", swin))}
    return times | common.medians(steps, 5)


def main() -> None:
    report = common.start(__doc__, "model")
    # first, because a process inherits the peak of the one that started it
    peaks = {f"{size} x {size}": common.in_new_process(peak_growth, size) for size in (256, 512)}
    report.table("memory", [{"training step": size, "peak growth, GiB": gib} for size, gib in peaks.items()])
    untuned = common.in_new_process(as_library)
    report.table("as a library, without tune_cpu, 256 x 256, batch 1", rows_of(untuned, "VM-UNet"))
    torch.manual_seed(0)
    model, swin, loop, x = VMUNet().eval(), swin_unet().eval(), VMUNet(scan_backend="torch").eval(), images(1, 256)
    matmuls, scans = parts_alone(model, x)
    forwards = {
        "VM-UNet": lambda: forward(model, x),
        "its matmuls and convolutions alone": matmuls,
        "its scans alone": scans,
        "VM-UNet in bf16": lambda: forward_bf16(model, x),
        "Swin U-Net": lambda: forward(swin, x),
        "Swin U-Net, PyTorch's default matmuls": with_default_matmuls(lambda: forward(swin, x)),
        "VM-UNet, backend torch": lambda: forward(loop, x),
    }
    times = common.medians(forwards, 5)
    floor = times["its matmuls and convolutions alone"] + times["its scans alone"]
    times = {"VM-UNet": times.pop("VM-UNet"), "its floor": floor} | times
    report.table("forward, 256 x 256, batch 1", rows_of(times, "VM-UNet"))

    sizes = {f"{size} x {size}": functools.partial(forward, model, images(1, size)) for size in (256, 512, 1024)}
    sizes["256 x 256, batch 8"] = functools.partial(forward, model, images(8, 256))
    report.table("forward, growth", rows_of(common.medians(sizes, 3), "256 x 256"))

    swin_step = training_step(swin, 1, 256)
    steps = {
        "VM-UNet": training_step(model, 1, 256),
        "Swin U-Net": swin_step,
        "Swin U-Net, PyTorch's default matmuls": with_default_matmuls(swin_step),
        "VM-UNet, backend torch": training_step(loop, 1, 256),
    }
    report.table("training step, 256 x 256, batch 1", rows_of(common.medians(steps, 5), "VM-UNet"))
    sizes = {
        "256 x 256": steps["VM-UNet"],
        "512 x 512": training_step(model, 1, 512),
        "256 x 256, batch 8": training_step(model, 8, 256),
    }
    report.table("training step, growth", rows_of(common.medians(sizes, 3), "256 x 256"))

    model.eval()
    parts = [shares("forward", forwards["VM-UNet"])]
    model.train()
    report.table("where the time goes", [*parts, shares("training step", steps["VM-UNet"])])
    print(f"\nwritten to {report.path}")


def rows_of(times: dict[str, float], one: str) -> list[dict]:
    """Rows of times, each also as a multiple of that of `one`."""
    return [{"": name, "ms": ms, f"of {one}": ms / times[one]} for name, ms in times.items()]


if __name__ == "__main__":
    main()
