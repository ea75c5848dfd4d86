"""Checks of the files in a run folder, which may come from elsewhere or have been edited.

Every error names the file, the value and what was expected.
"""

import contextlib
import dataclasses
import itertools
import math
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.check import RANGES, check_classes, describe, fits
from configs.options import MachineOptions, RunOptions, fields_of
from configs.resolve import config_from_values, defaults
from utils.files import check_name, first_few, list_duplicates

MAX_DEPTH = 8  # of nested lists and dicts
MAX_NUMBER = 10.0**15  # measured values are far below it
MAX_COLUMNS = 20 * 256  # of a table: 20 scores of each of the most classes
MAX_FOLDS = 1000
REQUIRED = {"dataset", "network", "load_ckpt_path", "seed", "epochs", "test_only", "protocol"}  # fields of config.json
TEXT_FACTS = ("recipe", "network", "device", "scan", "overlap", "lost", "extended", "changed_data", "selected_by")
UNIT_SCORES = ("miou", "dsc", "accuracy", "sensitivity", "specificity", "dice")  # prefixes of scores from 0 to 1
MACHINE_AND_RUN = fields_of(MachineOptions, RunOptions)
COUNTS = ("tp", "fp", "fn", "tn")


def require(condition: bool, where: Path, value: Any, name: str, expected: str) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        text = repr(value)
        text = text if len(text) <= 60 else text[:60] + "..."
        raise ValueError(f"{where}: found {text} as {name!r}, expected {expected}")


def check_depth(content: Any, where: Path, depth: int = 0) -> None:
    """Raise ValueError for lists and dicts nested deeper than MAX_DEPTH."""
    if isinstance(content, list | dict):
        if depth == MAX_DEPTH:
            raise ValueError(f"{where}: found values nested deeper than {MAX_DEPTH} levels, expected plain ones")
        for part in content.values() if isinstance(content, dict) else content:
            check_depth(part, where, depth + 1)


def is_score(value: Any, name: str) -> bool:
    """Return whether a value is possible for the score or count of this name. A strict score is NaN for a class that
    occurs nowhere."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if value != value:  # NaN
        return "_strict" in name
    low = 0 if name.startswith(("hd95", *UNIT_SCORES)) or name.split("_class")[0] in COUNTS else -MAX_NUMBER
    return low <= value <= (1 if name.startswith(UNIT_SCORES) else MAX_NUMBER)


def stored_config(values: Mapping[str, Any], config_class: type, where: Path) -> Any:
    """Return the config of stored values, without the options of machine and run. A field that did not exist yet has
    its published value."""
    missing = REQUIRED - values.keys()
    if missing:
        raise ValueError(f"{where}: found no {', '.join(sorted(missing))}, expected the values of a run")
    kinds, lowest = typing.get_type_hints(config_class), defaults(config_class)
    names = lowest.keys() - MACHINE_AND_RUN
    config = config_from_values(config_class, {name: values.get(name, lowest[name]) for name in names})
    for name in sorted(names):
        value, (low, high) = getattr(config, name), RANGES.get(name, (-math.inf, math.inf))
        numbers = [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, int | float)]
        require(fits(value, kinds[name]), where, value, name, describe(kinds[name]))
        require(all(low <= number <= high for number in numbers), where, value, name, f"{low:g} to {high:g}")
    folds, fold = config.folds, config.fold
    require(folds <= MAX_FOLDS, where, folds, "folds", f"at most {MAX_FOLDS}")
    require(not folds or (isinstance(fold, int) and fold < folds), where, fold, "fold", f"one of 0..{folds - 1}")
    try:
        check_classes(dataclasses.replace(config, class_colours=config.structure_colours))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return config


def check_facts(facts: Mapping[str, Any], where: Path) -> None:
    for name in TEXT_FACTS:
        require(isinstance(facts.get(name, ""), str), where, facts.get(name), name, "a text")
    if "optimization" in facts:
        parts = facts["optimization"]
        valid = isinstance(parts, dict) and {"optimizer", "scheduler"} <= parts.keys()
        valid = valid and all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in parts.values())
        require(valid, where, parts, "optimization", "an optimizer and a scheduler with their names")


def check_scores(scores: Mapping[str, Any], of_volumes: bool, num_classes: int, where: Path) -> None:
    """Raise ValueError for impossible scores, and for another number of classes than the config's."""
    check_numbers(scores, where)
    for name in ("split", "distance_unit"):
        require(isinstance(scores.get(name, ""), str), where, scores.get(name), name, "a text")
    for name, count, kind in (
        ("class_names", max(1, num_classes - 1), str),
        ("classes", num_classes - of_volumes, dict),
    ):
        parts = scores.get(name, [kind()] * count)
        valid = isinstance(parts, list) and len(parts) == count and all(isinstance(part, kind) for part in parts)
        require(valid, where, parts, name, f"{count} of them, as in config.json")
    for part in scores.get("classes", ()):
        check_numbers(part, where)


