"""Names of a package that are imported at their first use, as those that need PyTorch: `vmunet.onnx` does without."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def at_first_use(
    package: str, module_of: Mapping[str, str], advice: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, by which it has each name from its module, a relative one.

    advice  what to do if a name's module needs another that is not installed"""

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(module_of[name], package)
        except ModuleNotFoundError as error:
            if advice is None or name not in advice:
                raise
            raise ImportError(f"{name}: found no module {error.name!r}, expected it; {advice[name]}") from error
        value = module if module_of[name] == f".{name}" else getattr(module, name)  # a package of that name
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
