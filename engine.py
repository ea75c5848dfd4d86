"""One epoch: `train_one_epoch` serves both scripts, `evaluate` serves validation and test."""

import contextlib
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from utils.metrics import class_counts_per_image, confusion_counts_per_image, gather_over_ranks, summarize
from utils.stopping import StopRequest


class NonFiniteLossError(RuntimeError):
    """The loss or a weight became NaN or infinite; the message says where."""


@dataclass
class Execution:
    """How a step is computed: where, in which precision, over how many batches, with which limit on the gradient; and
    whether a signal has asked to stop."""

    device: torch.device
    precision: str = "fp32"
    accumulation_steps: int = 1
    clip_grad_norm: float | None = None
    progress: bool = True  # show a progress bar
    scaler: torch.amp.GradScaler = field(init=False)  # does nothing unless the precision is fp16
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self):
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def autocast(self):
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def train_one_epoch(
    model, loader, optimizer, criterion, execution, on_step=lambda loss, images_per_second: None, losses=None
):
    """One pass over `loader`, which yields (images, targets, names). Returns the mean of the batches' losses.

    losses    of the batches that an interrupted run has done of this epoch; the loader yields the rest of its
              len(loader) batches, whose losses are added to the list

    Raises NonFiniteLossError before a step that would spoil the weights, Stopped after one if a signal asked for it."""
    model.train()
    optimizer.zero_grad()
    losses, scaler = [] if losses is None else losses, execution.scaler
    bar = tqdm(
        loader, "train", len(loader), initial=len(losses), unit="batch", leave=False, disable=not execution.progress
    )
    for step, (images, targets, names) in enumerate(bar, len(losses)):
        start = time.perf_counter()
        images = images.to(execution.device, non_blocking=True)
        targets = targets.to(execution.device, non_blocking=True)
        with execution.autocast():
            logits = model(images)
        loss = criterion(logits, targets)
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {losses[-1]} at batch {step + 1} of the epoch: {', '.join(names)}")
        first = step - step % execution.accumulation_steps  # of the batches that share this optimizer step
        group = min(execution.accumulation_steps, len(loader) - first)
        scaler.scale(loss / group).backward()
        if step + 1 == first + group:
            if execution.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), execution.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        rate = len(images) / (time.perf_counter() - start)
        bar.set_postfix(loss=f"{losses[-1]:.4f}", lr=f"{optimizer.param_groups[0]['lr']:.2e}", img_s=f"{rate:.1f}")
        on_step(losses[-1], rate)
        if step + 1 == first + group:
            execution.stop.check()
    return sum(losses) / len(losses)


@torch.inference_mode()
def evaluate(model, loader, criterion, execution, threshold=0.5, on_batch=lambda images, targets, probs, names: None):
    """Loss and scores over `loader`: a dict with `loss` and the scores of `utils.metrics.summarize`, and a list of
    (name, confusion counts) for each image. `on_batch` sees every prediction; the test run saves its figures there.

    One class: pixels from `threshold` on are foreground. Several: the most probable class. Raises Stopped after a batch
    if a signal asked for it."""
    model.eval()
    rows = []
    bar = tqdm(loader, desc="evaluate", unit="batch", leave=False, disable=not execution.progress)
    for images, targets, names in bar:
        if execution.stop.number:
            break
        images = images.to(execution.device, non_blocking=True)
        targets = targets.to(execution.device, non_blocking=True)
        with execution.autocast():
            logits = model(images)
        logits = logits.float()
        if logits.shape[1] == 1:
            probs = logits.sigmoid()
            counts = confusion_counts_per_image(probs, targets, threshold)
        else:
            probs = logits.softmax(1)
            counts = class_counts_per_image(probs.argmax(1), targets, logits.shape[1])
        # every image counts once, whatever the batches: the published validation runs images one by one
        losses = torch.vmap(lambda *pair: criterion(*(t[None] for t in pair)))(logits, targets)
        rows += zip(names, losses.tolist(), counts.cpu(), strict=True)
        on_batch(images, targets, probs, names)
    execution.stop.check()
    rows = sorted(gather_over_ranks(rows), key=lambda row: row[0])
    names, losses, counts = zip(*rows, strict=True)
    return {"loss": sum(losses) / len(losses), **summarize(torch.stack(counts))}, list(zip(names, counts, strict=True))
