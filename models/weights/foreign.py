"""Objects of other programs in a checkpoint, such as the settings of a training framework. None is ever created.

PyTorch's reader of plain values (`weights_only=True`) stops at the first class that it does not know, although the
weights lie beside it. Here a stand-in replaces each such class. A stand-in runs nothing and keeps nothing. Classes
whose names mark them as dictionaries or lists become plain ones, because the reader fills no others.
"""

import io
import re
import warnings
from collections import OrderedDict
from typing import Any

import torch

MAPPING, SEQUENCE = re.compile(r"(Dict|Node|Box)$", re.IGNORECASE), re.compile(r"(List|deque)$", re.IGNORECASE)


class StandIn:
    """Stands in for an object of the class `name`."""

    name: str

    def __init__(self, *arguments: Any):
        pass

    def __new__(cls, *arguments: Any) -> Any:
        kind = OrderedDict if MAPPING.search(cls.name) else list if SEQUENCE.search(cls.name) else None
        return object.__new__(cls) if kind is None else kind()

    def __setstate__(self, state: Any) -> None:
        pass


def load_plain(content: bytes) -> Any:
    """Return what torch.save has written, on the CPU, with stand-ins for objects that are neither tensors nor plain
    values. Executes nothing; raises many kinds of errors for unreadable files."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except ValueError:  # from before PyTorch 1.6: such files are read if they hold plain values alone
        names = []
    classes: list[Any] = [(type("StandIn", (StandIn,), {"name": name}), name) for name in names]
    with torch.serialization.safe_globals(classes), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # it advises to report a bug of PyTorch
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
