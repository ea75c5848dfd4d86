"""What a run left in its folder, read back: the source of every number in reports and tables."""

import dataclasses
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.files import read_rows
from utils.report.published import (
    OPTIMIZATION_IMAGES,
    OPTIMIZATION_VOLUMES,
    PUBLISHED_IMAGES,
    PUBLISHED_VOLUMES,
    ROWS,
    Change,
    changed_rows,
    differences,
    row_name,
)
from utils.runs.run import of_volumes

TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@dataclasses.dataclass(frozen=True)
class Record:
    """A run folder, at any stage. Raises FileNotFoundError without a config.json, ValueError for a damaged one."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"{self.folder}: found no config.json, expected a run folder such as results/<run>")
        missing = {"dataset", "network", "load_ckpt_path", "seed", "epochs", "test_only", "protocol"} - set(self.config)
        if missing:
            missing = ", ".join(sorted(missing))
            raise ValueError(f"{self.folder}/config.json: found no {missing}, expected the values of a run")

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The values that the run was started under."""
        return self._json("config.json")

    @property
    def of_volumes(self) -> bool:
        """Whether train_synapse.py made it."""
        return of_volumes(self.config)

    @property
    def defaults(self) -> dict[str, Any]:
        """The published values."""
        return PUBLISHED_VOLUMES if self.of_volumes else PUBLISHED_IMAGES

    @property
    def values(self) -> dict[str, Any]:
        """The config, with the defaults of fields that did not exist yet when the run was started."""
        return self.defaults | self.config

    @cached_property
    def facts(self) -> dict[str, Any]:
        """facts.json, what the run noted about itself (Run.note); empty for a run from before there was this file."""
        return self._json("facts.json") if (self.folder / "facts.json").is_file() else {}

    @property
    def recipe(self) -> str:
        """The recipe's name; "" for a run from before there were recipes."""
        return self.config.get("recipe", "")

    @cached_property
    def epochs(self) -> list[dict[str, float]]:
        """Rows of metrics.csv, as numbers; without the columns that an epoch did not measure."""
        return [{name: float(value) for name, value in row.items() if value} for row in self._rows("metrics.csv")]

    def curve(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """A column of metrics.csv as epochs and values; () twice where no epoch measured it."""
        rows = [row for row in self.epochs if name in row]
        return tuple(row["epoch"] for row in rows), tuple(row[name] for row in rows)

    @cached_property
    def scores(self) -> dict[str, Any]:
        """metrics.json; empty before the test."""
        return self._json("metrics.json") if (self.folder / "metrics.json").is_file() else {}

    @cached_property
    def tested(self) -> dict[str, dict[str, float]]:
        """{image or case: {score: number}} in the order of the file; empty before the test."""
        rows = self._rows("test_volumes.csv" if self.of_volumes else "test_images.csv")
        return {row.pop("name"): {name: float(value) for name, value in row.items() if value} for row in rows}

    @cached_property
    def log(self) -> list[str]:
        """The lines of log.txt without their times."""
        path = self.folder / "log.txt"
        if not path.is_file():
            return []
        return [TIME.sub("", line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]

    @property
    def finished(self) -> bool:
        """Whether the test has been written, after which only the report is left to do."""
        return bool(self.scores and self.tested)

    @property
    def best(self) -> dict[str, float] | None:
        """The row of the epoch that was selected, None without one."""
        if self.of_volumes and self.config["protocol"] == "holdout":
            return max(self.epochs, key=lambda row: row.get("dice_transunet", -1), default=None)
        name = "train_loss" if self.of_volumes else "val_loss"
        return min(self.epochs, key=lambda row: row.get(name, float("inf")), default=None)

    @property
    def row(self) -> str | None:
        """The row of the paper's tables that it belongs to, or a name like those; None if there is none."""
        return row_name(self.config)

    @property
    def published(self) -> dict[str, float]:
        """The paper's numbers for it, by the names of scores; empty where the paper has no such row."""
        return ROWS.get(self.row or "", {})

    @property
    def edited(self) -> list[Change]:
        """What was edited in the rows of configs/optim.py that it used, as far as its facts tell."""
        if "optimization" not in self.facts:
            return []
        published = OPTIMIZATION_VOLUMES if self.of_volumes else OPTIMIZATION_IMAGES
        return changed_rows(self.values, self.facts["optimization"], published)

    @property
    def differences(self) -> list[str]:
        """Why its scores can't stand beside the published ones."""
        reasons = differences(self.config, self.defaults, len(self.tested) or None, self.edited)
        done, planned = len(self.epochs), self.config["epochs"]
        if self.finished and self.values["stop_when_lost"] and 0 < done < planned:
            reasons.append(f"ended after epoch {done} of {planned} (--stop-when-lost)")
        return reasons

    def dice(self) -> dict[str, float]:
        """{image or case: Dice}: of the foreground; of several classes the mean of those the image or its prediction
        has; of volumes the mean over the organs by the published protocol."""
        return {name: mean_dice(row) for name, row in self.tested.items()}

    def _rows(self, name):
        try:
            return read_rows(self.folder / name)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder / name}: found {error}, expected a table of the run") from error

    def _json(self, name):
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.folder / name}: found no JSON ({error}), expected what the run wrote") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.folder / name}: found {type(content).__name__}, expected named values")
        return content


def mean_dice(row: dict[str, float]) -> float:
    """The Dice score of one image or case from its row of the test's table."""
    if "dsc" in row:
        return row["dsc"]
    organs = [value for name, value in row.items() if name.startswith("dice_transunet ")]
    if organs:
        return sum(organs) / len(organs)
    classes = [name.removeprefix("dsc_class") for name in row if name.startswith("dsc_class")]
    dice = [row[f"dsc_class{c}"] for c in classes if c != "0" and occurs(row, c)]
    return sum(dice) / len(dice) if dice else 0.0


def occurs(row: dict[str, float], c: str) -> bool:
    """Whether an image or its prediction has class `c`; yes, where the run stored no counts."""
    return row.get(f"tp_class{c}", 1) + row.get(f"fp_class{c}", 0) + row.get(f"fn_class{c}", 0) > 0
