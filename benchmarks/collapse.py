"""Where a training run breaks: norms of every tensor, its gradient and its step, while it trains.

    python -m benchmarks.collapse --trace trace.npz --dataset isic17 --load-ckpt-path none --precision bf16

All flags but --trace and --every are train.py's. The trace is written anew after every epoch:

    names               of the parameters
    step, lr, loss      of every traced optimizer step
    weight, gradient    (steps, parameters) norm of each parameter before the step, of its gradient before clipping
    update              (steps, parameters) norm of the change that the step made
    second              (steps, parameters) root of the mean of Adam's second moment
    epoch, block names, block, delta, rate    once an epoch, on one fixed batch in eval mode: root mean square of each
                        block's output; mean and largest step size delta of each scan; smallest decay rate A

docs/collapse.md shows what these say about the published recipe.
"""

import utils.machine.openmp  # noqa: F401  isort: skip (before torch)

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import train
from configs.config_setting import ISICConfig
from configs.recipes import parse_config
from models.vmunet.ss2d import SS2D
from models.vmunet.vmamba import VSSBlock
from utils.runs.checkpoint import unwrap
from utils.runs.command_line import run_command
from utils.runs.progress import Progress


class Trace:
    """Collects the figures and writes them to a file."""

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every
        self.columns: dict[str, list] = {}
        self.probe = None

    def add(self, **values) -> None:
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)

    def save(self, names: list[str], blocks: list[str]) -> None:
        arrays = {name: np.array(values, dtype=np.float32) for name, values in self.columns.items()}
        np.savez_compressed(self.path, names=names, blocks=blocks, **arrays)


def norms(tensors) -> np.ndarray:
    return torch.stack(torch._foreach_norm([t.detach().float() for t in tensors])).cpu().numpy()


class TracedProgress(Progress):
    """Progress that looks at the optimizer before and after each step, and at the network after each epoch."""

    trace: Trace

    def __init__(self, run, config, model, loader, *rest):
        super().__init__(run, config, model, loader, *rest)
        self.names, self.tensors = zip(*unwrap(model).named_parameters(), strict=True)
        self.blocks = {name: m for name, m in unwrap(model).named_modules() if isinstance(m, VSSBlock)}
        images = [loader.dataset[(0, i)][0] for i in range(min(8, len(loader.dataset)))]
        self.images = torch.stack(images)
        self.count = 0
        self.optimizer.register_step_pre_hook(self.before)
        self.optimizer.register_step_post_hook(self.after)

    def before(self, optimizer, args, kwargs) -> None:
        self.count += 1
        self.seen = self.count % self.trace.every == 0
        if self.seen:
            self.old = [t.detach().clone() for t in self.tensors]
            gradients = norms([t.grad for t in self.tensors])
            self.trace.add(step=self.count, lr=self.lr, weight=norms(self.tensors), gradient=gradients)

    def after(self, optimizer, args, kwargs) -> None:
        if self.seen:
            second = [optimizer.state[t]["exp_avg_sq"] for t in self.tensors]
            roots = norms([s.sqrt() for s in second]) / np.sqrt([t.numel() for t in self.tensors])
            self.trace.add(
                update=norms([new - old for new, old in zip(self.tensors, self.old, strict=True)]), second=roots
            )

    def on_step(self, loss, images_per_second) -> None:
        super().on_step(loss, images_per_second)
        if self.seen:
            self.trace.add(loss=loss)

    def finish_epoch(self, row, *rest, **options) -> None:
        self.look(row["epoch"])
        self.trace.save(list(self.names), list(self.blocks))
        super().finish_epoch(row, *rest, **options)

    @torch.no_grad()
    def look(self, epoch: int) -> None:
        """The network in float32 on the fixed batch."""
        model, found, handles = unwrap(self.model), {}, []

        def hook(name, block):
            def watch(module, inputs, output):
                scan: SS2D = module.self_attention
                x = scan_input(scan, module.ln_1(inputs[0]))
                steps = torch.einsum("bhwkr,kir->bhwki", x, scan.dt_projs_weight) + scan.dt_projs_bias
                delta = F.softplus(steps)
                found[name] = (rms(output), delta.mean().item(), delta.amax().item(), scan.A_logs.exp().amin().item())

            return block.register_forward_hook(watch)

        handles = [hook(name, block) for name, block in self.blocks.items()]
        model.eval()
        model(self.images.to(next(model.parameters()).device))
        for handle in handles:
            handle.remove()
        values = np.array([found[name] for name in self.blocks], dtype=np.float32).T
        self.trace.add(epoch=epoch, block=values[0], delta=values[1], largest_delta=values[2], rate=values[3])


def rms(x: torch.Tensor) -> float:
    return x.float().square().mean().sqrt().item()


def scan_input(scan: SS2D, x: torch.Tensor) -> torch.Tensor:
    """The low-rank steps (B, H, W, 4, R) that the scan makes of its input (B, H, W, C), as SS2D.forward does."""
    inner = scan.in_proj.weight.shape[0] // 2
    x = F.linear(x, scan.in_proj.weight[:inner])
    x = F.silu(scan.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    rank = scan.dt_projs_weight.shape[-1]
    return torch.einsum("bhwi,kri->bhwkr", x, scan.x_proj_weight)[..., :rank]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collapse", allow_abbrev=False, add_help=False)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--every", type=int, default=10)
    options, sys.argv[1:] = parser.parse_known_args()
    TracedProgress.trace = Trace(options.trace, options.every)
    train.Progress = TracedProgress
    run_command(train.main, ISICConfig, parse_config)


if __name__ == "__main__":
    main()
