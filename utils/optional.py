"""Packages that only some features need."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


def optional(module: str, needed_by: str) -> ModuleType:
    """Import a module of a package in requirements-extra.txt.

    Raises ValueError that begins with `needed_by`, such as "--sliding-window", if the package is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        advice = "pip install -r requirements-extra.txt"
        raise ValueError(f"{needed_by}: found no module {error.name!r}, expected it; {advice}") from error


class AtFirstUse:
    """A module that is imported when one of its names is needed, for packages that would take long at every start.

    prepare  called once with the module"""

    def __init__(self, module: str, prepare: Callable[[ModuleType], None] = lambda module: None) -> None:
        self._module, self._prepare = module, prepare

    def __getattr__(self, name: str) -> Any:
        return getattr(self._imported, name)

    @functools.cached_property
    def _imported(self) -> ModuleType:
        module = importlib.import_module(self._module)
        self._prepare(module)
        return module
