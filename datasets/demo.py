"""Synthetic data sets in the layout of the real ones, made on first use: no download is needed to try the code."""

import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from datasets.synthetic import abdomen, lesion

log = logging.getLogger("vmunet")

MARKER = "SYNTHETIC.txt"
NOTE = "Synthetic {}, drawn by datasets/synthetic.py: not of patients, good for trying the code and nothing else.\n"
SEED = 20240


def make_once(root: str | Path, kind: str, write: Callable[[Path], None]) -> Path:
    """Fill a folder with `write(folder)`, then rename it to `root`, unless `root` exists; return root."""
    root = Path(root)
    if (root / MARKER).is_file():
        return root
    if root.exists():
        raise ValueError(f"{root} exists but holds no synthetic data ({MARKER}); remove it or give another --data-path")
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        work.chmod(0o755)  # mkdtemp's folders are private
        write(work)
        (work / MARKER).write_text(NOTE.format(kind), encoding="utf-8")
        work.rename(root)
        log.info("made synthetic %s in %s", kind, root)
    except OSError:
        if not (root / MARKER).is_file():  # else another process was first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def make_demo_isic(
    root: str | Path, size: int = 128, train: int = 96, val: int = 32, test: int = 32, seed: int = SEED
) -> Path:
    """Write synthetic lesion images and masks as `root/{train,val,test}/{images,masks}`; returns root."""

    def write(folder: Path) -> None:
        splits = ["train"] * train + ["val"] * val + ["test"] * test
        for split, kind in itertools.product(("train", "val", "test"), ("images", "masks")):
            (folder / split / kind).mkdir(parents=True)
        for number, split in enumerate(splits):
            image, mask = lesion(np.random.default_rng((seed, number)), size)
            name = f"DEMO_{number:07d}"
            Image.fromarray(image).save(folder / split / "images" / f"{name}.jpg", quality=92)
            Image.fromarray(mask).save(folder / split / "masks" / f"{name}_segmentation.png")

    return make_once(root, "lesion images", write)


def make_demo_synapse(
    root: str | Path, size: int = 128, train: int = 12, val: int = 2, test: int = 3, slices: int = 12, seed: int = SEED
) -> Path:
    """Write synthetic CT as Synapse's train_npz, test_vol_h5 and lists/list_Synapse under `root`; returns root."""

    def write(folder: Path) -> None:
        lists = folder / "lists" / "list_Synapse"
        for part in (folder / "train_npz", folder / "test_vol_h5", lists):
            part.mkdir(parents=True)
        listed: dict[str, list[str]] = {"train.txt": [], "val_vol.txt": [], "test_vol.txt": [], "all.lst": []}
        for number in range(1, train + val + test + 1):
            image, label, spacing = abdomen(np.random.default_rng((seed, number)), size, slices)
            label = label.astype(np.float32)  # as in the files of TransUNet
            case = f"case{number:04d}"
            listed["all.lst"].append(f"{case}.npy.h5")
            if number > train:
                listed["val_vol.txt" if number <= train + val else "test_vol.txt"].append(case)
                with h5py.File(folder / "test_vol_h5" / f"{case}.npy.h5", "w") as file:
                    for kind, array in (("image", image), ("label", label)):
                        file.create_dataset(kind, data=array, compression="gzip", compression_opts=1)
                    file.attrs["spacing"] = spacing
            for index in range(slices) if number <= train else ():
                name = f"{case}_slice{index:03d}"
                listed["train.txt"].append(name)
                np.savez(folder / "train_npz" / f"{name}.npz", image=image[index], label=label[index])
        for name, lines in listed.items():
            (lists / name).write_text("".join(f"{line}\n" for line in lines))

    return make_once(root, "abdominal CT", write)
