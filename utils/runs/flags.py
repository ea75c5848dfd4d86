"""A dataclass as a command line: every field is a flag, and --help has a box for each section of the class.

Sections are comments between the fields, `# --- data ---`, or `# --- model (what is said below the title) ---`. The
comment behind a field, or the text below it, is its help. A field that a subclass declares again keeps its section.
"""

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import tokenize
import typing
from collections.abc import Sequence
from io import StringIO
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro

Config = TypeVar("Config")

SECTION = re.compile(r"# --- (?P<title>[^(]+?)(?: \((?P<about>.*)\))? ---")


class Place(NamedTuple):
    """Where a field stands in --help, and what is said about it."""

    section: str  # "" before the first section
    about: str  # of the section
    help: str


def parse_flags(
    config_class: type[Config],
    arguments: Sequence[str] | None = None,
    default: Config | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> Config:
    """The config that a command line (sys.argv without `arguments`) describes; what it does not say is as in `default`,
    or as the class has it. --help and mistakes end the program. `prog` begins the line of usage,
    `description` follows it; without them the script's name and the documentation of the class's module."""
    sections: dict[str, list[tuple[str, Any, Any]]] = {}
    abouts, places = {}, places_of(config_class)
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        place = places.get(field.name, Place("", "", ""))
        kind: Any = Annotated[hints[field.name], tyro.conf.arg(help=place.help)]
        if default is not None:
            value = dataclasses.field(default_factory=functools.partial(getattr, default, field.name))
        elif field.default_factory is not dataclasses.MISSING:
            value = dataclasses.field(default_factory=field.default_factory)
        else:
            value = dataclasses.field(default=field.default)
        sections.setdefault(place.section, []).append((field.name, kind, value))
        abouts.setdefault(place.section, place.about)
    fields = sections.pop("", [])
    for number, (title, of_section) in enumerate(sections.items()):
        section = dataclasses.make_dataclass(f"Section{number}", of_section, kw_only=True)
        section.__doc__ = abouts[title] or " "
        fields.append((f"section_{number}", Annotated[section, tyro.conf.arg(name=title)], dataclasses.MISSING))
    grouped = dataclasses.make_dataclass(
        config_class.__name__,
        [(name, kind) if value is dataclasses.MISSING else (name, kind, value) for name, kind, value in fields],
        kw_only=True,
    )
    description = description or sys.modules[config_class.__module__].__doc__
    said = tyro.cli(grouped, prog=prog, args=arguments, description=description, config=(tyro.conf.OmitArgPrefixes,))
    values = vars(said)
    for number in range(len(sections)):
        values |= vars(values.pop(f"section_{number}"))
    return config_class(**values)


def places_of(config_class: type) -> dict[str, Place]:
    """{field: its place}, of a dataclass and those it inherits from."""
    places: dict[str, Place] = {}
    for part in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(part):
            for name, place in _places_in(textwrap.dedent(inspect.getsource(part))).items():
                first = places.get(name, place)
                places[name] = Place(first.section, first.about, place.help or first.help)
    return places


def _places_in(source: str) -> dict[str, Place]:
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    titles = {line: match for line, text in comments.items() if (match := SECTION.fullmatch(text))}
    places, statements = {}, ast.parse(source).body[0].body  # type: ignore[attr-defined]
    for statement, following in zip(statements, [*statements[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        above = [match for line, match in titles.items() if line < statement.lineno]
        title, about = above[-1].group("title", "about") if above else ("", "")
        text = comments.get(statement.end_lineno or statement.lineno, "").removeprefix("#").strip()
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = inspect.cleandoc(str(following.value.value))
        places[statement.target.id] = Place(title, about or "", text)
    return places
