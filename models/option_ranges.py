"""The allowed values of a network's options, whether they come from code, a flag or a file."""

import reprlib
from numbers import Integral, Real
from typing import Any

RANGES = {  # lowest and highest value; of a sequence, of each of its numbers
    "num_classes": (1, 2**16),
    "input_channels": (1, 1024),
    "depths": (0, 64),
    "depths_decoder": (0, 64),
    "dims": (1, 4096),
    "d_state": (1, 256),
    "drop_path_rate": (0, 0.99),
}


def check_options(network: str, stages: int, **values: Any) -> None:
    """Raise ValueError for the first option of a wrong type or out of range, before any layer is built. `depths`,
    `depths_decoder` and `dims` have a number for each of the `stages`."""
    for name, value in values.items():
        low, high = RANGES[name]
        kind: Any = Real if name == "drop_path_rate" else Integral
        count = stages if name in ("depths", "depths_decoder", "dims") else None
        numbers = [value] if count is None else value
        fits = isinstance(numbers, list | tuple) and len(numbers) == (count or 1)
        if not fits or not all(isinstance(n, kind) and not isinstance(n, bool) and low <= n <= high for n in numbers):
            what = "number" if kind is Real else "whole number"
            expected = f"a {what}" if count is None else f"{count} {what}s"
            found = reprlib.repr(list(value) if isinstance(value, tuple) else value)
            raise ValueError(f"{network}: found {name} {found}, expected {expected} from {low} to {high}")
