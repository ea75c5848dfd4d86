"""One epoch: `train_one_epoch` serves both scripts, `evaluate` serves validation and test of images."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from models.shared_batch import share_batch
from utils import distributed
from utils.distributed import AsyncScalar
from utils.errors import NonFiniteLossError
from utils.machine.device import DTYPES
from utils.metrics import class_counts_per_image, confusion_counts_per_image, summarize
from utils.runs.batches import Batches
from utils.runs.stopping import Stopped, StopRequest

LOWEST_SCALE = 2.0**-24  # of fp16's loss scale; at this scale every number of fp16 would be 0
Criterion = Callable[[Tensor, Tensor], Tensor]  # (logits, targets) of a batch -> scalar


@dataclass
class Compute:
    """Where and in which precision a network runs, and whether a signal has asked to stop."""

    device: torch.device
    precision: str = "fp32"
    scaler: torch.amp.GradScaler = field(init=False)  # does nothing unless the precision is fp16
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def prefetch(self, batches: Iterable, finish: Callable[..., tuple] = lambda *tensors: tensors) -> Iterator[tuple]:
        """Yield the batches of (images, targets, names) on the device. A GPU copies the next one while it computes.

        finish  changes images and targets on the device; it also gets the tensors that follow the names in a batch"""
        if self.device.type != "cuda":
            for images, targets, names, *drawn in batches:
                yield *finish(*(tensor.to(self.device) for tensor in (images, targets, *drawn))), names
            return
        compute, copy, ready = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device), None
        for images, targets, names, *drawn in batches:
            with torch.cuda.stream(copy):
                tensors = (tensor.to(self.device, non_blocking=True) for tensor in (images, targets, *drawn))
                batch = *finish(*tensors), names
            if ready is not None:
                yield ready
            compute.wait_stream(copy)
            for tensor in batch[:2]:
                tensor.record_stream(compute)
            ready = batch
        if ready is not None:
            yield ready

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return a context in which the network runs in `precision`.

        Autocast's cache of rounded weights is off: through it the gradients of a weight that is used twice in a step
        would be added in the lower precision, and CUDA graphs can't use it."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision], cache_enabled=False)


def train_one_epoch(
    model: torch.nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    criterion: Criterion,
    compute: Compute,
    accumulation_steps: int = 1,
    clip_grad_norm: float | None = None,
    on_step: Callable[[float, float], None] = lambda loss, images_per_second: None,
) -> float:
    """Train on the `batches` of (images, targets, names) that remain of an epoch. Return the mean loss of the epoch.

    criterion           any function of logits and targets; of a network with several outputs their losses are added
    accumulation_steps  batches whose gradients are added before an optimizer step
    clip_grad_norm      largest norm of the gradient of a step
    on_step             gets the loss and the images per second of each batch

    With several processes, each has its share of every batch; the loss is that of the whole batch.

    Raises NonFiniteLossError for a loss or a gradient that is not finite, before the step is taken. On a GPU a gradient
    is found one step later, to avoid a wait, and no checkpoint is written in between. Raises Stopped after a step if a
    signal asked for it (in several processes, after the next step)."""
    model.train()
    optimizer.zero_grad()
    scaler, gradients, group = compute.scaler, GradientCheck(), []  # group: names of the images of a step
    bar = progress_bar(batches, "train", "batch", len(batches), batches.done)
    for images, targets, names in compute.prefetch(bar, batches.finish):
        start = time.perf_counter()
        share_batch(batches.shares, distributed.rank())
        with compute.autocast():
            outputs = model(images)
        loss = total_loss(criterion, *distributed.gather_batch((outputs, targets), batches.shares))
        arriving = AsyncScalar(loss)
        group_start = batches.done // accumulation_steps * accumulation_steps
        group_size = min(accumulation_steps, len(batches) - group_start)
        scaler.scale(loss / group_size).backward()
        value = arriving.item()
        gradients.check()  # of the previous step
        batches.record(value)
        if not math.isfinite(value):
            raise not_finite("loss", value, batches.position, names)
        group += names
        step_is_due = batches.done == group_start + group_size
        if step_is_due:
            distributed.all_reduce_gradients(model)
            if clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
            elif not scaler.is_enabled():
                norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            if not scaler.is_enabled():  # the scaler skips such steps itself while it searches the largest scale
                gradients.expect(norm, batches.position, group)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            group = []
        rate = len(images) / (time.perf_counter() - start)
        bar.set_postfix(loss=f"{value:.4f}", lr=f"{optimizer.param_groups[0]['lr']:.2e}", img_s=f"{rate:.1f}")
        on_step(value, rate)
        if step_is_due:
            try:
                compute.stop.check_while_computing()
            except Stopped:  # the weights of this step are about to be saved
                gradients.check()
                raise
    gradients.check()
    if scaler.is_enabled() and scaler.get_scale() < LOWEST_SCALE:
        found = f"found gradients that are not finite even at a loss scale of {scaler.get_scale():g}"
        raise NonFiniteLossError(f"--precision fp16: {found}, in epoch {batches.epoch}")
    return batches.mean_loss


class GradientCheck:
    """Detects gradients that are not finite, by their norm. Reads a GPU's norm one step later, to avoid a wait."""

    def __init__(self) -> None:
        self.pending: tuple[AsyncScalar, str, list[str]] | None = None

    def expect(self, norm: Tensor, position: str, names: list[str]) -> None:
        """Begin to read the norm of a step on the images `names`. A norm on the CPU is checked at once."""
        self.pending = AsyncScalar(norm), position, names
        if not norm.is_cuda:
            self.check()

    def check(self) -> None:
        """Raise NonFiniteLossError if the pending norm is not finite."""
        if self.pending is not None:
            norm, position, names = self.pending
            self.pending = None
            if not math.isfinite(value := norm.item()):
                raise not_finite("norm of the gradient", value, position, names)


