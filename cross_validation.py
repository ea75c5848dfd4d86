"""`--folds 5 --fold all`: a run for each fold, one after the other, and the table over all of them.

The same command resumes where it stopped: finished folds are not trained again.
"""

import dataclasses
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.resolve import resolve
from report.groups import SCORES
from report.records import Record
from report.run_index import can_be_resumed, find_runs, latest_run
from utils import distributed
from utils.files import RESULTS, first_few, write_rows
from utils.runs.run_folder import stop_log

log = logging.getLogger("vmunet")


def run_folds(main: Callable[[Any], Any], config: Any) -> dict[str, float]:
    """Call `main` for each unfinished fold. Return the mean scores of all folds, which are also written to work_dir."""
    work_dir = Path(config.work_dir or RESULTS)
    level = logging.INFO if distributed.is_main() else logging.WARNING
    log.setLevel(level)
    folds = [dataclasses.replace(config, fold=fold) for fold in range(config.folds)]
    # all before the first run: under torchrun no process may see what another has begun
    before = find_runs(work_dir)
    for one, run in [(one, latest_run(before, one)) for one in folds]:
        if run is not None and run.finished:
            log.info("fold %d of 0..%d: finished in %s", one.fold, config.folds - 1, run.folder)
            continue
        log.info("fold %d of 0..%d", one.fold, config.folds - 1)
        if run is not None and can_be_resumed(run, one):
            options = {"resume": str(run.folder), "accept_changed_data": one.accept_changed_data, "debug": one.debug}
            one = resolve(type(config)(**options))
        main(one)
        stop_log()  # the run's, to which nothing of the next fold belongs
        log.setLevel(level)
    if not distributed.is_main():
        return {}
    found = find_runs(work_dir)
    runs = [run for run in (latest_run(found, one) for one in folds) if run is not None]
    pools: dict[str, list[str]] = {}
    for run in runs:
        pools.setdefault(run.facts.get("pool", ""), []).append(run.name)
    if len(pools) > 1:
        found = "; ".join(first_few(names) for names in pools.values())
        raise ValueError(f"{work_dir}: found folds of different data: {found}; expected one pool, so train all anew")
    path = work_dir / f"cross_validation_{runs[0].name}.csv"
    rows = table(runs)
    write_rows(path, rows)
    for name, score in SCORES[config.of_volumes].items():
        values = [run.score(name) for run in runs]
        single = ", ".join(score.text([value]) for value in values)
        log.info("%s over %d folds: %s (%s)", score.label, len(runs), score.text(values), single)
    log.info("table of the folds: %s", path)
    return {name: value for name, value in rows[-2].items() if isinstance(value, float)}


def table(runs: list[Record]) -> list[dict[str, Any]]:
    """Return rows with the scores of each run, their means and their standard deviations over the folds."""
    names = [name for name, value in runs[0].scores.items() if isinstance(value, float)]
    rows = [{"fold": run.config["fold"], "run": run.name} | {name: run.scores[name] for name in names} for run in runs]
    for fold, statistic in (("mean", statistics.fmean), ("deviation", statistics.stdev)):
        rows.append({"fold": fold, "run": ""} | {name: statistic(run.scores[name] for run in runs) for name in names})
    return rows
