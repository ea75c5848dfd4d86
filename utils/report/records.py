"""What a run left in its folder, read back: the source of every number in reports and tables."""

import dataclasses
import json
import re
from functools import cached_property
from pathlib import Path

from utils.files import read_rows
from utils.report.published import PUBLISHED_IMAGES, PUBLISHED_VOLUMES, differences, row_name
from utils.runs.run import of_volumes

TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@dataclasses.dataclass(frozen=True)
class Record:
    """A run folder, at any stage. Raises FileNotFoundError without a config.json, ValueError for a damaged one."""

    folder: Path

    def __post_init__(self):
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"{self.folder}: found no config.json, expected a run folder such as results/<run>")
        missing = {"dataset", "network", "load_ckpt_path", "seed", "epochs", "test_only", "protocol"} - set(self.config)
        if missing:
            missing = ", ".join(sorted(missing))
            raise ValueError(f"{self.folder}/config.json: found no {missing}, expected the values of a run")

    @property
    def name(self):
        return self.folder.resolve().name

    @cached_property
    def config(self):
        """The values the run was started under, as plain values."""
        return self._json("config.json")

    @property
    def of_volumes(self):
        """Whether train_synapse.py made it."""
        return of_volumes(self.config)

    @property
    def defaults(self):
        """The published values."""
        return PUBLISHED_VOLUMES if self.of_volumes else PUBLISHED_IMAGES

    @property
    def values(self):
        """The config, with the defaults of fields that did not exist yet when the run was started."""
        return self.defaults | self.config

    @cached_property
    def epochs(self):
        """Rows of metrics.csv, as numbers; without the columns that an epoch did not measure."""
        return [{name: float(value) for name, value in row.items() if value} for row in self._rows("metrics.csv")]

    @cached_property
    def scores(self):
        """metrics.json; empty before the test."""
        return self._json("metrics.json") if (self.folder / "metrics.json").is_file() else {}

    @cached_property
    def tested(self):
        """{image or case: {score: number}} in the order of the file; empty before the test."""
        rows = self._rows("test_volumes.csv" if self.of_volumes else "test_images.csv")
        return {row.pop("name"): {name: float(value) for name, value in row.items() if value} for row in rows}

    @cached_property
    def log(self):
        """The lines of log.txt without their times."""
        path = self.folder / "log.txt"
        if not path.is_file():
            return []
        return [TIME.sub("", line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]

    @property
    def finished(self):
        """Whether the test has been written, the last thing but the report that a run does."""
        return bool(self.scores and self.tested)

    @property
    def best(self):
        """The row of the epoch that was selected, None without one."""
        if self.of_volumes and self.config["protocol"] == "holdout":
            return max(self.epochs, key=lambda row: row.get("dice_transunet", -1), default=None)
        name = "train_loss" if self.of_volumes else "val_loss"
        return min(self.epochs, key=lambda row: row.get(name, float("inf")), default=None)

    @property
    def row(self):
        """The row of the paper's tables that it belongs to, or a name like those; None if there is none."""
        return row_name(self.config)

    @property
    def differences(self):
        """Why its scores can't stand beside the published ones."""
        return differences(self.config, self.defaults, len(self.tested) or None)

    def dice(self):
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


def mean_dice(row):
    """The Dice score of one image or case from its row of the test's table."""
    if "dsc" in row:
        return row["dsc"]
    organs = [value for name, value in row.items() if name.startswith("dice_transunet ")]
    if organs:
        return sum(organs) / len(organs)
    classes = [name.removeprefix("dsc_class") for name in row if name.startswith("dsc_class")]
    occurs = [c for c in classes if c != "0" and row.get(f"tp_class{c}", 1) + row.get(f"fp_class{c}", 0)
              + row.get(f"fn_class{c}", 0) > 0]  # fmt: skip
    return sum(row[f"dsc_class{c}"] for c in occurs) / len(occurs) if occurs else 0.0
