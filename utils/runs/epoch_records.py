"""What a training records of each epoch: metrics.csv, TensorBoard, curves and prediction panels."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils import distributed
from utils.files import write_atomically
from utils.plots import encode_png
from utils.runs.run_folder import Run
from utils.runs.tracking import Tracking
from utils.tensorboard import EventWriter


class EpochRecords(contextlib.AbstractContextManager):
    """Writes the records of a run; figures are drawn in a thread while training continues.

    step     of the training at which it continues: what TensorBoard had beyond is taken back
    tracker  of --log-to, which gets the rows too"""

    def __init__(self, run: Run, step: int, tracker: Tracking | None = None) -> None:
        self.run, self.tracker = run, tracker
        self.writer = EventWriter(run.folder / "tensorboard", step)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="figures")
        self.figures: list[tuple[int, Future]] = []  # (step, picture of predictions; None: a file was drawn)

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def add_epoch(self, row: dict[str, Any], step: int) -> None:
        """Record an epoch in TensorBoard, as a row of metrics.csv, and in the tracker."""
        self.add_scalars({f"epoch/{name}": value for name, value in row.items()}, step)
        self.writer.flush()
        self.run.add_metrics(row)
        if self.tracker is not None:
            self.tracker.add(row, row["epoch"])

    def draw_panels(self, samples: Sequence, names: Sequence[str] | None, colours: Sequence[str], step: int) -> None:
        """Begin to draw predictions, (name, image, target, prediction) each, for TensorBoard."""
        self._begin(step, "draw_panels", samples, names, colours)

    def draw_curves(self, step: int) -> None:
        """Begin to draw curves.png from metrics.csv."""
        self._begin(step, "save_curves", self.run.metrics, self.run.folder / "curves.png")

    def _begin(self, step, function, *arguments):
        if distributed.is_main():
            self.figures.append((step, self.thread.submit(_draw, function, *arguments)))

    def finish(self) -> None:
        """Wait for the figures. Raise what went wrong with one."""
        figures, self.figures = self.figures, []
        for step, drawing in figures:
            if (picture := drawing.result()) is not None:
                self.writer.add_image("predictions", picture, step)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with contextlib.closing(self.writer):
            self.thread.shutdown(cancel_futures=error is not None)
            if error is None:
                self.finish()


def show_panels(
    folder: Path, samples: Sequence, step: int, class_names: Sequence[str] | None = None, colours: Sequence[str] = ()
) -> None:
    """Show predictions of the test in a run's panels.png and, after so many steps of training, in its TensorBoard."""
    picture = _draw("draw_panels", samples, class_names, colours)
    write_atomically(folder / "panels.png", encode_png(picture))
    with contextlib.closing(EventWriter(folder / "tensorboard", step)) as writer:
        writer.add_image("test", picture, step)


def _draw(function, *arguments):
    from utils import figures  # imports matplotlib, for which the first step need not wait

    return getattr(figures, function)(*arguments)
