"""One epoch: `train_one_epoch` serves both scripts, `evaluate` serves validation and test."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from utils import distributed
from utils.arriving import Arriving
from utils.distributed import gather_over_ranks
from utils.errors import NonFiniteLossError
from utils.machine.device import DTYPES
from utils.metrics import class_counts_per_image, confusion_counts_per_image, summarize
from utils.runs.batches import Batches
from utils.runs.stopping import StopRequest


@dataclass
class Execution:
    """How a step is computed: where, in which precision, over how many batches, with which limit on the gradient; and
    whether a signal has asked to stop."""

    device: torch.device
    precision: str = "fp32"
    accumulation_steps: int = 1
    clip_grad_norm: float | None = None
    progress: bool = True  # show a progress bar, if a person sees it: not in a file or a pipe
    scaler: torch.amp.GradScaler = field(init=False)  # does nothing unless the precision is fp16
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self):
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def on_device(self, batches: Iterable) -> Iterator[tuple]:
        """The batches of (images, targets, names) on the device. A GPU gets the next batch while it computes on one."""
        if self.device.type != "cuda":
            for images, targets, names in batches:
                yield images.to(self.device), targets.to(self.device), names
            return
        here, aside, coming = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device), None
        for images, targets, names in batches:
            with torch.cuda.stream(aside):
                batch = images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True), names
            if coming is not None:
                yield coming
            here.wait_stream(aside)
            for tensor in batch[:2]:
                tensor.record_stream(here)
            coming = batch
        if coming is not None:
            yield coming

    @property
    def without_bar(self) -> bool | None:
        """tqdm's `disable`; None: unless stderr is a terminal."""
        return None if self.progress else True

    def autocast(self) -> contextlib.AbstractContextManager:
        """Without autocast's cache of rounded weights, through which the gradients of a weight that is used twice in a
        step would be added in the lower precision; CUDA graphs can't use it either."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision], cache_enabled=False)


def train_one_epoch(
    model: torch.nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    execution: Execution,
    on_step: Callable[[float, float], None] = lambda loss, images_per_second: None,
) -> float:
    """One pass over the `batches` of (images, targets, names) that remain of an epoch. Returns the mean loss of all its
    batches. `on_step` gets the loss and the images per second of each.

    Raises NonFiniteLossError before a step that would spoil the weights, Stopped after one if a signal asked for it (in
    several processes, after the one that follows)."""
    model.train()
    optimizer.zero_grad()
    scaler, together = execution.scaler, execution.accumulation_steps
    bar = tqdm(
        batches, "train", len(batches), initial=batches.done, unit="batch", leave=False, disable=execution.without_bar
    )
    for images, targets, names in execution.on_device(bar):
        start = time.perf_counter()
        with execution.autocast():
            logits = model(images)
        loss = criterion(logits, targets)
        arriving = Arriving(loss)
        first = batches.done // together * together  # of the batches that share this optimizer step
        group = min(together, len(batches) - first)
        scaler.scale(loss / group).backward()
        value = arriving.item()
        batches.record(value)
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss is {value} at batch {batches.done} of the epoch: {', '.join(names)}")
        step_is_due = batches.done == first + group
        if step_is_due:
            distributed.add_gradients(model)
            if execution.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), execution.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        rate = len(images) / (time.perf_counter() - start)
        bar.set_postfix(loss=f"{value:.4f}", lr=f"{optimizer.param_groups[0]['lr']:.2e}", img_s=f"{rate:.1f}")
        on_step(value, rate)
        if step_is_due:
            execution.stop.check_while_computing()
    return batches.mean_loss


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    loader: Iterable,
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    execution: Execution,
    threshold: float = 0.5,
    on_batch: Callable[..., None] = lambda images, targets, probs, names: None,
) -> tuple[dict, list]:
    """Loss and scores over `loader`: a dict with `loss` and the scores of `utils.metrics.summarize`, and a list of
    (name, confusion counts) for each image. `on_batch` sees every prediction; the test run saves its figures there.

    One class: pixels from `threshold` on are foreground. Several: the most probable class. Raises Stopped after a batch
    if a signal asked for it."""
    model.eval()
    distributed.copy_from_main(model.buffers())  # the averages of BatchNorm, which each rank has from its own images
    seen = []  # names, losses and counts of each batch, on the device until the end: it need not wait in between
    bar = tqdm(loader, desc="evaluate", unit="batch", leave=False, disable=execution.without_bar)
    for images, targets, names in execution.on_device(bar):
        if execution.stop.number:
            break
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
        seen.append((names, losses, counts))
        on_batch(images, targets, probs, names)
    execution.stop.check()
    rows = []
    for names, losses, counts in seen:
        rows += zip(names, losses.tolist(), counts.cpu(), strict=True)
    rows = sorted(gather_over_ranks(rows), key=lambda row: row[0])
    names, losses, counts = zip(*rows, strict=True)
    return {"loss": sum(losses) / len(losses), **summarize(torch.stack(counts))}, list(zip(names, counts, strict=True))
