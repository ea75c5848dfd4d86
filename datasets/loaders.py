"""Loaders for training and validation; those of volumes are in volume_loaders.py.

The same seed gives the same batches for any number of workers. The batches of several processes together are those of
one process. A `config` is an ISICConfig for images, a SynapseConfig for volumes.
"""

import dataclasses
import hashlib
import itertools
import logging
import os
import random
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from datasets.cache import CachedDataset
from datasets.classes import DATA, ISIC_FOLDERS, check_kind
from datasets.folds import find_split
from datasets.image_augmentation import StrongTransform
from datasets.isic import ISICDataset
from datasets.masks import parse_mask_values
from datasets.transforms import ISICTransform, run_angle
from utils.files import first_few
from utils.machine.device import available_cpus
from utils.machine.memory import free_memory
from utils.runs.stopping import leave_signals_to_main, signals_held

log = logging.getLogger("vmunet")

PREFETCH = 2  # batches that each worker keeps ready
SAMPLES, SAMPLE_BYTES = 16, 1024  # of each file in a fingerprint: 5000 files take half a second


@dataclass(eq=False)
class EpochBatchSampler(Sampler):
    """Yield lists of (epoch, index): this process's share of each global batch of `batch_size` samples.

    The order depends on seed and epoch only, not on `rank` and `world_size`; rank r takes every world_size-th sample,
    starting with the r-th. When shuffling (training), a last batch with fewer samples than ranks is dropped. Otherwise
    ranks without a share get no batch, and all ranks together see each sample exactly once.

    endless: continue with the next epoch, so that workers prepare its first batches while the network is evaluated."""

    length: int
    batch_size: int
    seed: int
    shuffle: bool
    rank: int = 0
    world_size: int = 1
    endless: bool = False
    epoch: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < self.world_size:
            found = f"found {self.batch_size} for all processes"
            raise ValueError(f"--batch-size: {found}, expected at least {self.world_size}")

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Start with this epoch, without its first `done` batches, on which an interrupted run has trained."""
        self.epoch, self.done = epoch, done

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        yield from self.batches(self.epoch)[self.done :]
        for epoch in itertools.count(self.epoch + 1) if self.endless else ():
            yield from self.batches(epoch)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.starts())

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        order = [(epoch, index) for index in range(self.length)]
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return [order[start : start + self.batch_size][self.rank :: self.world_size] for start in self.starts()]

    def shares_of_epoch(self, batch_size: int) -> set[int]:
        """Return how many samples the processes get in the steps of an epoch with batches of this size."""
        sampler = dataclasses.replace(self, batch_size=max(batch_size, self.world_size))
        sizes = {min(sampler.batch_size, self.length - start) for start in sampler.starts()}
        return {len(range(rank, size, self.world_size)) for size in sizes for rank in range(self.world_size)}

    def starts(self) -> range:
        """Return the first position of each global batch in which this rank has a share."""
        needed = self.world_size if self.shuffle else self.rank + 1
        return range(0, max(0, self.length - needed + 1), self.batch_size)


class Loader(DataLoader):
    """A DataLoader whose workers a signal to the run cannot kill while they start."""

    def __iter__(self):
        with signals_held():
            return super().__iter__()


def processes_here() -> int:
    """Return the number of training processes on this machine, as set by torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def uses_cuda(device: str) -> bool:
    """Return whether --device selects an NVIDIA (or ROCm) device on this machine."""
    return torch.cuda.is_available() and device.startswith(("auto", "cuda"))


