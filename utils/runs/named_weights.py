"""Weights by name, wherever a checkpoint is expected:

results/<run>/checkpoints/best.pth      a file
results/<run>                           its checkpoints/best.pth
isic17                                  a network that ships with the code, from any working directory
./isic17                                a file or folder of this name
"""

import logging
import os
from pathlib import Path

import h5py
from torch import nn

from models.weights.filling import fill_network
from models.weights.reading import Checkpoint, read_weights
from utils.files import first_few

log = logging.getLogger("vmunet")

FOLDER = Path(__file__).resolve().parents[2] / "pretrained_weights"
SHIPPED = {"isic17": "vmunet_isic17.h5"}  # networks that ship with the code, and their files in FOLDER
SUFFIXES = (".pth", ".pt", ".ckpt")  # of files with weights
BEST = Path("checkpoints", "best.pth")  # in the folder of a run


def find_checkpoint(named: str | os.PathLike[str], how_to_get: str = "") -> Path:
    """Return the file of a checkpoint by name. Only a text can be a shipped network's name; a Path is always a path.

    Raises FileNotFoundError with what was found and expected and, where it is given, `how_to_get`."""
    if isinstance(named, str) and named in SHIPPED:
        return _shipped(named)
    path = Path(named)
    if path.is_file():
        return path
    if (path / BEST).is_file():
        return path / BEST
    advice = f"; {how_to_get}" if how_to_get else ""
    raise FileNotFoundError(
        f"{path}: {_found(path)}, expected a file with weights, the folder of a run, such as results/<run>, with "
        f"{BEST.as_posix()} in it, or the name of a network that ships with the code: {', '.join(SHIPPED)}{advice}"
    )


def is_checkpoint(named: str) -> bool:
    """Return whether `named` is a network, as opposed to an input of a prediction."""
    path = Path(named)
    suffix = path.suffix.lower()
    is_weights = path.is_file() and (suffix in SUFFIXES or (suffix == ".h5" and _is_packed(path)))
    return named in SHIPPED or (path / BEST).is_file() or is_weights


def _is_packed(path: Path) -> bool:
    """Return whether an h5 file holds weights (models/weights/packed.py), as opposed to a volume."""
    try:
        with h5py.File(path) as file:
            return "weights" in file and "image" not in file
    except OSError:  # a damaged file is reported when it is read
        return False


def _shipped(name: str) -> Path:
    path = FOLDER / SHIPPED[name]
    if not path.is_file():
        expected = f"the file of this network, which ships with the code; ./{name} would be a local file or folder"
        raise FileNotFoundError(f"{name}: found no {path}, expected {expected}")
    if os.path.lexists(name):
        log.warning("%s is the network that ships with the code; write ./%s for the local file or folder", name, name)
    return path


def _found(path: Path) -> str:
    if path.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
        names += sorted(f"{BEST.parent}/{p.name}" for p in (path / BEST.parent).glob("*"))
        return f"found a folder with {first_few(names)}" if names else "found an empty folder"
    return "found neither a file nor a folder" if os.path.lexists(path) else "there is no such file or folder"


def load_checkpoint_weights(model: nn.Module, named: str | os.PathLike[str]) -> str:
    """Fill a whole network from a checkpoint of this project or of the network's original.

    Return the file's SHA-256. Raises what `read_checkpoint` and `fill_network` do."""
    checkpoint = read_checkpoint(named)
    fill_network(model, checkpoint.weights, checkpoint.path)
    log.info("weights from %s, %d tensors, SHA-256 %s", checkpoint.path, len(checkpoint.weights), checkpoint.sha256)
    return checkpoint.sha256


def read_checkpoint(named: str | os.PathLike[str], how_to_get: str = "") -> Checkpoint:
    """Read the checkpoint that `find_checkpoint` finds. `how_to_get` is advice for messages.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint or has been altered."""
    return read_weights(find_checkpoint(named, how_to_get), how_to_get)
