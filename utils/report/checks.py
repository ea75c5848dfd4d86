"""Whether the files of a run folder hold what a run writes: kinds and ranges of the values, names that are names.

A run folder may come from elsewhere, or have been edited. Every error names the file, what was found and expected."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.files import check_name, repeated, some

DEEPEST = 8  # lists and dicts inside each other
LARGEST = 10.0**15  # of a number; what is measured is far below it
MOST_CLASSES = 255
MOST_COLUMNS = 20 * (MOST_CLASSES + 1)  # of a table
PROTOCOLS = ("paper", "holdout")
NEEDED = {"dataset", "network", "load_ckpt_path", "seed", "epochs", "test_only", "protocol"}
NUMBERS_OR_NONE = {"lr", "weight_decay", "clip_grad_norm"}  # fields whose default does not tell their kind
# facts that are sentences
WORDS_OF_FACTS = ("recipe", "network", "device", "scan", "overlap", "lost", "extended", "changed_data")
WITHIN_ONE = ("miou", "dsc", "accuracy", "sensitivity", "specificity", "dice")  # how scores from 0 to 1 begin
COUNTS = ("tp", "fp", "fn", "tn")
SHOWN_LENGTH = 60  # characters of a value in a message


def found(value: Any) -> str:
    """A value in a message, cut to a readable length."""
    text = "a number of many digits" if isinstance(value, int) and abs(value) > LARGEST else repr(value)
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "..."


def check_depth(content: Any, where: Path) -> None:
    """Raises ValueError for lists and dicts more than DEEPEST inside each other."""
    level = [content]
    for _ in range(DEEPEST):
        inner = [part for part in level if isinstance(part, list | dict)]
        level = [value for part in inner for value in (part.values() if isinstance(part, dict) else part)]
    if any(isinstance(part, list | dict) for part in level):
        raise ValueError(f"{where}: found values nested deeper than {DEEPEST} levels, expected plain ones")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_score(value: Any, name: str) -> bool:
    """Whether a value can be the score or count of this name; strict scores are NaN where a class is nowhere."""
    if isinstance(value, float) and math.isnan(value):
        return "_strict" in name
    if not is_number(value):
        return False
    if name.startswith("hd95") or name.split("_class")[0] in COUNTS:
        return value >= 0
    return not name.startswith(WITHIN_ONE) or 0 <= value <= 1


# ---- config.json, facts.json, metrics.json


def check_config(values: Mapping[str, Any], defaults: Mapping[str, Any], where: Path) -> None:
    """Raises ValueError for values of another kind than the published ones."""
    missing = NEEDED - set(values)
    if missing:
        raise ValueError(f"{where}: found no {', '.join(sorted(missing))}, expected the values of a run")
    check_classes(values, where)
    for name, value in values.items():
        expected = expected_of(name, value, defaults)
        if expected is not None:
            raise ValueError(f"{where}: found {found(value)} as {name!r}, expected {expected}")


def expected_of(name: str, value: Any, defaults: Mapping[str, Any]) -> str | None:
    """What a field's value should be; None if it is, and for fields that are not known."""
    default = defaults.get(name)
    if name == "protocol":
        return None if value in PROTOCOLS else f"one of {', '.join(PROTOCOLS)}"
    if name == "num_classes":
        fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_CLASSES
        return None if fits else f"1 to {MOST_CLASSES}"
    if name == "epochs":
        return None if is_number(value) and isinstance(value, int) and value >= 1 else "a whole number from 1 on"
    if name not in defaults or (name == "fold" and value == "all"):
        return None
    if name in NUMBERS_OR_NONE:
        return None if value is None or is_number(value) else "a number or null"
    if default is None:
        return None if value is None or isinstance(value, str) else "text or null"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, str):
        return None if isinstance(value, str) else "text"
    if isinstance(default, list):
        plain = isinstance(value, list) and all(is_number(part) or isinstance(part, str) for part in value)
        return None if plain else "a list of numbers or texts"
    if isinstance(default, dict):
        plain = isinstance(value, dict) and all(is_number(part) or isinstance(part, str) for part in value.values())
        return None if plain else "names and their values"
    if name in ("seed", "folds", "fold", "fold_seed", "image_size"):
        return None if is_number(value) and isinstance(value, int) else "a whole number"
    return None if is_number(value) else "a number"


