"""Trace of a training that may collapse: step sizes, outputs and norms of the network.

    python -m benchmarks.collapse --trace trace --dataset isic17 --load-ckpt-path none --precision bf16

All flags but --trace and --every are train.py's. After each epoch two files are written:

    trace.csv   a row per epoch: the training loss and, for each block on one fixed batch (eval mode, float32), the
                largest and the mean step size delta of its scan and the root mean square of its output
    trace.npz   for each traced optimizer step: `step`, `lr`, `loss`; arrays (steps, parameters) with the norm of each
                parameter before the step (`weight`), of its gradient after clipping (`gradient`), of the change by the
                step (`update`), and the root of the mean of Adam's second moment (`second`); `names`

docs/collapse.md explains the results for the published recipe. benchmarks/collapse_plot.py draws them.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import train
import training
from configs.config_setting import ISICConfig
from configs.resolve import resolve
from models.vmunet.ss2d import SS2D
from models.vmunet.vmamba import VSSBlock
from models.weights.filling import unwrap
from utils.files import write_rows
from utils.runs.command_line import run
from utils.runs.training_state import TrainingState

BATCH = 8  # images of the fixed batch


class TracingState(TrainingState):
    """Reads the optimizer before and after each step, and the network after each epoch."""

    path: Path
    every: int  # steps

    def __init__(self, run, config, model, loader, *rest):
        super().__init__(run, config, model, loader, *rest)
        self.names, self.parameters = zip(*unwrap(model).named_parameters(), strict=True)
        self.blocks = {short(name): m for name, m in unwrap(model).named_modules() if isinstance(m, VSSBlock)}
        self.images = torch.stack([loader.dataset[(0, i)][0] for i in range(min(BATCH, len(loader.dataset)))])
        self.steps, self.rows, self.count = defaultdict[str, list](list), list[dict[str, float]](), 0
        self.optimizer.register_step_pre_hook(self.before_step)
        self.optimizer.register_step_post_hook(self.after_step)

    def before_step(self, optimizer, args, kwargs) -> None:
        self.count += 1
        self.traced = self.count % self.every == 0
        if self.traced:
            self.old = [p.detach().clone() for p in self.parameters]
            gradient = norms(p.grad for p in self.parameters)
            self.add(step=self.count, lr=self.lr, weight=norms(self.old), gradient=gradient)

    def after_step(self, optimizer, args, kwargs) -> None:
        if self.traced:
            moved = norms(new.detach() - old for new, old in zip(self.parameters, self.old, strict=True))
            sizes = np.sqrt([p.numel() for p in self.parameters])
            second = norms(optimizer.state[p]["exp_avg_sq"].sqrt() for p in self.parameters) / sizes
            self.add(update=moved, second=second)

    def on_step(self, loss, images_per_second) -> None:
        super().on_step(loss, images_per_second)
        if self.traced:
            self.add(loss=loss)

    def add(self, **values) -> None:
        for name, value in values.items():
            self.steps[name].append(value)

    def finish_epoch(self, scores, *rest, **options) -> None:
        self.rows.append({"epoch": self.epoch + 1, "train_loss": scores["train_loss"], **self.measure_blocks()})
        write_rows(self.path.with_suffix(".csv"), self.rows)
        arrays = {name: np.array(values, dtype=np.float32) for name, values in self.steps.items()}
        np.savez_compressed(self.path.with_suffix(".npz"), names=self.names, **arrays)
        super().finish_epoch(scores, *rest, **options)

    @torch.no_grad()
    def measure_blocks(self) -> dict[str, float]:
        """Return the step sizes and outputs of all blocks for the fixed batch."""
        model, found = unwrap(self.model), {}

        def measure(name, block, inputs, output):
            delta = step_sizes(block.self_attention, block.ln_1(inputs[0]))
            found[f"largest delta {name}"] = delta.amax().item()
            found[f"mean delta {name}"] = delta.mean().item()
            found[f"output {name}"] = output.float().square().mean().sqrt().item()

        handles = [block.register_forward_hook(partial(measure, name)) for name, block in self.blocks.items()]
        model.eval()
        model(self.images.to(next(model.parameters()).device))
        for handle in handles:
            handle.remove()
        return found


def short(name: str) -> str:
    """Shorten vmunet.layers_up.0.blocks.1 to decoder 0/1."""
    name = name.removeprefix("vmunet.").replace("layers_up.", "decoder ").replace("layers.", "encoder ")
    return name.replace(".blocks.", "/")


def norms(tensors: Iterable[torch.Tensor]) -> np.ndarray:
    return torch.stack(torch._foreach_norm([t.float() for t in tensors])).cpu().numpy()


def step_sizes(scan: SS2D, x: torch.Tensor) -> torch.Tensor:
    """Return delta (B, H, W, 4, I) of a scan for the input x (B, H, W, C), computed as in SS2D.forward."""
    x = F.linear(x, scan.in_proj.weight.chunk(2)[0])
    x = F.silu(scan.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    rank = scan.dt_projs_weight.shape[-1]
    low_rank = torch.einsum("bhwi,kri->bhwkr", x, scan.x_proj_weight[:, :rank])
    return F.softplus(torch.einsum("bhwkr,kir->bhwki", low_rank, scan.dt_projs_weight) + scan.dt_projs_bias)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collapse", allow_abbrev=False, add_help=False)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--every", type=int, default=10)
    options, sys.argv[1:] = parser.parse_known_args()
    TracingState.path, TracingState.every = options.trace, options.every
    training.TrainingState = TracingState
    run(train.main, ISICConfig, resolve)


if __name__ == "__main__":
    main()
