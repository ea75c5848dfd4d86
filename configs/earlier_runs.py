"""Runs that are there already, and whether they are of a config: finished ones are not repeated, others go on."""

import dataclasses
import json
import logging
from pathlib import Path

from configs.base import BaseConfig
from configs.optim import OPTIMIZERS, SCHEDULERS, SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS
from configs.stored import ADDED_LATER
from utils.optim import optimization_values
from utils.report.published import EXECUTION
from utils.report.records import Record

log = logging.getLogger("vmunet")


def find_runs(work_dir: str | Path) -> list[Record]:
    """The records of all run folders in `work_dir`, oldest first; damaged ones are named and left out."""
    runs = []
    for path in sorted(Path(work_dir).glob("*/config.json"), key=lambda path: path.stat().st_mtime):
        try:
            runs.append(Record(path.parent))
        except (ValueError, OSError) as error:
            log.warning("left out: %s", error)
    return runs


def same_run(run: Record, config: BaseConfig) -> bool:
    """Whether a run was started under these values, but for those that can't change a score. Those of optimizer and
    scheduler count too, where the run noted them: the rows of configs/optim.py may have been edited since."""
    rows = (SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS) if config.of_volumes else (OPTIMIZERS, SCHEDULERS)
    built, wanted = json.loads(json.dumps([optimization_values(config, *rows), dataclasses.asdict(config)]))
    if run.facts.get("optimization", built) != built:
        return False
    return all(run.values.get(name) == value for name, value in wanted.items() if name not in EXECUTION)


def can_be_resumed(run: Record, config: BaseConfig) -> bool:
    """Whether it has the fields of a config of today."""
    fields = dataclasses.asdict(config).keys()
    return fields - ADDED_LATER <= run.config.keys() <= fields
