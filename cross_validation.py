"""`--folds 5 --fold all`: a run for each fold, one after the other, and the table over all of them.

The same command again goes on where it stopped: folds that are finished are not trained again.
"""

import dataclasses
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.config_setting import ISICConfig
from configs.earlier_runs import can_be_resumed, find_runs, same_run
from utils import distributed
from utils.files import write_rows
from utils.report.groups import SCORES
from utils.report.records import Record
from utils.repository import RESULTS
from utils.runs.run import stop_log

log = logging.getLogger("vmunet")


def run_folds(main: Callable[[ISICConfig], Any], config: ISICConfig) -> dict[str, float]:
    """Calls `main` for each fold that is not finished, and returns the mean scores of all, also written to work_dir."""
    log.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    folds = [dataclasses.replace(config, fold=fold) for fold in range(config.folds)]
    # all at once: under torchrun no process may see what another has begun meanwhile
    for one, run in [(one, run_of(one)) for one in folds]:
        if run is not None and run.finished:
            log.info("fold %d of 0..%d: finished in %s", one.fold, config.folds - 1, run.folder)
            continue
        log.info("fold %d of 0..%d", one.fold, config.folds - 1)
        again = run is not None and can_be_resumed(run, one)
        main(dataclasses.replace(one, resume=str(run.folder)) if run and again else one)
        stop_log()  # the run's; what follows is not of this fold
        log.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    if not distributed.is_main():
        return {}
    runs = [run for run in map(run_of, folds) if run is not None]
    path = work_dir(config) / f"cross_validation_{runs[0].name}.csv"
    rows = table(runs)
    write_rows(path, rows)
    for label, values in lines(runs).items():
        log.info("%s over %d folds: %s", label, len(runs), values)
    log.info("table of the folds: %s", path)
    return {name: value for name, value in rows[-2].items() if isinstance(value, float)}


def work_dir(config: ISICConfig) -> Path:
    return Path(config.work_dir or RESULTS)


def run_of(config: ISICConfig) -> Record | None:
    """The finished run of a config, else the newest unfinished one, if there is any."""
    there = [run for run in find_runs(work_dir(config)) if same_run(run, config)]
    return next((run for run in reversed(there) if run.finished), there[-1] if there else None)


def table(runs: list[Record]) -> list[dict[str, Any]]:
    """Rows of the scores of each run, of their means and of their standard deviations over the folds."""
    names = [name for name, value in runs[0].scores.items() if isinstance(value, float)]
    rows = [{"fold": run.config["fold"], "run": run.name} | {name: run.scores[name] for name in names} for run in runs]
    columns = {name: [run.scores[name] for run in runs] for name in names}
    mean = {name: statistics.fmean(values) for name, values in columns.items()}
    deviation = {name: statistics.stdev(values) for name, values in columns.items()}
    return [*rows, {"fold": "mean", "run": ""} | mean, {"fold": "deviation", "run": ""} | deviation]


def lines(runs: list[Record]) -> dict[str, str]:
    """{score: "mean ± standard deviation (each fold's)"}"""
    return {
        score.label: f"{score.text(values)} ({', '.join(score.text([value]) for value in values)})"
        for name, score in SCORES[False].items()
        if len(values := [run.scores[name] for run in runs if isinstance(run.scores.get(name), float)]) == len(runs)
    }
