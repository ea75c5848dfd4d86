"""What can be named where a checkpoint is expected: a file, the folder of a run, a network of pretrained_weights/.

results/<run>/checkpoints/best.pth      a file
results/<run>                           its checkpoints/best.pth
isic17                                  the file that SHIPPED names, wherever the program is started
./isic17                                a file or folder of this name
"""

import logging
import os
from pathlib import Path

import h5py

from utils.files import some

log = logging.getLogger("vmunet")

FOLDER = Path(__file__).resolve().parents[2] / "pretrained_weights"
SHIPPED = {"isic17": "vmunet_isic17.h5"}  # networks that come with the code, and their files in FOLDER
SUFFIXES = (".pth", ".pt", ".ckpt")  # of files with weights
BEST = Path("checkpoints", "best.pth")  # in the folder of a run


def find_checkpoint(named: str | os.PathLike[str], how_to_get: str = "") -> Path:
    """The file that `named` stands for. Only a text can be a shipped network's name; a Path is always a path.

    Raises FileNotFoundError that says what is there instead, what was expected and, where it is given, `how_to_get`."""
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
        f"{BEST.as_posix()} in it, or the name of a network that comes with the code: {', '.join(SHIPPED)}{advice}"
    )


def is_checkpoint(named: str) -> bool:
    """Whether `named` stands for a network rather than for something to predict: by what it is, not where it stands."""
    path = Path(named)
    if named in SHIPPED or (path / BEST).is_file():
        return True
    if not path.is_file() or path.suffix.lower() not in (*SUFFIXES, ".h5"):
        return False
    return path.suffix.lower() in SUFFIXES or _is_packed(path)


def _is_packed(path: Path) -> bool:
    """Whether an h5 file holds weights (utils/runs/packed.py) rather than a volume."""
    try:
        with h5py.File(path) as file:
            return "weights" in file and "image" not in file
    except OSError:  # a damaged file is named when it is read
        return False


def _shipped(name: str) -> Path:
    path = FOLDER / SHIPPED[name]
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: found no {path}, expected the file of this network, which comes with the code; ./{name} would be "
            "a file or folder of your own"
        )
    if os.path.lexists(name):
        log.warning("%s means the network that comes with the code; write ./%s for what is here", name, name)
    return path


def _found(path: Path) -> str:
    if path.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
        names += sorted(f"{BEST.parent}/{p.name}" for p in (path / BEST.parent).glob("*"))
        return f"found a folder with {some(names)}" if names else "found an empty folder"
    return "found neither a file nor a folder" if os.path.lexists(path) else "there is no such file or folder"