def choose_workers(num_workers: int, device: str, batch_bytes: int) -> int:
    """Return the number of worker processes of a loader: `num_workers`, or for -1 a number that suits the machine.
    The number is lower, with a warning, if the shared memory (64 MB in Docker) cannot hold all finished batches.

    Without CUDA that number is 0, because the network itself uses all cores. Otherwise it is one for each free
    core, at most 12."""
    workers = num_workers
    if num_workers < 0:
        workers = min(12, max(1, available_cpus() // processes_here() - 1)) if uses_cuda(device) else 0
    if workers and Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free
        possible = int(free // (2 * (PREFETCH + 1) * batch_bytes))
        if possible < workers:
            found = (
                f"{workers} processes to read data, but /dev/shm has {free / 1e6:.0f} MB free, enough for {possible}"
            )
            log.warning("--num-workers %d: found %s; docker's --shm-size 8g gives more", num_workers, found)
        workers = min(workers, possible)
    return workers


def fill_cache(dataset: CachedDataset, cache: str) -> None:
    """Decode the whole data set into memory if `cache` is "on", or "auto" and half the free memory is enough for it and
    those of the other training processes on the machine."""
    needed = dataset.decoded_bytes() if cache == "auto" else 0
    if cache == "on" or cache == "auto" and needed <= free_memory() / 2 / processes_here():
        dataset.preload()
    elif cache == "auto":
        log.info("%d samples are decoded anew in each epoch: they need %.1f GB of memory", len(dataset), needed / 1e9)


def check_foreground(dataset: CachedDataset, folder: str | Path, ignore_label: int | None = None) -> None:
    """Raise ValueError if every mask is background or ignored. Stop at the first other mask."""
    masks = (dataset.sample(index)[1] for index in range(len(dataset)))
    if not any(((mask != 0) & (mask != (ignore_label or 0))).any() for mask in masks):
        raise ValueError(f"{folder}: found background only in all {len(dataset)} training masks, expected foreground")


def data_fingerprint(files: Iterable[str | Path], contents: bool = True) -> str:
    """Return a hash of the names and sizes of files, in their order, and with `contents` of SAMPLES blocks of each.

    The blocks are spread evenly from the first byte to the last; PNG, NPZ and gzip end with a checksum."""
    digest = hashlib.sha256()
    for path in map(Path, files):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\n".encode("utf-8", "surrogateescape"))
        if contents:
            with path.open("rb", buffering=0) as file:
                for number in range(SAMPLES):
                    file.seek(number * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def make_loader(dataset: CachedDataset, config: Any, shuffle: bool, rank: int, world_size: int) -> Loader:
    """Return a Loader of (image, target, names) batches, with the augmentation parameters of the samples last.

    A training loader (`shuffle`) is endless: an epoch is its next len(loader) batches, and
    loader.batch_sampler.set_epoch(e) sets the epoch that it starts with. Its workers live until the program ends."""
    if shuffle and config.batch_size > len(dataset):
        found = f"found {len(dataset)} samples to train on"
        raise ValueError(f"--batch-size {config.batch_size}: {found}, expected at least as many")
    sampler = EpochBatchSampler(
        len(dataset), config.batch_size, config.seed, shuffle, rank, world_size, endless=shuffle
    )
    rest = len(dataset) % config.batch_size
    if shuffle and rank == 0 and rest < world_size and rest:
        text = "--batch-size %d: the last %d of %d images of each epoch are left out, fewer than the %d processes"
        log.warning(text, config.batch_size, rest, len(dataset), world_size)
    channels = 2 * getattr(config, "context", 0) + 4  # float32; of images 3 and a mask, or a slice and int64 labels
    batch_bytes = 4 * channels * config.image_size**2 * -(-config.batch_size // world_size)
    workers = choose_workers(config.num_workers, config.device, batch_bytes)
    return Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=uses_cuda(config.device),
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=leave_signals_to_main,
        # cached samples must reach the workers without a copy
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # its own generator: the global one, which drop path uses, must not depend on how batches are loaded
        generator=torch.Generator().manual_seed(config.seed),
    )


def data_folder(config: Any, folders: dict[str, Path]) -> Path:
    """Return the folder to read: data_path, or the data set's own in `folders`. The demo is made on first use."""
    default = folders.get(config.dataset, DATA / config.dataset)
    if config.data_path is None and config.dataset not in folders and not default.is_dir():
        expected = f"{', '.join(folders)}, or another name with --data-path"
        raise ValueError(f"--dataset: found {config.dataset!r}, expected {expected}")
    folder = Path(config.data_path or default)
    if config.dataset == "demo":
        from datasets import demo  # which no other data set needs

        (demo.make_demo_isic if folders is ISIC_FOLDERS else demo.make_demo_synapse)(folder)
    if not folder.is_dir():
        help = "see data/README.md, or try --dataset demo, which needs no download"
        raise FileNotFoundError(f"{folder} is not a folder; {help}")
    check_kind(folder, config, of_volumes=folders is not ISIC_FOLDERS)
    return folder


def check_disjoint(folder: str | Path, parts: dict[str, set[str]]) -> None:
    """Raise ValueError if two parts, {part: its names}, have names in common."""
    for (one, names), (other, more) in itertools.combinations(parts.items(), 2):
        if common := sorted(names & more):
            found = f"found {len(common)} names in both {one} and {other} of {folder}"
            raise ValueError(f"--protocol holdout: {found}, expected none: {first_few(common)}")


def build_isic_loaders(config: Any, rank: int = 0, world_size: int = 1) -> tuple[Loader, Loader]:
    """Return (train loader, val loader) of (images, targets, names); each rank of `world_size` gets its share."""
    train, val = (build_isic_loader(config, split, rank, world_size) for split in ("train", "val"))
    return train, val


def build_isic_loader(config: Any, split: str, rank: int = 0, world_size: int = 1, once: bool = False) -> Loader:
    """Return the loader of one split: "train" shuffled and augmented, "val" and "test" in order and unchanged.

    once: for a single pass; the cache stays empty if workers decode. loader.dataset.transform.angle is the angle of the
    run's rotations in degrees (None with rotation "sample")."""
    folder = data_folder(config, ISIC_FOLDERS)
    train = split == "train"
    strong = train and config.augmentation == "strong"
    transform = (StrongTransform if strong else ISICTransform)(
        config.image_size,
        binary=config.num_classes == 1,
        angle=run_angle(config.seed) if config.rotation == "run" else None,
        normalization=config.normalization,
        mask_resize=config.mask_resize,
        antialias=config.antialias,
        channels=config.input_channels,
    )
    mask_values = parse_mask_values(config.mask_values, config.num_classes)
    pairs = find_split(folder, split, config)
    ignore_label = getattr(config, "ignore_label", None)
    options = (config.num_classes, mask_values, train, config.seed, pairs, ignore_label)
    dataset = ISICDataset(folder, split, transform, *options)
    loader = make_loader(dataset, config, train, rank, world_size)
    if not (once and loader.num_workers):
        fill_cache(dataset, config.cache)
    if train:
        check_foreground(dataset, folder, ignore_label)
    return loader


def check_isic_parts(config: Any) -> None:
    """Check for --protocol holdout that train, val and test exist and have no images in common.

    Raises FileNotFoundError if one is missing, ValueError that names the images in two of them."""
    folder = data_folder(config, ISIC_FOLDERS)
    parts = {part: find_split(folder, part, config) for part in ("train", "val", "test")}
    check_disjoint(folder, {part: {stem for stem, *_ in pairs} for part, pairs in parts.items()})
