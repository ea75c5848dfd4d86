from dataclasses import dataclass, field
from typing import Literal

import pytest

from utils.runs.flags import parse_flags, places_of


@dataclass(kw_only=True)
class Base:
    seed: int = 1  # before all sections

    # --- data (what is read) ---
    size: int  # in pixels
    names: tuple[str, ...] = ()
    """several words"""

    # --- the run ---
    mode: Literal["fast", "slow"] = "fast"  # how
    more: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Special(Base):
    # --- data ---
    folder: str | None = None  # of the data
    size: int = 3
    # --- extra ---
    flag: bool = False


def test_fields_are_in_the_section_above_them_and_stay_where_they_were_first():
    places = places_of(Special)
    sections = {"": ["seed"], "data": ["size", "names", "folder"], "the run": ["mode", "more"], "extra": ["flag"]}
    assert {n: place.section for n, place in places.items()} == {n: s for s, names in sections.items() for n in names}
    assert places["size"].help == "in pixels" and places["names"].help == "several words"
    assert places["size"].about == "what is read"


def test_a_grouped_command_line_makes_the_same_config():
    assert parse_flags(Special, []) == Special()
    said = parse_flags(Special, ["--size", "5", "--names", "a", "b", "--flag", "--more", "k", "v", "--seed", "7"])
    assert said == Special(size=5, names=("a", "b"), flag=True, more={"k": "v"}, seed=7)
    assert parse_flags(Special, ["--mode", "slow"], Special(size=9, flag=True)) == Special(
        size=9, flag=True, mode="slow"
    )
    assert parse_flags(Special, ["--no-flag"], Special(flag=True)) == Special()
    assert Special().more == {}  # not shared with what was parsed


def test_mistakes_end_with_status_2_and_name_the_choices(capsys):
    for flags, said in (
        (["--mode", "quick"], "'fast', 'slow'"),
        (["--sise", "3"], "--size"),
        (["--size", "x"], "--size"),
    ):
        with pytest.raises(SystemExit) as end:
            parse_flags(Special, flags)
        assert end.value.code == 2 and said in capsys.readouterr().err
