"""How long a run still takes, as far as its steps and epochs tell."""

import logging
import time

LONG = 24 * 3600  # seconds; a run that takes longer is warned of
PATIENCE = 60.0  # seconds; of an epoch that takes longer one wants to hear before it has ended
STEPS, SECONDS = 2, 10.0  # so many steps and so long an estimate within an epoch waits
ADVICE = "it can be stopped and resumed at any time; a GPU, a smaller --image-size, fewer --epochs or images shorten it"


class TimeLeft:
    """Measures the steps and epochs of this process. `steps` make an epoch, `epochs` a run."""

    def __init__(self, steps: int, epochs: int) -> None:
        self.steps, self.epochs = steps, epochs
        self.seconds: float | None = None  # that are left, once there is enough to tell by
        self.spent: list[float] = []  # seconds of the whole epochs of this process
        self.begun, self.first, self.first_time, self.done = 0.0, 0, 0.0, 0
        self.slow, self.told, self.warned = False, False, False

    def begin(self, done: int) -> None:
        """An epoch begins, or goes on after so many steps."""
        self.begun, self.first, self.done = time.monotonic(), done, done

    def step(self, epoch: int) -> None:
        """A step is done, after `epoch` finished epochs."""
        self.done += 1
        if self.done - self.first == 1:
            self.first_time = time.monotonic()  # the first step compiles kernels and starts workers
        measured, spent = self.done - self.first - 1, time.monotonic() - self.first_time
        if measured >= STEPS and spent >= SECONDS:
            self.seconds = spent / measured * (self.steps * (self.epochs - epoch) - self.done)
            self.slow = spent / measured * self.steps > PATIENCE

    def finish_epoch(self, epoch: int) -> str:
        """After an epoch: how long the run still takes, in words."""
        if self.first == 0:
            self.spent.append(time.monotonic() - self.begun)
        recent = self.spent[1:][-20:] or self.spent  # the first also compiles
        if epoch >= self.epochs:
            return "the last"
        if not recent:
            return "time left unknown"
        self.seconds = sum(recent) / len(recent) * (self.epochs - epoch)
        return f"{words(self.seconds)} left"

    def news(self) -> tuple[int, str] | None:
        """How long the run takes, and the level to log it with: said once within the first epoch if that is slow, and
        as a warning, with advice, of a run of days."""
        if self.seconds is None or self.warned:
            return None
        sentence = f"training takes about {words(self.seconds)} from here on"
        if self.seconds > LONG:
            self.warned = True
            return logging.WARNING, f"{sentence}; {ADVICE}"
        if self.slow and not self.told and not self.spent:
            self.told = True
            return logging.INFO, sentence
        return None


def words(seconds: float) -> str:
    """A duration as a person says it, with two units at most."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