def check_classes(values: Mapping[str, Any], where: Path) -> None:
    """Raises ValueError for names of another number of classes, and colours that are none."""
    number = values.get("num_classes", 1)
    foreground = max(1, number - 1) if isinstance(number, int) else 1
    names, colours = values.get("class_names") or [], values.get("class_colours") or []
    for kind, texts in (("class_names", names), ("class_colours", colours)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: found {found(texts)} as {kind!r}, expected a list of texts")
    in_masks = values.get("mask_values") or []
    in_masks = [text for text in in_masks if str(text).startswith("#")] if isinstance(in_masks, list) else []
    for kind, found_values in (("class_names", names), ("class_colours", colours)):
        if found_values and len(found_values) != foreground:
            raise ValueError(f"{where}: found {len(found_values)} {kind}, expected {foreground} as of num_classes")
    if in_masks and len(in_masks) != foreground + 1:
        raise ValueError(f"{where}: found {len(in_masks)} colours as mask_values, expected {foreground + 1}")
    for colour in [*colours, *in_masks]:
        if not isinstance(colour, str) or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise ValueError(f"{where}: found the colour {found(colour)}, expected one such as '#ff0000'")


def check_facts(facts: Mapping[str, Any], where: Path) -> None:
    for name in WORDS_OF_FACTS:
        if name in facts and not isinstance(facts[name], str):
            raise ValueError(f"{where}: found {found(facts[name])} as {name!r}, expected a text")
    if "optimization" in facts:
        parts = facts["optimization"]
        named = isinstance(parts, dict) and all(
            isinstance(part, dict) and isinstance(part.get("name"), str) for part in parts.values()
        )
        if not named or not {"optimizer", "scheduler"} <= parts.keys():
            expected = "an optimizer and a scheduler with their names"
            raise ValueError(f"{where}: found {found(parts)} as 'optimization', expected {expected}")


def check_scores(scores: Mapping[str, Any], of_volumes: bool, num_classes: int, where: Path) -> None:
    """Raises ValueError for scores that are no numbers, and for other classes than the config's."""
    check_numbers(scores, where)
    for name in ("split", "distance_unit"):
        if not isinstance(scores.get(name, ""), str):
            raise ValueError(f"{where}: found {found(scores[name])} as {name!r}, expected a text")
    foreground = num_classes - 1
    names = scores.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: found {found(names)} as 'class_names', expected a list of texts")
    if "class_names" in scores and len(names) != max(foreground, 1):
        raise ValueError(f"{where}: found {len(names)} class_names, expected {max(foreground, 1)} as in config.json")
    if "classes" in scores:
        classes, number = scores["classes"], foreground if of_volumes else num_classes
        if not isinstance(classes, list) or not all(isinstance(part, dict) for part in classes):
            raise ValueError(f"{where}: found {found(classes)} as 'classes', expected the scores of each class")
        if len(classes) != number:
            raise ValueError(f"{where}: found scores of {len(classes)} classes, expected {number} as in config.json")
        for part in classes:
            check_numbers(part, where)


def check_numbers(scores: Mapping[str, Any], where: Path) -> None:
    for name, value in scores.items():
        if name.startswith((*WITHIN_ONE, "hd95")) and not is_score(value, name):
            raise ValueError(f"{where}: found {found(value)} as {name!r}, expected a number that it can be")


# ---- tables


def numbers_of_rows(
    rows: Iterable[Mapping[Any, Any]], where: Path, but: Collection[str] = ()
) -> list[dict[str, float]]:
    """Rows of a table as numbers, without empty cells and the columns `but`. Raises ValueError for other text."""
    result = []
    for line, row in enumerate(rows, 2):
        if None in row or len(row) > MOST_COLUMNS:
            raise ValueError(f"{where}: found more cells in line {line} than expected of its header")
        numbers = {}
        for name, text in row.items():
            if name in but or not text:
                continue
            try:
                numbers[name] = float(text)
            except ValueError:
                numbers[name] = math.inf
            if not is_score(numbers[name], name):
                raise ValueError(f"{where}: found {found(text)} as {name!r} in line {line}, expected a number of it")
        result.append(numbers)
    return result


def check_epochs(rows: Iterable[Mapping[str, float]], where: Path) -> None:
    for line, row in enumerate(rows, 2):
        epoch = row.get("epoch", 0.0)
        if epoch < 1 or epoch != int(epoch):
            raise ValueError(f"{where}: found no number of an epoch in line {line}, expected one in the column 'epoch'")
        if row.get("seconds", 0) < 0:
            raise ValueError(f"{where}: found negative 'seconds' in line {line}, expected a time")


def check_names(rows: Iterable[Mapping[str, Any]], where: Path) -> list[str]:
    """The column `name`. Raises ValueError for what is no name of a file, and for names that occur twice."""
    names = []
    for line, row in enumerate(rows, 2):
        name = row.get("name")
        if name is None:
            raise ValueError(f"{where}: found no name in line {line}, expected one in the column 'name'")
        check_name(name, f"{where}, line {line}")
        names.append(name)
    twice = repeated(names)
    if twice:
        raise ValueError(f"{where}: found {some(twice, 3)} in several lines, expected each name once")
    return names


def check_tested(tested: Mapping[str, Mapping[str, float]], structures: Iterable[str] | None, where: Path) -> None:
    """Raises ValueError for rows without a Dice score, of volumes without the four scores of all `structures`."""
    for name, row in tested.items():
        if structures is not None:
            scores = ("dice_transunet", "hd95_transunet", "dice_strict", "hd95_strict")
            missing = [f"{score} {one}" for one in structures for score in scores if f"{score} {one}" not in row]
            if missing:
                raise ValueError(
                    f"{where}: found no {some(missing, 3)} of {name}, expected the scores of each structure"
                )
        elif "dsc" not in row and not any(column.startswith("dsc_class") for column in row):
            raise ValueError(f"{where}: found no Dice score of {name}, expected the column 'dsc' or 'dsc_class1', ...")
        for c in {column.removeprefix("tp") for column in row if column == "tp" or column.startswith("tp_class")}:
            missing = [f"{count}{c}" for count in COUNTS if f"{count}{c}" not in row]
            if missing:
                raise ValueError(f"{where}: found no {some(missing)} of {name}, expected it beside tp{c}")
