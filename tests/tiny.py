"""What many tests share: the smallest networks that still have every part, the smallest data, where files lie."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"

ONE_BLOCK = dict(depths=(1, 1, 1, 1), depths_decoder=(1, 1, 1, 1))  # a stage
NETWORK = dict(**ONE_BLOCK, dims=(8, 16, 32, 64), d_state=4)
NETWORK_FLAGS = "--depths 1 1 1 1 --depths-decoder 1 1 1 1 --dims 8 16 32 64 --d-state 4".split()
# A training run on a CPU from random weights, in this process.
TRAINING = dict(**NETWORK, image_size=32, batch_size=4, load_ckpt_path="none", num_workers=0, device="cpu")
TRAINING_FLAGS = [
    *NETWORK_FLAGS,
    *"--image-size 32 --batch-size 4 --load-ckpt-path none --num-workers 0 --device cpu".split(),
]


def isic_config(folder, **changes):
    """The values that loaders of images use."""
    values = dict(dataset="demo", data_path=str(folder), image_size=32, batch_size=4, seed=42, device="cpu")
    values |= dict(num_workers=0, cache="auto", num_classes=1, mask_values=(), protocol="paper", folds=0)
    values |= dict(
        augmentation="published",
        rotation="run",
        normalization="minmax",
        mask_resize="bilinear",
        antialias=False,
        input_channels=3,
    )
    return SimpleNamespace(**values | changes)


def synapse_config(folder, **changes):
    """The values that loaders of volumes use."""
    values = dict(
        dataset="demo",
        data_path=str(folder),
        list_dir=None,
        volume_path=None,
        image_size=32,
        device="cpu",
        augmentation="published",
    )
    values |= dict(protocol="paper", folds=0, context=0, slice_fit="zoom")
    return SimpleNamespace(**values | dict(batch_size=4, seed=42, num_workers=0, cache="auto", num_classes=9) | changes)


def write_slice(folder, name, shape=(20, 24), label=None):
    """A slice as Synapse's train_npz holds it; returns its image and label."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    image = rng.random(shape, dtype=np.float32)
    label = rng.integers(0, 9, shape).astype(np.float32) if label is None else label
    np.savez(folder / f"{name}.npz", image=image, label=label)
    return image, label


def write_packed_weights(path, weights, config, about):
    """Writes a network in half its size, and returns the file's SHA-256."""
    from models.weights.packed import pack_weights

    content = pack_weights(weights, config, about)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def tree(out):
    """{path: SHA-256} of every file."""
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def empty_state(epoch, **changes):
    """A checkpoint with nothing in it, of a run that stands after `epoch`."""
    empty = {name: {} for name in ("model", "optimizer", "scheduler", "scaler", "config")}
    rest = {"format": 1, "epoch": epoch, "step": 0, "losses": [], "random": [], "best": {"value": 0.5, "epoch": 1}}
    return {**empty, **rest, **changes}
