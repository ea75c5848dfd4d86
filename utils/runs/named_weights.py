"""Weights by name, wherever a checkpoint is expected:

results/<run>/checkpoints/best.pth      a file
results/<run>                           its checkpoints/best.pth
isic17                                  a network that ships with the code, from any working directory
vmamba-small, vmamba-tiny               ImageNet weights to start a training from, downloaded once
./isic17                                a file or folder of this name
"""

import logging
import os
from pathlib import Path

import h5py
from torch import nn

from models.hub import WEIGHTS
from models.weights.filling import fill_network
from models.weights.reading import Checkpoint, read_weights
from utils.download import Release, fetch
from utils.files import REPOSITORY, find_path, first_few

log = logging.getLogger("vmunet")

FOLDER = Path(__file__).resolve().parents[2] / "pretrained_weights"
DOWNLOADED = REPOSITORY / "pretrained_weights"  # the same folder, unless the code is installed
SHIPPED = {"isic17": "vmunet_isic17.h5"}  # networks that ship with the code, and their files in FOLDER
DOWNLOADS = "https://github.com/MzeroMiko/VMamba/releases/download/%23v0cls/"
SMALL, TINY = "vssmsmall_dp03_ckpt_epoch_238.pth", "vssmtiny_dp01_ckpt_epoch_292.pth"
RELEASED = {
    "vmamba-small": Release(
        DOWNLOADS + SMALL, 177_830_070, "8a9b3d3954bd28265405bd9a86768599d11491ba414ce04011db837d6c319e14"
    ),
    "vmamba-tiny": Release(
        DOWNLOADS + TINY, 91_649_482, "dbc0cc4f5ec0e45db5fba7c939d2c7d9b617e891ac10766912a8d604c37c5e47"
    ),
}
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")  # of files with weights
BEST = Path("checkpoints", "best.pth")  # in the folder of a run
SAVED = WEIGHTS[0]  # in a folder of save_pretrained


def find_checkpoint(named: str | os.PathLike[str]) -> Path:
    """Return the file of a checkpoint by name. Only a text can be a shipped network's name; a Path is always a path.

    Raises FileNotFoundError with what was found and expected."""
    if isinstance(named, str) and named in SHIPPED:
        return _shipped(named)
    path = Path(named)
    if path.is_file():
        return path
    for file in (path / BEST, path / SAVED):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"{path}: {_found(path)}, expected a file with weights, the folder of a run, such as results/<run>, with "
        f"{BEST.as_posix()} in it, or the name of a network that ships with the code: {', '.join(SHIPPED)}"
    )


def find_initial_weights(named: str) -> Path:
    """Return the file that --load-ckpt-path names, which may be one of RELEASED. A relative path that the working
    directory lacks is one in the repository.

    Raises what `find_checkpoint` and `fetch` do."""
    if named not in RELEASED:
        return find_checkpoint(named if named in SHIPPED else str(find_path(named)))
    release = RELEASED[named]
    DOWNLOADED.mkdir(exist_ok=True)
    return fetch(release, DOWNLOADED / release.url.rsplit("/", 1)[1])


def is_checkpoint(named: str) -> bool:
    """Return whether `named` is a network, as opposed to an input of a prediction."""
    path = Path(named)
    suffix = path.suffix.lower()
    is_weights = path.is_file() and (suffix in SUFFIXES or (suffix == ".h5" and _is_packed(path)))
    return named in SHIPPED or (path / BEST).is_file() or (path / SAVED).is_file() or is_weights


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


def read_checkpoint(named: str | os.PathLike[str]) -> Checkpoint:
    """Read the checkpoint that `find_checkpoint` finds.

    Raises FileNotFoundError, and ValueError for a file that is no checkpoint or has been altered."""
    return read_weights(find_checkpoint(named))
