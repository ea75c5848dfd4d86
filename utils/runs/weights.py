"""Weights by what a user names: a file, the folder of a run, a network that comes with the code."""

import logging
import os

from torch import nn

from models.weights.filling import fill_network
from models.weights.reading import Checkpoint, read_weights
from utils.runs.shipped import find_checkpoint

log = logging.getLogger("vmunet")


def load_checkpoint_weights(model: nn.Module, named: str | os.PathLike[str]) -> str:
    """Fills a whole network from a checkpoint of this project or of the network's original.

    Returns the file's SHA-256. Raises what `read_checkpoint` and `fill_network` do."""
    checkpoint = read_checkpoint(named)
    fill_network(model, checkpoint.weights, checkpoint.path)
    log.info("weights from %s, %d tensors, SHA-256 %s", checkpoint.path, len(checkpoint.weights), checkpoint.sha256)
    return checkpoint.sha256


def read_checkpoint(named: str | os.PathLike[str], how_to_get: str = "") -> Checkpoint:
    """The `Checkpoint` of what `find_checkpoint` finds. `how_to_get` is advice for messages.

    Raises FileNotFoundError, and ValueError for what is no checkpoint or one of ours that was altered."""
    return read_weights(find_checkpoint(named, how_to_get), how_to_get)
