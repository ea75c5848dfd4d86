"""Photographs that show the same lesion, as listed pairs: they must not be on both sides of a split.

datasets/splits/same_lesion.csv lists those of ISIC 2017 and 2018: found by datasets.same_lesion, confirmed by eye."""

from collections.abc import Iterable
from pathlib import Path

from utils.files import normal_name, read_rows

SAME_LESION = "same_lesion.csv"  # the name of such a list, also in a data folder; its columns first and second are read
LISTED = Path(__file__).parent / "splits" / SAME_LESION


def lesion_of(path: str | Path = LISTED) -> dict[str, str]:
    """Return {id: the smallest id of its lesion} for the images in a list of pairs; {} if the file does not exist.

    Raises ValueError for a row without two names."""
    pairs = [
        [normal_name(row[key].strip()) for key in ("first", "second")] for row in read_rows(path, "first", "second")
    ]
    alone = [pair for pair in pairs if not all(pair)]
    if alone:
        raise ValueError(f"{path}: found {len(alone)} rows without two names, expected first and second in each")
    return components((first, second) for first, second in pairs)


def components(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return {name: smallest name that it is linked to}, directly or over others, for the names in the pairs."""
    members: dict[str, set[str]] = {}  # one set for all names of a component
    for first, second in pairs:
        together = members.get(first, {first}) | members.get(second, {second})
        members |= dict.fromkeys(together, together)
    return {name: min(together) for name, together in members.items()}


def leaked(reported: Iterable[str], training: Iterable[str]) -> set[str]:
    """Return those of the reported ids of ISIC that show a lesion of a training image."""
    lesions = lesion_of()
    trained = {lesions[id] for id in training if id in lesions}
    return {id for id in reported if lesions.get(id) in trained}
