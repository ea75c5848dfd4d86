"""TensorBoard's event files."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from utils import distributed
from utils.plots import encode_png


class EventWriter:
    """Writes TensorBoard's event files, in the main process only.

    A run resumed after `step` steps makes TensorBoard discard later events. tensorboardX's SummaryWriter writes in a
    thread, which dies when the disk is full; the run would wait for it forever."""

    def __init__(self, folder: str | Path, step: int = 0):
        self.writer: EventsWriter | None = None
        if distributed.is_main():
            Path(folder).mkdir(exist_ok=True)
            suffix = f".{os.getpid()}.{time.time_ns()}"  # unique if a run resumes within a second
            self.writer = EventsWriter(str(Path(folder, "events")), suffix)
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._write(step=step, summary=summary.scalar(tag, value))

    def add_image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Write a picture, uint8 (H, W, 3)."""
        height, width, _ = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_png(picture))
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def _write(self, **event: Any) -> None:
        if self.writer is not None:
            self.writer.write_event(Event(wall_time=time.time(), **event))

    def flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
