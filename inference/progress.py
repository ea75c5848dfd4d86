"""Progress of long work: a bar in a terminal, else a line in the log each minute."""

import logging
import time
from typing import Any

from tqdm import tqdm

from utils import distributed

log = logging.getLogger("vmunet")

INTERVAL = 60  # seconds between two lines in the log


class Progress(tqdm):
    """A progress bar that disappears when closed; without a terminal, log lines such as "3 of 20 inputs"."""

    def __init__(self, total: int, unit: str):
        hidden = None if distributed.is_main() else True  # None: without a terminal
        super().__init__(total=total, desc=f"{unit}s", unit=unit, leave=False, disable=hidden)
        self.units, self.done, self.logged = f"{unit}s", 0, time.monotonic()

    def update(self, n: Any = 1) -> bool | None:
        """Count `n` more."""
        self.done += n
        if self.disable and time.monotonic() > self.logged + INTERVAL:
            self.logged = time.monotonic()
            log.info("%d of %d %s", self.done, self.total, self.units)
        return super().update(n)
