"""What a run left in its folder, read back: the source of every number in reports and tables."""

import contextlib
import dataclasses
import math
import re
import shutil
import statistics
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.optim import rows_of
from configs.options import published_values
from configs.resolve import config_class_of, kind_of
from datasets.lesions import lesion_of
from report import paper, record_checks
from utils.files import check_name, read_json, read_rows

TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
MAX_BYTES = 2**27  # of a file
TABLES = ("metrics.csv", "test_images.csv", "test_volumes.csv")
SMALL_FILES = ("config.json", "facts.json", "metrics.json", *TABLES, "curves.png")


@dataclasses.dataclass(frozen=True)
class Record:
    """A run folder, at any stage. Raises FileNotFoundError without a config.json.

    A folder may come from elsewhere: nothing outside of it is read, and impossible values raise a ValueError that names
    the file."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"{self.folder}: found no config.json, expected a run folder such as results/<run>")
        self.checked_config  # noqa: B018, raises errors

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json: the values that the run was started under."""
        return self._json("config.json")

    @property
    def config_class(self) -> Any:
        return config_class_of(kind_of(self.config))

    @property
    def of_volumes(self) -> bool:
        return self.config_class.of_volumes

    @cached_property
    def checked_config(self) -> Any:
        """The same as a config, without the options of machine and run."""
        return record_checks.stored_config(self.config, self.config_class, self.folder / "config.json")

    @cached_property
    def values(self) -> dict[str, Any]:
        """The same with the published values of fields that did not exist yet. A rate of None, which stands for that of
        the optimizer's row, has its number."""
        checked = vars(self.checked_config).items()
        values = self.config | {name: v for name, v in checked if name not in record_checks.MACHINE_AND_RUN}
        rows, _ = rows_of(self.checked_config)
        row = self.facts["optimization"]["optimizer"] if "optimization" in self.facts else rows[values["opt"]]
        return values | {name: row.get(name) for name in paper.RATES if values[name] is None}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """facts.json, what the run noted about itself (Run.note); empty for a run from before there was this file."""
        facts = self._json("facts.json")
        record_checks.check_facts(facts, self.folder / "facts.json")
        return facts

    @property
    def num_classes(self) -> int:
        return self.checked_config.num_classes

    @property
    def fold(self) -> int | None:
        """The fold of a cross-validation, None without one."""
        return self.checked_config.fold if self.folds else None

    @property
    def folds(self) -> int:
        """The number of folds of the cross-validation, 0 without one."""
        return self.checked_config.folds

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 1, 2, ..."""
        return self.scores.get("class_names") or self.checked_config.structures

    @cached_property
    def epochs(self) -> list[dict[str, float]]:
        """Rows of metrics.csv as numbers, without the columns that an epoch did not measure."""
        path = self.folder / "metrics.csv"
        rows = record_checks.parse_numbers(self._rows(path.name), path)
        record_checks.check_epochs(rows, path)
        return rows

    def curve(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return a column of metrics.csv as epochs and values; () twice if no epoch measured it."""
        rows = [row for row in self.epochs if name in row]
        return tuple(row["epoch"] for row in rows), tuple(row[name] for row in rows)

    @property
    def selected_by(self) -> str:
        """The column of metrics.csv that selects the best epoch. Runs that did not note it used the published Dice."""
        published = "dice_transunet" if self.config["protocol"] == "holdout" else "train_loss"
        return self.facts.get("selected_by", published if self.of_volumes else "val_loss")

    @property
    def best_epoch(self) -> int | None:
        """The selected epoch, None without one."""
        name = self.selected_by
        if self.config.get("select") == "last":
            best = self.epochs[-1:]
        else:  # a Dice of NaN: there was nothing to find, and nothing was found
            measured = [row for row in self.epochs if name in row]
            sign = 1 if name.endswith("loss") else -1
            best = sorted(measured, key=lambda row: sign * (1 if math.isnan(row[name]) else row[name]))[:1]
        return int(best[0]["epoch"]) if best else None

    @cached_property
    def log(self) -> list[str]:
        """The lines of log.txt without their times."""
        path = self.file("log.txt")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
        return [TIME.sub("", line) for line in lines]

    @cached_property
    def scores(self) -> dict[str, Any]:
        """metrics.json; empty before the test."""
        scores = self._json("metrics.json")
        record_checks.check_scores(scores, self.of_volumes, self.num_classes, self.folder / "metrics.json")
        return scores

    def score(self, name: str, number: int | None = None) -> float:
        """Return a score of metrics.json, or with `number` that of one of its `classes`. Raises ValueError if
        the score is missing.

        Means over images come from the test's table, because earlier runs scored a correct empty mask with 0."""
        scores = self.scores if number is None else self.scores.get("classes", [{}] * self.num_classes)[number]
        if name not in scores:
            raise ValueError(f"{self.folder / 'metrics.json'}: found no {name!r}, expected it among the scores")
        if name.endswith("_per_image") and self.test_rows:
            with contextlib.suppress(KeyError):  # of a table without this score
                rows = self.test_rows.values()
                return statistics.fmean(score_of_image(row, name.removesuffix("_per_image")) for row in rows)
        return scores[name]

    @cached_property
    def test_rows(self) -> dict[str, dict[str, float]]:
        """{image or case: {score: number}} in the order of the file; empty before the test."""
        path = self.folder / ("test_volumes.csv" if self.of_volumes else "test_images.csv")
        rows = self._rows(path.name)
        numbers = record_checks.parse_numbers(rows, path, but=("name", "patient"))
        tested = dict(zip(record_checks.check_names(rows, path), numbers, strict=True))
        structures = self.scores.get("class_names", []) if self.of_volumes else None
        record_checks.check_tested(tested, structures, path)
        return tested

    @cached_property
    def units(self) -> dict[str, str]:
        """{case: its patient}, {photograph: its lesion}, each one of its own unless the test or datasets/splits know
        better: what counts once in tests and deviations."""
        if self.of_volumes:
            return {row["name"]: row.get("patient") or row["name"] for row in self._rows("test_volumes.csv")}
        lesions = lesion_of()
        return {name: lesions.get(name, name) for name in self.test_rows}

    @property
    def finished(self) -> bool:
        """Whether the test has been written, after which only the report is left to do."""
        return bool(self.scores and self.test_rows)

    def dice(self) -> dict[str, float]:
        """Return {image or case: Dice}: that of the foreground; for several classes, and the structures of volumes, the
        mean of those that occur in the image or its prediction."""
        return {name: mean_dice(row) for name, row in self.test_rows.items()}

    @property
    def row(self) -> str | None:
        """The run's row in the paper's tables, or a name like those; None if there is none."""
        return paper.row_name(self.config)

    @property
    def published(self) -> dict[str, float]:
        """The paper's numbers for it, by the names of scores; empty if the paper has no such row."""
        return paper.ROWS.get(self.row or "", {})

    @property
    def row_changes(self) -> list[paper.Change]:
        """What was edited in the rows of configs/optim.py that the run used, as far as its facts tell."""
        if "optimization" not in self.facts:
            return []
        return paper.changed_rows(self.values, self.facts["optimization"], paper.PUBLISHED_ROWS[self.of_volumes])

    @property
    def differences(self) -> list[str]:
        """Why its scores are not comparable with the published ones."""
        published = published_values(self.config_class)
        reasons = paper.differences(self.values, published, len(self.test_rows) or None, self.row_changes)
        done, planned = len(self.epochs), self.config["epochs"]
        if self.finished and self.values.get("stop_when_lost") and 0 < done < planned:
            reasons.append(f"ended after epoch {done} of {planned} (--stop-when-lost)")
        return reasons

    def file(self, *names: str) -> Path | None:
        """Return the path of a file below the folder, None if it is missing.

        Raises ValueError for names that are paths, links out of the folder, and other than plain or too large files."""
        for name in names:
            check_name(name, self.folder)
        path = self.folder.joinpath(*names)
        if not path.exists():
            return None
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{path}: found a link that leads out of the run's folder, expected a file in it")
        if not path.is_file():
            raise ValueError(f"{path}: found no plain file, expected one that the run wrote")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path}: found {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
        return path

    def copy(self, folder: str | Path) -> Path:
        """Copy the records behind the run's numbers into a new folder: no pictures of data, no weights, and no
        log, which names the machine and its folders."""
        target = Path(folder)
        if target.exists():
            raise FileExistsError(f"--keep {target}: found a folder or file there, expected a new one")
        target.mkdir(parents=True)
        for path in filter(None, map(self.file, SMALL_FILES)):
            shutil.copyfile(path, target / path.name)
        return target

    def _rows(self, name):
        path = self.file(name)
        return read_rows(path) if path else []

    def _json(self, name):
        """Return the content of a file of named values, {} if it is missing."""
        path = self.file(name)
        content = read_json(path) if path else {}
        record_checks.check_depth(content, self.folder / name)
        return content


def means_of_units(scores: dict[str, float], units: dict[str, str]) -> dict[str, float]:
    """Return {unit: mean score of its images or cases}, where `units` is {image or case: unit}."""
    of_units = defaultdict[str, list[float]](list)
    for name, score in scores.items():
        of_units[units[name]].append(score)
    return {unit: statistics.fmean(values) for unit, values in of_units.items()}


def mean_dice(row: dict[str, float]) -> float:
    """Return the Dice score of one image or case from its row of the test's table."""
    structures = [value for name, value in row.items() if name.startswith("dice_strict ")]
    occurring = [value for value in structures if not math.isnan(value)] or [1.0]  # rightly nothing, as in an image
    return statistics.fmean(occurring) if structures else score_of_image(row, "dsc")


def score_of_image(row: dict[str, float], score: str) -> float:
    """Return a score of the foreground of one image, for several classes their mean, as `utils.metrics.summarize` does.

    A correct empty mask scores 1, also in runs that stored 0. Raises KeyError if the row does not have the score."""
    if score in row:
        return row[score] if occurs(row) else 1.0
    suffixes = [name.removeprefix(score) for name in row if name.startswith(f"{score}_class")]
    if not suffixes:
        raise KeyError(score)
    values = [row[score + suffix] for suffix in suffixes if suffix != "_class0" and occurs(row, suffix)]
    return statistics.fmean(values) if values else 1.0


def occurs(row: dict[str, float], suffix: str = "") -> bool:
    """Return whether an image or its prediction has the foreground, or the class of a column's suffix; True if the run
    stored no counts."""
    return any(row.get(name + suffix, 1) for name in ("tp", "fp", "fn"))