def check_numbers(scores: Mapping[str, Any], where: Path) -> None:
    for name, value in scores.items():
        if name.startswith((*UNIT_SCORES, "hd95")):
            require(is_score(value, name), where, value, name, "a number in the range of this score")


def parse_numbers(rows: Iterable[Mapping[Any, Any]], where: Path, but: Collection[str] = ()) -> list[dict[str, float]]:
    """Return the rows of a table as numbers, without empty cells and the columns `but`."""
    result = []
    for line, row in enumerate(rows, 2):
        require(len(row) <= MAX_COLUMNS, where, len(row), "columns", f"at most {MAX_COLUMNS}")
        numbers = {}
        for name, text in row.items():
            if name not in but and text:
                with contextlib.suppress(ValueError):
                    numbers[name] = float(text)
                require(is_score(numbers.get(name), name), where, text, name, f"a number in line {line}")
        result.append(numbers)
    return result


def check_epochs(rows: Iterable[Mapping[str, float]], where: Path) -> None:
    for line, row in enumerate(rows, 2):
        epoch, seconds = row.get("epoch", 0.0), row.get("seconds", 0.0)
        require(epoch >= 1 and epoch == int(epoch), where, epoch, "epoch", f"the number of an epoch in line {line}")
        require(seconds >= 0, where, seconds, "seconds", f"a time in line {line}")


def check_names(rows: Iterable[Mapping[str, Any]], where: Path) -> list[str]:
    """Return the column `name`. Raises ValueError for names that are no file names or occur twice."""
    names = [row.get("name", "") for row in rows]
    for line, name in enumerate(names, 2):
        require(bool(name), where, name, "name", f"the name of a file in line {line}")
        check_name(name, f"{where}, line {line}")
    twice = list_duplicates(names)
    if twice:
        raise ValueError(f"{where}: found {first_few(twice, 3)} in several lines, expected each name once")
    return names


def check_tested(tested: Mapping[str, Mapping[str, float]], structures: Iterable[str] | None, where: Path) -> None:
    """Raise ValueError for rows without a Dice score, and for volumes without the four scores of all `structures`."""
    of_volumes = itertools.product(("dice_transunet", "hd95_transunet", "dice_strict", "hd95_strict"), structures or ())
    scores = [f"{score} {structure}" for score, structure in of_volumes]
    for name, row in tested.items():
        missing = [score for score in scores if score not in row]
        if structures is None and not any(column == "dsc" or column.startswith("dsc_class") for column in row):
            missing = ["dsc"]
        suffixes = [column.removeprefix("tp") for column in row if column == "tp" or column.startswith("tp_class")]
        missing += [f"{count}{suffix}" for suffix in suffixes for count in COUNTS if f"{count}{suffix}" not in row]
        if missing:
            raise ValueError(f"{where}: found no {first_few(missing, 3)} of {name}, expected a number in each column")
