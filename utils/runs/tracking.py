"""`--log-to mlflow|wandb`: parameters, epochs, final scores and report.html also go to an experiment tracker.

The run folder stays the record. A tracker that can't be reached costs a warning, not the training: what it missed is
sent with a later epoch, and what it never got is in the folder.
"""

import contextlib
import dataclasses
import importlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils import distributed
from utils.files import read_json
from utils.runs.run_folder import Run

log = logging.getLogger("vmunet")

PROJECT = "vmunet"  # of both trackers, where their environment variables name none
LONGEST = 6000  # characters of a parameter in MLflow
SHORT_WAIT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers among values, under names that both trackers take."""
    return {
        re.sub(r"[^/\w.-]", "_", name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


class MLflow:
    """A run on the server of MLFLOW_TRACKING_URI; without it in MLflow's own place, below the current folder."""

    def __init__(self, mlflow: Any, run: Run, params: dict[str, Any]) -> None:
        self.mlflow, self.run, self.params = mlflow, run, params
        self.client: Any = None
        self.stored = run.folder / "mlflow_run.json"
        self.id = read_json(self.stored)["id"] if self.stored.exists() else None
        self.is_new = self.id is None

    def _start(self) -> None:
        for name, value in SHORT_WAIT.items():
            os.environ.setdefault(name, value)
        client = self.mlflow.MlflowClient()
        if self.id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = client.get_experiment_by_name(name)
            number = client.create_experiment(name) if experiment is None else experiment.experiment_id
            self.id = client.create_run(number, run_name=self.run.folder.name).info.run_id
            self.run.save_json(self.stored.name, {"id": self.id})
        if self.is_new:  # again if the server was lost after the last line; the same values are no change
            params = [self.mlflow.entities.Param(key, str(value)[:LONGEST]) for key, value in self.params.items()]
            client.log_batch(self.id, params=params)
        else:
            client.update_run(self.id, status="RUNNING")  # a resumed run goes on in its own
        self.client = client

    def add(self, values: dict[str, Any], epoch: int) -> None:
        if self.client is None:
            self._start()
        now = self.mlflow.utils.time.get_current_time_millis()
        metrics = [self.mlflow.entities.Metric(name, value, now, epoch) for name, value in numbers(values).items()]
        self.client.log_batch(self.id, metrics=metrics)

    def add_file(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def close(self, failed: bool) -> None:
        if self.client is not None:
            self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Wandb:
    """A run of Weights & Biases, which waits for lost connections itself. Without an API key, and with
    WANDB_MODE=offline, it stays in the run folder for `wandb sync`."""

    def __init__(self, wandb: Any, run: Run, params: dict[str, Any]) -> None:
        self.wandb, self.run, self.params = wandb, run, params
        self.tracked: Any = None

    def add(self, values: dict[str, Any], epoch: int) -> None:
        if self.tracked is None:
            mode = os.environ.get("WANDB_MODE") or ("online" if self.wandb.api.api_key else "offline")
            name = self.run.folder.name
            self.tracked = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=name,
                id=name,
                resume="allow",
                mode=mode,
                dir=self.run.folder,
                config=self.params,
            )
        self.tracked.log(numbers(values) | {"epoch": epoch})

    def add_file(self, path: Path) -> None:
        self.tracked.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, failed: bool) -> None:
        if self.tracked is not None:
            self.tracked.finish(exit_code=int(failed))


TRACKERS: dict[str, Callable[..., Any]] = {"mlflow": MLflow, "wandb": Wandb}


class Tracking:
    """Sends to a tracker in a thread, in order. After an error what is left waits for the next call."""

    def __init__(self, tracker: Any, name: str) -> None:
        self.tracker, self.name = tracker, name
        self.waiting: list[tuple[Callable[..., None], tuple]] = []
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self.warned = False

    def add(self, values: dict[str, Any], epoch: int) -> None:
        self._send(self.tracker.add, values, epoch)

    def add_file(self, path: Path) -> None:
        self._send(self.tracker.add_file, path)

    def close(self, failed: bool) -> None:
        self._send(self.tracker.close, failed)
        self.thread.shutdown()
        if self.waiting:
            log.warning("--log-to %s: %d messages were not sent; the run folder has them", self.name, len(self.waiting))

    def _send(self, call: Callable[..., None], *arguments: Any) -> None:
        self.thread.submit(self._deliver, call, arguments)

    def _deliver(self, call: Callable[..., None], arguments: tuple) -> None:
        self.waiting.append((call, arguments))
        try:
            while self.waiting:
                self.waiting[0][0](*self.waiting[0][1])
                del self.waiting[0]
        except Exception as error:  # whatever the tracker raises: a training does not depend on it
            if not self.warned:
                reason = (str(error).splitlines() or [""])[0] or type(error).__name__
                log.warning("--log-to %s: %s; the run continues, its folder has everything", self.name, reason)
                self.warned = True


@contextlib.contextmanager
def tracking(config: Any, run: Run) -> Iterator[Tracking | None]:
    """Yield the Tracking of `config.log_to`, closed at the end of the block; None without one, and in other processes.

    Raises ValueError if the tracker's package is not installed."""
    if config.log_to == "tensorboard" or not distributed.is_main():
        yield None
        return
    try:
        package = importlib.import_module(config.log_to)
    except ModuleNotFoundError as error:
        advice = f"pip install {config.log_to}"
        raise ValueError(f"--log-to {config.log_to}: found no module {error.name!r}, expected it; {advice}") from error
    tracked = Tracking(TRACKERS[config.log_to](package, run, dataclasses.asdict(config)), config.log_to)
    try:
        yield tracked
    except BaseException:
        tracked.close(failed=True)
        raise
    tracked.close(failed=False)
