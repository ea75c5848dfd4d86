"""Where a training run stands, what it records of each epoch, and how it is saved."""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils import distributed
from utils.errors import NonFiniteLossError
from utils.files import read_rows, write_atomically
from utils.optim import adopt_length, build_optimizer, build_scheduler, step_scheduler
from utils.png import encode_png
from utils.runs.batches import Batches
from utils.runs.checkpoint import BackgroundSaver, copied, restore, training_state, unwrap
from utils.runs.left import TimeLeft
from utils.runs.lost import LossOfScore
from utils.runs.run import Run
from utils.runs.stopping import Stopped, on_signals
from utils.tensorboard import EventWriter
from utils.threads import InOrder

log = logging.getLogger("vmunet")

ADVICE = "best.pth is from before; --recipe stable has not done this so far, --stop-when-lost ends such runs"


class Progress:
    """Where a training run stands: optimizer and scheduler, finished epochs, the batches of the present one, steps and
    the best epoch so far; and its records: metrics.csv, TensorBoard, curves, checkpoints.

    `rows` are the tables of optimizers and schedulers; `state` is a checkpoint to go on from, or None; `data` is what
    `datasets.files.fingerprint` says of the data.

    Raises ValueError if the data are others than before, unless config.accept_changed_data."""

    def __init__(
        self,
        run: Run,
        config: Any,
        model: torch.nn.Module,
        loader: DataLoader,
        execution: Any,
        rows: tuple[dict, dict],
        state: dict[str, Any] | None = None,
        data: str = "",
    ) -> None:
        self.run, self.config, self.model, self.data = run, config, model, data
        self.scaler, self.stop = execution.scaler, execution.stop
        optimizers, schedulers = rows
        self.optimizer = build_optimizer(model, config, optimizers, config.opt_args)
        self.scheduler = build_scheduler(self.optimizer, config, schedulers, config.sch_args)
        self.epoch, self.step, self.best = 0, 0, {"value": float("inf"), "epoch": 0}
        self.held: dict[str, Any] | None = None  # what best.pth will hold, until latest.pth is written too
        self.saved: tuple[int, int] | None = None  # the epoch and step of latest.pth
        self.saved_at = -math.inf  # when it was written, by time.monotonic
        losses = []
        if state is not None:
            self._compare_data(state)
        if config.resume is not None:
            run.extend(config)
        if state is not None:
            self.epoch, self.step, self.best = restore(state, model, self.optimizer, self.scheduler, self.scaler)
            losses = state["losses"]
            self.saved, self.saved_at = (self.epoch, self.step), time.monotonic()
            if state["config"].get("epochs", config.epochs) != config.epochs:
                log.info("%s", adopt_length(self.scheduler, config))
        self.batches = Batches(loader, self.epoch + 1, losses)
        self.lost = LossOfScore()
        self.lost.replay(read_rows(run.metrics))
        self.writer: EventWriter  # in saved_when_stopped
        self.figures: InOrder  # are drawn while training goes on
        self.saver = BackgroundSaver()
        self.clock = TimeLeft(len(self.batches), config.epochs)

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """In this block SIGTERM and Ctrl-C let the batch finish; then everything is saved, and Stopped goes on."""
        with on_signals(self.stop.remember):
            self.writer = EventWriter(self.run.folder / "tensorboard", self.step)
            self.figures = InOrder(1, functools.partial(_show_drawn, self.writer))
            with contextlib.closing(self.writer), self.saver, self.figures:
                try:
                    yield
                except Stopped as stopped:
                    self._save()
                    self.saver.finish()
                    stopped.saved = True
                    raise
            distributed.barrier()  # the main process has written best.pth, which all read next

    def epochs(self) -> Iterator[int]:
        """The epochs that remain, counted from 1."""
        for epoch in range(self.epoch + 1, self.config.epochs + 1):
            if self.lost.since is not None and self.config.stop_when_lost:
                log.info("ended after epoch %d of %d (--stop-when-lost)", self.epoch, self.config.epochs)
                break
            self.clock.begin(self.batches.done)
            yield epoch
        self._save()
        if self.lost.since is not None:
            log.warning("note: this run %s", self.lost.sentence)
        log.info("best epoch: %d, with %.4f", self.best["epoch"], self.best["value"])

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def on_step(self, loss: float, images_per_second: float) -> None:
        self.step += 1
        self.clock.step(self.epoch)
        self._say_how_long()
        if self.step % self.config.print_interval == 0:
            self.writer.add_scalar("step/loss", loss, self.step)
            self.writer.add_scalar("step/lr", self.lr, self.step)
            self.writer.add_scalar("step/images_per_second", images_per_second, self.step)

    def finish_epoch(
        self,
        row: dict[str, Any],
        loss: float,
        samples: Sequence = (),
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Steps the schedule and records an epoch: TensorBoard, a row of metrics.csv, curves, and if they are due,
        best.pth, of the epoch with the lowest `loss`, and latest.pth. `samples` are shown as prediction panels.

        In this order, so that a run killed in between repeats the epochs since latest.pth and ends with the same files.

        Raises NonFiniteLossError instead of saving weights that nothing can go on from."""
        self._check_finite(row["epoch"], loss)
        self.saver.finish()  # the checkpoints of the last epoch, or why there are none
        self.figures.finish()
        self.epoch = row["epoch"]
        self.batches.next_epoch()
        step_scheduler(self.scheduler, loss)
        left = self.clock.finish_epoch(self.epoch)
        log.info("%s (of %d; %s)", ", ".join(f"{n} {v:.4g}" for n, v in row.items()), self.config.epochs, left)
        self._say_how_long()
        for name, value in row.items():
            self.writer.add_scalar(f"epoch/{name}", value, self.step)
        if samples and distributed.is_main():
            self.figures.submit(0, _draw_panels, samples, class_names, self.config.structure_colours, self.step)
        self.writer.flush()
        self.run.add_metrics(row)
        if self.lost.see(row):
            log.warning("the run %s; %s", self.lost.sentence, ADVICE)
            self.run.note("lost", self.lost.sentence, level=None)
        if distributed.is_main() and (self.epoch % self.config.val_interval == 0 or self.epoch == self.config.epochs):
            self.figures.submit(0, _draw_curves, self.run)
        if loss < self.best["value"]:
            self.best = {"value": loss, "epoch": self.epoch}
            self.held = copied(self._weights()) if distributed.is_main() else None
        if self.epoch % self.config.save_interval == 0 and distributed.is_main():
            self.saver.save(self.run.checkpoints / f"epoch_{self.epoch}.pth", self._weights())
        if distributed.from_main(time.monotonic() >= self.saved_at + self.config.checkpoint_interval):
            self._save()
        self.stop.check()

    def _compare_data(self, state):
        before = state.get("data") or self.data  # the first checkpoints don't say
        if before == self.data:
            return
        changed = f"the data have changed since epoch {state['epoch']}: files were added, removed or altered"
        if not self.config.accept_changed_data:
            raise ValueError(f"--resume {self.run.folder}: {changed}; --accept-changed-data goes on with them")
        self.run.note("changed_data", changed, logging.WARNING)

    def _say_how_long(self):
        news = self.clock.news()
        if news and distributed.is_main():
            level, sentence = news
            log.log(level, "%s", sentence)

    def panels_are_due(self, epoch: int) -> bool:
        """Whether predictions of this epoch are shown: every val_interval epochs, and of the last."""
        return epoch % self.config.val_interval == 0 or epoch == self.config.epochs

    def _check_finite(self, epoch, loss):
        names, parameters = zip(*unwrap(self.model).named_parameters(), strict=True)
        finite = torch.stack([parameter.isfinite().all() for parameter in parameters]).tolist()  # one wait for a GPU
        spoilt = [name for name, good in zip(names, finite, strict=True) if not good]
        if spoilt or not math.isfinite(loss):
            found = f"the loss that selects the best epoch is {loss}" if not spoilt else f"{spoilt[0]} is not finite"
            raise NonFiniteLossError(f"{found} after epoch {epoch}, which is not saved")

    def _weights(self):
        """What best.pth holds; of the weights themselves, no copy."""
        model = unwrap(self.model).state_dict()
        return {"model": model, "epoch": self.epoch, "config": dataclasses.asdict(self.config)}

    def _save(self):
        """Writes best.pth and then latest.pth as the run stands, unless they are there. All processes call it.

        Together, because best.pth must be of the best epoch that latest.pth knows: after a kill the epochs since then
        are repeated, on some GPUs with slightly other numbers."""
        if self.saved == (self.epoch, self.step):
            return
        self.figures.finish()  # a run that goes on from here does not draw them again
        if self.held is not None:
            self.saver.save(self.run.checkpoints / "best.pth", self.held)
            self.held = None
        state = training_state(
            self.model,
            self.optimizer,
            self.scheduler,
            self.scaler,
            self.epoch,
            self.step,
            self.best,
            dataclasses.asdict(self.config),
            self.batches.losses,
            self.data,
        )
        if distributed.is_main():
            self.saver.save_latest(self.run.checkpoints, state)
        distributed.barrier()
        self.saved, self.saved_at = (self.epoch, self.step), time.monotonic()


def _draw_panels(samples, class_names, colours, step):
    """(prediction panels as a picture, step)"""
    from utils.figures import draw_panels  # matplotlib, which the first step need not wait for

    return draw_panels(samples, class_names, colours), step


def _draw_curves(run):
    from utils.figures import save_curves

    save_curves(run.metrics, run.folder / "curves.png")


def _show_drawn(writer: EventWriter, _: tuple, drawing: Future) -> None:
    """Shows prediction panels in TensorBoard. Raises what went wrong with a figure."""
    if panels := drawing.result():
        writer.add_image("predictions", *panels)


def show_panels(
    folder: Path, samples: Sequence, step: int, class_names: Sequence[str] | None = None, colours: Sequence[str] = ()
) -> None:
    """Shows predictions of the test in a run's panels.png and, after so many steps of training, in its TensorBoard."""
    from utils.figures import draw_panels

    picture = draw_panels(samples, class_names, colours)
    write_atomically(folder / "panels.png", encode_png(picture))
    with contextlib.closing(EventWriter(folder / "tensorboard", step)) as writer:
        writer.add_image("test", picture, step)