def not_finite(what: str, value: float, position: str, names: list[str]) -> NonFiniteLossError:
    """Return the error of a step on the images `names` of this process. Every process must call it."""
    return NonFiniteLossError(f"the {what} is {value} in {position}: {', '.join(distributed.gather_rows(names))}")


def total_loss(criterion: Criterion, outputs: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
    """Return the loss of the logits, in float32 at least, or the sum of the losses of several.

    Raises ValueError for a loss that is not one number."""
    several = [outputs] if isinstance(outputs, Tensor) else outputs
    low = (torch.float16, torch.bfloat16)  # which overflow, or round, in the sums over an image
    losses = [criterion(logits.float() if logits.dtype in low else logits, targets) for logits in several]
    for loss in losses:
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"--loss: found {found}, expected a tensor with one number for a batch")
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    loader: Iterable,
    criterion: Criterion,
    compute: Compute,
    threshold: float = 0.5,
    on_batch: Callable[..., None] = lambda images, targets, predictions, names: None,
    ignore_label: int | None = None,
) -> tuple[dict, list]:
    """Return the scores over `loader` and the counts behind them: a dict with `loss` and the scores of
    `utils.metrics.summarize`, and a list of (name, confusion counts) for each image.

    threshold     one class: pixels from this probability on are foreground. Of several the most probable class counts.
    on_batch      gets every batch with its predictions: masks or class numbers, uint8 (B, H, W)
    ignore_label  pixels of this class number are not counted; on_batch gets them as background

    Raises Stopped after a batch if a signal asked for it."""
    model.eval()
    distributed.broadcast(model.buffers())  # the averages of BatchNorm, which each rank has from its own images
    results = []  # names, losses and counts of each batch, on the device until the end: no wait in between
    for images, targets, names in compute.prefetch(progress_bar(loader, "evaluate", "batch")):
        if compute.stop.number:
            break
        with compute.autocast():
            outputs = model(images)
        logits = (outputs if isinstance(outputs, Tensor) else outputs[0]).float()
        if logits.shape[1] == 1:
            probs = logits.sigmoid()
            predictions = probs[:, 0] >= threshold
            counts = confusion_counts_per_image(probs, targets, threshold)
        else:
            predictions = logits.softmax(1).argmax(1)
            counts = class_counts_per_image(predictions, targets, logits.shape[1], ignore_label)
        # every image counts once, whatever the batches: the published validation runs images one by one
        losses = torch.stack([criterion(one[None], target[None]) for one, target in zip(logits, targets, strict=True)])
        results.append((names, losses, counts))
        shown = targets if ignore_label is None else targets.masked_fill(targets == ignore_label, 0)
        on_batch(images, shown, predictions.byte(), names)
    compute.stop.check()
    rows = []
    for names, losses, counts in results:
        rows += zip(names, losses.tolist(), counts.cpu(), strict=True)
    rows = sorted(distributed.gather_rows(rows), key=lambda row: row[0])
    names, losses, counts = zip(*rows, strict=True)
    return {"loss": sum(losses) / len(losses), **summarize(torch.stack(counts))}, list(zip(names, counts, strict=True))


def progress_bar(items: Iterable, title: str, unit: str, total: int | None = None, done: int = 0) -> tqdm:
    """Return the items with a progress bar: in the main process, if stderr is a terminal."""
    hidden = None if distributed.is_main() else True  # None: tqdm looks whether it is a terminal
    return tqdm(items, title, total, initial=done, unit=unit, leave=False, disable=hidden)
