"""The state of a training: optimizer, schedule, epoch, step, best epoch; how it is saved and restored."""

import contextlib
import copy
import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.utils.data import DataLoader

from models.weights.filling import unwrap
from utils import distributed
from utils.ema import WeightAverage
from utils.errors import NonFiniteLossError
from utils.files import read_rows
from utils.optimizers import adopt_length, build_optimizer, build_scheduler, step_scheduler
from utils.runs.batches import Batches
from utils.runs.checkpoint import BackgroundSaver, restore, save_checkpoint, save_latest, training_state
from utils.runs.collapse import CollapseDetector
from utils.runs.epoch_records import EpochRecords
from utils.runs.run_folder import Run
from utils.runs.stopping import Stopped, on_signals
from utils.runs.tracking import Tracking

log = logging.getLogger("vmunet")

MAIN_SCORES = ("dsc", "dice_transunet")  # shown in the line of an epoch; metrics.csv has all scores
ADVICE = "no run of --recipe stable has collapsed so far; --stop-when-lost ends such runs"


class TrainingState:
    """A training between two epochs, or within one.

    rows   the tables of optimizers and schedulers
    state  a checkpoint to continue from, or None
    data   hashes of the data files: the first is saved, a checkpoint may have any
    selected_by  the name of the loss or score that selects the best epoch
    tracker  of --log-to

    Raises ValueError if the data have changed since the checkpoint, unless config.accept_changed_data."""

    def __init__(
        self,
        run: Run,
        config: Any,
        model: torch.nn.Module,
        loader: DataLoader,
        compute: Any,
        rows: tuple[dict, dict],
        state: dict[str, Any] | None = None,
        data: Sequence[str] = ("",),
        selected_by: str = "val_loss",
        tracker: Tracking | None = None,
    ) -> None:
        self.run, self.config, self.model, self.compute, self.data = run, config, model, compute, data
        self.selected_by, self.tracker = selected_by, tracker
        optimizers, schedulers = rows
        self.optimizer = build_optimizer(model, config, optimizers, config.opt_args)
        self.scheduler = build_scheduler(self.optimizer, config, schedulers, config.sch_args)
        self.parts = dict(
            model=unwrap(model), optimizer=self.optimizer, scheduler=self.scheduler, scaler=compute.scaler
        )
        self.average = WeightAverage(unwrap(model), config.ema) if config.ema else None
        if self.average is not None:  # which is the model of all checkpoints
            self.optimizer.register_step_post_hook(self.average.update)
            self.parts |= dict(model=self.average.module, average=self.average)
        self.epoch, self.step, self.best = 0, 0, {"value": math.inf, "epoch": 0}
        self.best_weights: dict[str, Any] | None = None  # written together with the next latest.pth
        self.saved: tuple[int, int] | None = None  # the epoch and step of latest.pth
        self.saved_at = -math.inf  # when it was written, by time.monotonic
        losses = []
        if state is not None:
            self._compare_data(state)
        if config.resume is not None:
            run.extend(config)
        if state is not None:
            restore(state, self.parts)
            self.epoch, self.step, self.best, losses = (state[name] for name in ("epoch", "step", "best", "losses"))
            self.saved, self.saved_at = (self.epoch, self.step), time.monotonic()
            if state["config"].get("epochs", config.epochs) != config.epochs:
                log.info("%s", adopt_length(self.scheduler, config))
        self.batches = Batches(loader, self.epoch + 1, losses)
        self.collapse = CollapseDetector()
        self.collapse.replay(read_rows(run.metrics))
        self.saver = BackgroundSaver()
        self.class_names = config.structures if config.num_classes > 1 else None
        self.records: EpochRecords  # in saved_when_stopped
        self.seconds: list[float] = []  # of the epochs of this process
        self.epoch_start = 0.0

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator["TrainingState"]:
        """Finish the batch, save everything and raise Stopped if SIGTERM or Ctrl-C comes in this block."""
        with on_signals(self.compute.stop.remember):
            self.records = EpochRecords(self.run, self.step, self.tracker)
            with self.saver, self.records:
                try:
                    yield self
                except Stopped as stopped:
                    self._save()
                    self.saver.finish()
                    stopped.saved = True
                    raise
            distributed.barrier()  # the main process has written best.pth, which all read next

    def epochs(self) -> Iterator[int]:
        """Yield the epochs that remain, counted from 1."""
        for epoch in range(self.epoch + 1, self.config.epochs + 1):
            if reason := self._why_to_end():
                log.info("ended after epoch %d of %d (%s)", self.epoch, self.config.epochs, reason)
                break
            self.epoch_start = time.perf_counter()
            yield epoch
        self._save()
        if self.collapse.since is not None:
            log.warning("note: this run %s", self.collapse.sentence)
        best = self.best["value"] if self.selected_by.endswith("loss") else 1 - self.best["value"]  # a score
        log.info("%s epoch: %d, with %s %.4f", self.config.select, self.best["epoch"], self.selected_by, best)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a block in which the model has the weights to evaluate: with config.ema, their moving average."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def _why_to_end(self):
        """Return the reason why a run ends before its last epoch; None if the run continues."""
        patience, best = self.config.early_stopping, self.best["epoch"]
        if self.collapse.since is not None and self.config.stop_when_lost:
            return "--stop-when-lost"
        if patience is not None and self.epoch - best >= patience and best > 0:
            return f"--early-stopping {patience}; the best {self.selected_by} is that of epoch {best}"
        return None

    @property
    def step_options(self) -> dict[str, Any]:
        """Return what `engine.train_one_epoch` is to know of the config, and `on_step`."""
        config = self.config
        return dict(
            accumulation_steps=config.accumulation_steps, clip_grad_norm=config.clip_grad_norm, on_step=self.on_step
        )

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def on_step(self, loss: float, images_per_second: float) -> None:
        self.step += 1
        if self.step % self.config.print_interval == 0:
            values = {"step/loss": loss, "step/lr": self.lr, "step/images_per_second": images_per_second}
            self.records.add_scalars(values, self.step)

    def finish_epoch(self, scores: dict[str, Any], selected_by: float, samples: Sequence = ()) -> None:
        """Step the schedule and record an epoch: TensorBoard, a row of metrics.csv, curves, and if they are due,
        best.pth and latest.pth.

        In this order, so that a run killed in between repeats the epochs since latest.pth and ends with the same files.

        scores       columns of metrics.csv, the training loss among them
        selected_by  a loss or 1 - score; best.pth is of the epoch in which this is lowest, or with select "last" of
                     the last epoch
        samples      shown as prediction panels every val_interval epochs, and of the last

        Raises NonFiniteLossError instead of saving weights from which nothing can continue."""
        self._check_finite(self.epoch + 1, selected_by)
        self.saver.finish()  # the checkpoints of the last epoch, or why there are none
        self.records.finish()
        self.epoch += 1
        self.seconds.append(time.perf_counter() - self.epoch_start)
        usage = {"seconds": round(self.seconds[-1], 3), **self.batches.usage(self.compute.device)}
        row = {"epoch": self.epoch, "lr": self.lr, **scores, **usage}
        self.batches.next_epoch()
        step_scheduler(self.scheduler, selected_by)
        shown = dict.fromkeys(("lr", "train_loss", self.selected_by, *MAIN_SCORES))
        values = ", ".join(f"{name} {row[name]:.4g}" for name in shown if name in row)
        recent = self.seconds[1:][-20:] or self.seconds  # without the first, which compiles kernels
        left = timedelta(seconds=round(statistics.fmean(recent) * (self.config.epochs - self.epoch)))  # as h:mm:ss
        log.info("epoch %d of %d, %s, %s left", self.epoch, self.config.epochs, values, left)
        due = self.epoch % self.config.val_interval == 0 or self.epoch == self.config.epochs
        if due and samples:
            self.records.draw_panels(samples, self.class_names, self.config.structure_colours, self.step)
        self.records.add_epoch(row, self.step)
        if self.collapse.add_epoch(row):
            kept = "best.pth is from before; " if self.config.select == "best" else ""
            log.warning("the run %s; %s%s", self.collapse.sentence, kept, ADVICE)
            self.run.note("lost", self.collapse.sentence, level=None)
        if due:
            self.records.draw_curves(self.step)
        if self.config.select == "last" or selected_by < self.best["value"]:
            self.best = {"value": selected_by, "epoch": self.epoch}
            self.best_weights = copy.deepcopy(self._weights()) if distributed.is_main() else None
        if self.epoch % self.config.save_interval == 0 and distributed.is_main():
            self.saver.submit(save_checkpoint, self.run.checkpoints / f"epoch_{self.epoch}.pth", self._weights())
        if distributed.broadcast_object(time.monotonic() >= self.saved_at + self.config.checkpoint_interval):
            self._save()
        self.compute.stop.check()

    def _compare_data(self, state):
        if not state.get("data") or state["data"] in self.data:  # the first checkpoints have no hash
            return
        changed = f"the data have changed since epoch {state['epoch']}: files were added, removed or altered"
        if not self.config.accept_changed_data:
            raise ValueError(f"--resume {self.run.folder}: {changed}; --accept-changed-data continues with them")
        self.run.note("changed_data", changed, logging.WARNING)

    def _check_finite(self, epoch, loss):
        names, parameters = zip(*self.parts["model"].named_parameters(), strict=True)
        finite = torch.stack([parameter.isfinite().all() for parameter in parameters]).tolist()  # one wait for a GPU
        spoilt = [name for name, good in zip(names, finite, strict=True) if not good]
        if spoilt or not math.isfinite(loss):
            found = f"{spoilt[0]} is not finite" if spoilt else f"{self.selected_by}, which selects epochs, is {loss}"
            raise NonFiniteLossError(f"{found} after epoch {epoch}, which is not saved")

    def _weights(self):
        """Return what best.pth holds; the weights themselves, no copy."""
        model = self.parts["model"].state_dict()
        return {"model": model, "epoch": self.epoch, "config": dataclasses.asdict(self.config)}

    def _save(self):
        """Write best.pth and then latest.pth of the present state, unless they are there. All processes call it.

        Together, because best.pth must be of the best epoch that latest.pth knows: after a kill the epochs since then
        are repeated, on some GPUs with slightly other numbers."""
        if self.saved == (self.epoch, self.step):
            return
        self.records.finish()  # a run that continues from here does not draw them again
        if self.best_weights is not None:
            self.saver.submit(save_checkpoint, self.run.checkpoints / "best.pth", self.best_weights)
            self.best_weights = None
        position = dict(epoch=self.epoch, step=self.step, losses=list(self.batches.losses), best=self.best)
        state = training_state(self.parts, **position, config=dataclasses.asdict(self.config), data=self.data[0])
        if distributed.is_main():
            self.saver.submit(save_latest, self.run.checkpoints, state)
        distributed.barrier()
        self.saved, self.saved_at = (self.epoch, self.step), time.monotonic()
