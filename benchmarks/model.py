"""VM-UNet on this machine's CPU: time, memory, where the time goes, against its floor and a Swin U-Net of its size.

    python benchmarks/model.py [--output model.json]

Ratios are of medians in one run. The floor is the same matrix products and convolutions alone, plus the scans."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from models.vmunet import VMUNet  # noqa: E402
from models.vmunet.ss2d import SS2D  # noqa: E402
from utils.losses import BceDiceWithLogitsLoss  # noqa: E402
from utils.products import use_fast_products  # noqa: E402

COLUMNS = ("what", "median_ms", "ratio", "to")


def median_ms(run, repeats=9):
    """The median wall time of `run()` after two calls to warm up."""
    run(), run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def forward(model, x):
    with torch.inference_mode():
        return model(x)


def training_step(model, optimizer, criterion, x, target):
    optimizer.zero_grad()
    criterion(model(x), target).backward()
    optimizer.step()


def make_step(model, batch, size):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, target = 255 * torch.rand(batch, 3, size, size), torch.rand(batch, 1, size, size).round()
    return lambda: training_step(model, optimizer, BceDiceWithLogitsLoss(), x, target)


def products_alone(model, x):
    """Runs every linear layer and convolution of the network on inputs of its own shapes, and nothing else."""
    calls = []

    def record(module, inputs, output):
        tokens = inputs[0]
        if isinstance(module, SS2D):
            inner = torch.randn(*tokens.shape[:-1], module.in_proj.out_features // 2)
            image = inner.permute(0, 3, 1, 2)
            weights = [*module.in_proj.weight.chunk(2), module.x_proj_weight.flatten(0, 1), module.out_proj.weight]
            calls.extend((F.linear, (tokens if w.shape[1] == tokens.shape[-1] else inner, w)) for w in weights)
            calls.append((module.conv2d.forward, (image,)))
        else:
            calls.append((module.forward, (tokens,)))

    layers = [m for m in model.modules() if isinstance(m, SS2D)]
    layers += [
        m for name, m in model.named_modules() if name.endswith(("reduction", "expand", "final_conv", "embed.proj"))
    ]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    forward(model, x)
    for hook in hooks:
        hook.remove()

    def run():
        with torch.inference_mode():
            for function, inputs in calls:
                function(*inputs)

    return run


def shares(run):
    """Milliseconds that a call of `run` spends in the scan, in products and convolutions, and in copies; and in all."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    spent = {event.key: event.self_cpu_time_total / 1e3 for event in profiler.key_averages()}
    groups = {
        "scan": ("vmunet::",),
        "products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn", "aten::mkldnn_", "aten::convolution"),
        "copies": ("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat"),
    }
    found = {group: sum(ms for key, ms in spent.items() if key.startswith(keys)) for group, keys in groups.items()}
    copies = sum(event.count for event in profiler.key_averages() if event.key == "aten::copy_")
    return {**found, "all": sum(spent.values()), "number of copies": copies}


def peak_growth(size):
    """GiB that a training step at batch 1 adds to a process that already holds the model and its optimizer."""
    command = [sys.executable, __file__, "--peak", str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_peak(size):
    """Runs in a process of its own: peaks never go down."""
    step = make_step(VMUNet(), 1, 32)
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = make_step(VMUNet(), 1, size)
    step()
    step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)


def main(output):
    from benchmarks.swin_unet import swin_unet

    environment = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fast products": use_fast_products(),
    }
    print(environment)
    torch.manual_seed(0)
    rows = []

    def add(what, ms, to=None):
        ratio = None if to is None else ms / next(row["median_ms"] for row in rows if row["what"] == to)
        rows.append({"what": what, "median_ms": ms, "ratio": ratio, "to": to})
        print(f"{what:44s} {ms:10.1f} ms" + ("" if to is None else f"   {ratio:6.2f} x {to}"), flush=True)

    model, x = VMUNet().eval(), 255 * torch.rand(1, 3, 256, 256)
    add("forward 256", median_ms(lambda: forward(model, x)))
    products = median_ms(products_alone(model, x))
    parts = shares(lambda: forward(model, x))
    add("floor: products alone and the scan", products + parts["scan"])
    add("forward 256 against its floor", rows[0]["median_ms"], "floor: products alone and the scan")
    for size, repeats in ((512, 5), (1024, 3)):
        larger = 255 * torch.rand(1, 3, size, size)
        add(f"forward {size}", median_ms(lambda: forward(model, larger), repeats), "forward 256")  # noqa: B023
    batch = 255 * torch.rand(8, 3, 256, 256)
    add("forward 256, batch 8", median_ms(lambda: forward(model, batch), 5), "forward 256")
    with torch.autocast("cpu", torch.bfloat16):
        add("forward 256, bf16", median_ms(lambda: forward(model, x)), "forward 256")
    step = make_step(VMUNet(), 1, 256)
    add("training step 256", median_ms(step), "forward 256")
    add("training step 256, batch 8", median_ms(make_step(VMUNet(), 8, 256), 3), "training step 256")
    swin = swin_unet().eval()
    add("Swin U-Net forward 256", median_ms(lambda: forward(swin, x)), "forward 256")
    add("Swin U-Net training step 256", median_ms(make_step(swin_unet(), 1, 256)), "training step 256")
    torch_loop = VMUNet(scan_backend="torch").eval()
    add("forward 256 with backend torch", median_ms(lambda: forward(torch_loop, x), 3), "forward 256")
    add(
        "training step 256 with backend torch",
        median_ms(make_step(VMUNet(scan_backend="torch"), 1, 256), 3),
        "training step 256",
    )
    memory = {size: round(peak_growth(size), 2) for size in (256, 512)}
    print("peak memory growth of a training step, GiB:", memory)
    training_parts = shares(step)
    for name, part in (("forward", parts), ("training step", training_parts)):
        print(f"{name}, ms:", {key: round(value, 1) for key, value in part.items()})
    report = {
        "environment": environment,
        "rows": rows,
        "peak GiB": memory,
        "forward": parts,
        "training": training_parts,
    }
    Path(output).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="model.json", help="where to write the numbers")
    parser.add_argument("--peak", type=int, help="only measure the peak memory at this size")
    options = parser.parse_args()
    if options.peak:
        measure_peak(options.peak)
    else:
        main(options.output)
