"""What a run left in its folder, read back: the source of every number in reports and tables."""

import csv
import dataclasses
import io
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.files import check_name
from utils.report import checks
from utils.report.published import (
    OPTIMIZATION_IMAGES,
    OPTIMIZATION_VOLUMES,
    PUBLISHED_IMAGES,
    PUBLISHED_VOLUMES,
    ROWS,
    TESTED,
    Change,
    changed_rows,
    differences,
    row_name,
)
from utils.runs.run import of_volumes

TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
MOST_BYTES = 2**27  # of a file of records


@dataclasses.dataclass(frozen=True)
class Record:
    """A run folder, at any stage. Raises FileNotFoundError without a config.json.

    A folder may come from elsewhere: nothing outside of it is read, and what can't be what a run wrote raises a
    ValueError that names the file."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"{self.folder}: found no config.json, expected a run folder such as results/<run>")
        checks.check_config(self.config, self.defaults, self.folder / "config.json")

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
        facts = self._json("facts.json")
        checks.check_facts(facts, self.folder / "facts.json")
        return facts

    @property
    def num_classes(self) -> int:
        return self.values["num_classes"]

    @property
    def own_data(self) -> bool:
        """Whether it is about data that neither the paper nor the demo has."""
        return self.config["dataset"] not in (*TESTED, "demo")

    @property
    def fold(self) -> int | None:
        """Its fold of a cross-validation, None where there is none."""
        return self.values["fold"] if self.values.get("folds") else None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 1, 2, ..."""
        numbered = ["foreground"] if self.num_classes == 1 else [f"class {c}" for c in range(1, self.num_classes)]
        return self.scores.get("class_names") or self.values["class_names"] or numbered

    @property
    def class_colours(self) -> list[str]:
        """Colours of the same classes, such as "#ff0000"; [] for the usual ones."""
        in_masks = self.values.get("mask_values", [])[1:] if self.num_classes > 1 else []
        return self.values["class_colours"] or [text for text in in_masks if str(text).startswith("#")]

    @property
    def recipe(self) -> str:
        """The recipe's name; "" for a run from before there were recipes."""
        return self.config.get("recipe", "")

    @cached_property
    def epochs(self) -> list[dict[str, float]]:
        """Rows of metrics.csv, as numbers; without the columns that an epoch did not measure."""
        rows = checks.numbers_of_rows(self._rows("metrics.csv"), self.folder / "metrics.csv")
        checks.check_epochs(rows, self.folder / "metrics.csv")
        return rows

    def curve(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """A column of metrics.csv as epochs and values; () twice where no epoch measured it."""
        rows = [row for row in self.epochs if name in row]
        return tuple(row["epoch"] for row in rows), tuple(row[name] for row in rows)

    @cached_property
    def scores(self) -> dict[str, Any]:
        """metrics.json; empty before the test."""
        scores = self._json("metrics.json")
        checks.check_scores(scores, self.of_volumes, self.num_classes, self.folder / "metrics.json")
        return scores

    def score(self, name: str, number: int | None = None) -> float:
        """A score of metrics.json, or of its `classes` that with this `number`. Raises ValueError without one."""
        values = self.scores if number is None else self._classes()[number]
        if name not in values:
            raise ValueError(f"{self.folder / 'metrics.json'}: found no {name!r}, expected it among the scores")
        return values[name]

    def _classes(self):
        if "classes" not in self.scores:
            raise ValueError(f"{self.folder / 'metrics.json'}: found no 'classes', expected the scores of each class")
        return self.scores["classes"]

    @cached_property
    def tested(self) -> dict[str, dict[str, float]]:
        """{image or case: {score: number}} in the order of the file; empty before the test."""
        name = "test_volumes.csv" if self.of_volumes else "test_images.csv"
        rows, path = self._rows(name), self.folder / name
        numbers = checks.numbers_of_rows(rows, path, but=("name", "patient"))
        tested = dict(zip(checks.check_names(rows, path), numbers, strict=True))
        checks.check_tested(tested, self.scores.get("class_names", []) if self.of_volumes else None, path)
        return tested

    @cached_property
    def patients(self) -> dict[str, str]:
        """{case: its patient}; each case is one of its own where the test did not know."""
        rows = self._rows("test_volumes.csv")
        return {row["name"]: row.get("patient") or row["name"] for row in rows}

    @cached_property
    def log(self) -> list[str]:
        """The lines of log.txt without their times."""
        return [TIME.sub("", line) for line in self._text("log.txt", errors="replace").splitlines()]

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
        has; of volumes the mean over the structures by the published protocol."""
        return {name: mean_dice(row) for name, row in self.tested.items()}

    def file(self, *names: str) -> Path | None:
        """The file of these names below the folder, None if it is not there.

        Raises ValueError for names that are paths, links that lead out of the folder, and what is no plain file."""
        for name in names:
            check_name(name, self.folder)
        path = self.folder.joinpath(*names)
        if not path.exists():
            return None
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{path}: found a link that leads out of the run's folder, expected a file in it")
        if not path.is_file():
            raise ValueError(f"{path}: found no plain file, expected one that the run wrote")
        return path

    def _text(self, name, errors="strict"):
        """What a file holds; "" if it is not there."""
        path = self.file(name)
        if path is None:
            return ""
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path}: found {path.stat().st_size} bytes, expected at most {MOST_BYTES}")
        try:
            return path.read_text(encoding="utf-8", errors=errors)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: found {error}, expected text in UTF-8") from error

    def _rows(self, name):
        try:
            return list(csv.DictReader(io.StringIO(self._text(name), newline="")))
        except csv.Error as error:
            raise ValueError(f"{self.folder / name}: found {error}, expected a table of the run") from error

    def _json(self, name):
        """What a file of named values holds; {} if it is not there."""
        text = self._text(name)
        if not text and self.file(name) is None:
            return {}
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.folder / name}: found no JSON ({error}), expected what the run wrote") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.folder / name}: found {type(content).__name__}, expected named values")
        checks.check_depth(content, self.folder / name)
        return content


def mean_dice(row: dict[str, float]) -> float:
    """The Dice score of one image or case from its row of the test's table."""
    if "dsc" in row:
        return row["dsc"]
    structures = [value for name, value in row.items() if name.startswith("dice_transunet ")]
    if structures:
        return sum(structures) / len(structures)
    classes = [name.removeprefix("dsc_class") for name in row if name.startswith("dsc_class")]
    dice = [row[f"dsc_class{c}"] for c in classes if c != "0" and occurs(row, c)]
    return sum(dice) / len(dice) if dice else 0.0


def occurs(row: dict[str, float], c: str) -> bool:
    """Whether an image or its prediction has class `c`; yes, where the run stored no counts."""
    return row.get(f"tp_class{c}", 1) + row.get(f"fp_class{c}", 0) + row.get(f"fn_class{c}", 0) > 0
