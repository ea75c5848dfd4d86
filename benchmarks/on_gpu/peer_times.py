"""VM-UNet beside other networks on one GPU: forward and training step at batch 32, 256 x 256, bf16, in CUDA graphs."""

import functools
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Report
from models.compile_ahead import compile_ahead
from models.cross_scan import mamba
from models.cuda_graphs import GraphedModel
from models.family import build_network
from models.vmunet import VMUNet

BATCH, SIZE, ROUNDS = 32, 256, 20
CALLS = 5  # one after the other between two looks at the clock: like a training loop, the CPU need not wait for the GPU
OURS, SWIN, UNET = "VM-UNet", "Swin U-Net", "U-Net"
FORWARD, STEP, PEAK = "forward, ms", "training step, ms", "peak of a step, GB"
GOALS = [(FORWARD, OURS, 7.5), (STEP, OURS, 28), (STEP, f"{OURS} / {SWIN}", 0.90)]  # at most, on an H200


def swin_unet() -> nn.Module:
    from benchmarks.model import swin_unet  # needs torchvision

    return swin_unet()


def unet() -> nn.Module:
    network = build_network({"network": "unet", "num_classes": 1, "input_channels": 3})
    return network.to(memory_format=torch.channels_last)


def original_scan() -> nn.Module:
    """Return VM-UNet with the scan of mamba_ssm. Raises ImportError if it is not installed."""
    mamba.selective_scan_fn()
    return VMUNet(scan_backend="mamba_ssm")


# The last one is the likeliest to fail, and a recording that fails may leave PyTorch's generator unusable.
BUILDERS = {OURS: VMUNet, SWIN: swin_unet, UNET: unet, f"{OURS}, scan of mamba_ssm": original_scan}


class Peer:
    """A network with its forward and its training step, both called often enough to be recorded as CUDA graphs."""

    def __init__(self, build: Callable[[], nn.Module], images: Tensor):
        torch.manual_seed(0)
        self.memory_before = torch.cuda.memory_allocated()
        self.images, network, self.why = images, build().to(images.device), ""  # why there are no graphs
        # without autocast's cache, as in training
        self.autocast = functools.partial(torch.autocast, images.device.type, torch.bfloat16, cache_enabled=False)
        compile_ahead(network, torch.bfloat16, images.device, trains=True)
        self.model: Any = GraphedModel(network)
        try:
            self.warm_up()
            assert self.model.training_steps.recorded and self.model.inferences.recorded, self.model.why_not()
        except Exception as error:
            traceback.print_exc()
            self.model, self.why = network, f"no CUDA graphs: {type(error).__name__}: {error}"[:150]
            self.warm_up()

    def warm_up(self) -> None:
        self.step = common.training_step(self.model, self.images, self.autocast)
        self.step()  # in which cuDNN tries algorithms, some of which need more memory
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):  # the first of them is recorded
            self.step()
        self.peak = (torch.cuda.max_memory_allocated() - self.memory_before) / 1e9
        self.model.eval()
        for _ in range(3):
            self.forward()

    @torch.inference_mode()
    def forward(self) -> None:
        with self.autocast():
            self.model(self.images)


def time_peers(report: Report) -> None:
    """Report times and memory of every network that can be built, the ratios, and the goals."""
    torch.backends.cudnn.benchmark = True  # the others' convolutions at their fastest; training itself is deterministic
    images = common.make_images(BATCH, SIZE).cuda()
    peers, notes = {}, []
    for name, build in BUILDERS.items():
        layout = torch.channels_last if name == UNET else torch.contiguous_format
        try:
            peers[name] = peer = Peer(build, images.contiguous(memory_format=layout))
            notes += [{"network": name, "note": peer.why}] if peer.why else []
        except Exception as error:
            if not isinstance(error, ImportError):
                traceback.print_exc()
            notes.append({"network": name, "note": f"not measured: {type(error).__name__}: {error}"[:300]})
    measured = {
        FORWARD: in_turns({name: peer.forward for name, peer in peers.items()}, peers, train=False),
        STEP: in_turns({name: peer.step for name, peer in peers.items()}, peers, train=True),
        PEAK: {name: peer.peak for name, peer in peers.items()},
    }
    for values in measured.values():
        values |= {f"{OURS} / {n}": values[OURS] / values[n] for n in (SWIN, UNET) if {OURS, n} <= values.keys()}
    shown = {name: f"{name} (no graphs)" for name, peer in peers.items() if peer.why}
    rows = [{"": row} | {shown.get(name, name): x for name, x in values.items()} for row, values in measured.items()]
    report.table(f"networks at batch {BATCH}, {SIZE} x {SIZE}, bf16, in CUDA graphs, medians of {ROUNDS}", rows)
    report.table("networks that are missing or have no graphs", notes)
    goals = []
    for row, name, goal in GOALS:
        if (value := measured[row].get(name)) is not None:
            met = "met" if value <= goal else "not met"
            goals.append({"": f"{name}: {row.split(',')[0]}", "goal, H200": goal, "measured": value, "result": met})
    report.table("goals, at most", goals)


def in_turns(runs: dict[str, Callable[[], None]], peers: dict[str, Peer], train: bool) -> dict[str, float]:
    """Return the median times of a call in ms."""

    def several(run: Callable[[], None]) -> None:
        for _ in range(CALLS):
            run()

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    for peer in peers.values():
        peer.model.train(train)
    times = common.medians({name: functools.partial(several, run) for name, run in runs.items()}, ROUNDS, clock)
    return {name: ms / CALLS for name, ms in times.items()}
