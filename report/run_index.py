"""The runs in a folder, and whether they are runs of a config: finished ones are not repeated, others are resumed."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from configs.optim import rows_of
from report.paper import NEUTRAL_FIELDS, RATES
from report.records import Record
from utils.optimizers import optimization_values

log = logging.getLogger("vmunet")


def find_runs(work_dir: str | Path) -> list[Record]:
    """Return the records of all run folders in `work_dir`, oldest first. Damaged ones are reported and left out."""
    runs = []
    for path in sorted(Path(work_dir).glob("*/config.json"), key=lambda path: path.stat().st_mtime):
        try:
            runs.append(Record(path.parent))
        except (ValueError, OSError) as error:
            log.warning("left out: %s", error)
    return runs


def latest_run(runs: list[Record], config: Any) -> Record | None:
    """Return the newest finished run of a config, else its newest unfinished one, else None."""
    same = [run for run in runs if same_run(run, config)]
    return next((run for run in reversed(same) if run.finished), same[-1] if same else None)


def same_run(run: Record, config: Any) -> bool:
    """Return whether a run was started under these values, apart from those that change no score. The values of
    optimizer and scheduler count if the run noted them: the rows of configs/optim.py may have been edited since."""
    built = json.loads(json.dumps(optimization_values(config, *rows_of(config))))  # with lists, as in facts.json
    wanted = dataclasses.asdict(config) | {name: built["optimizer"].get(name) for name in RATES}
    return (
        run.of_volumes is config.of_volumes
        and run.facts.get("optimization", built) == built
        and all(run.values.get(name) == value for name, value in wanted.items() if name not in NEUTRAL_FIELDS)
    )


def can_be_resumed(run: Record, config: Any) -> bool:
    """Return whether a config of today has all of its fields. Those that the run lacks came later."""
    return run.config.keys() <= dataclasses.asdict(config).keys()
