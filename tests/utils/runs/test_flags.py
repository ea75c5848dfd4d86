import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from utils.runs.command_line import parse_flags, places_of


@dataclass(kw_only=True)
class Base:
    """Shared options. More about them."""

    seed: int = 1  # before all sections

    # --- data ---
    size: int  # in pixels
    names: tuple[str, ...] = ()
    """several words"""

    # --- the run ---
    mode: Literal["fast", "slow"] = "fast"  # how
    more: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Special(Base):
    own: float = 0.5

    # --- data ---
    folder: str | None = None  # of the data
    size: int = 3
    # --- extra ---
    flag: bool = False


def test_fields_are_in_the_section_above_them_else_in_a_box_of_their_class():
    places = places_of(Special)
    boxes = {"options": ["own"], "data": ["folder", "size", "names"], "extra": ["flag"]}
    boxes |= {"Shared options. More about them": ["seed"], "the run": ["mode", "more"]}
    assert {name: title for name, (title, _) in places.items()} == {
        n: box for box, names in boxes.items() for n in names
    }
    assert places["size"][1] == "in pixels" and places["names"][1] == "several words"
    assert places["own"][1] == "" and places["seed"][1] == "before all sections"


def test_help_shows_the_boxes_and_the_comment_behind_a_field(capsys):
    with pytest.raises(SystemExit) as end:
        parse_flags(Special, ["--help"], description="What the command does.")
    text = capsys.readouterr().out
    assert end.value.code == 0 and "What the command does." in text
    titles = ["data", "extra", "Shared options. More about them", "the run"]
    starts = [re.search(rf"^\W*{title}( options)?\W*$", text, re.M).start() for title in titles]
    assert starts == sorted(starts)
    data = text[starts[0] : starts[1]]
    assert all(part in data for part in ("--size", "in pixels", "--names", "several words", "--folder"))


def test_a_command_line_makes_the_config():
    assert parse_flags(Special, []) == Special()
    said = parse_flags(Special, ["--size", "5", "--names", "a", "b", "--flag", "--more", "k", "v", "--seed", "7"])
    assert said == Special(size=5, names=("a", "b"), flag=True, more={"k": "v"}, seed=7)
    assert parse_flags(Special, ["--flag", "--no-flag"]) == Special()
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


def test_a_misspelt_flag_gets_its_neighbours_name_although_another_is_missing(capsys):
    with pytest.raises(SystemExit) as end:
        parse_flags(Special, ["--sise", "3"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "--sise" in said and "--size" in said
    assert parse_flags(Special, ["--no-flag", "--more", "a", "b", "--own=2"]).own == 2
