"""Packages that only some features need."""

import importlib
from types import ModuleType


def optional(module: str, needed_by: str) -> ModuleType:
    """Import a module of a package in requirements-extra.txt.

    Raises ValueError that begins with `needed_by`, such as "--sliding-window", if the package is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        advice = "pip install -r requirements-extra.txt"
        raise ValueError(f"{needed_by}: found no module {error.name!r}, expected it; {advice}") from error
