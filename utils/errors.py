"""Errors beside wrong values (ValueError) and files (OSError). The message says what happened and what can be done."""

from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that is truncated, altered or not one."""


class NonFiniteLossError(RuntimeError):
    """The loss or a weight became NaN or infinite; the message says where."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended, or can't be reached."""


class NotEnoughMemoryError(RuntimeError):
    """What can be done about it stands in the message."""


def check_same_shape(prediction: Any, truth: Any, name: str = "mask") -> None:
    """Raises ValueError if a prediction and the truth, called `name`, differ in shape: tensors or arrays."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and {name} differ in shape: {tuple(prediction.shape)} and {tuple(truth.shape)}")
