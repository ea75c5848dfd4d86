"""Loaders for training and validation, from a config's values and what the machine offers.

The same seed gives the same batches for any number of workers. The batches of several processes put together are those
of one.
"""

import atexit
import itertools
import logging
import os
import random
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from configs.base import BaseConfig
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from datasets.augmentation import StrongAugmentation
from datasets.cache import CachedDataset
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.folds import find_split
from datasets.isic import ISICDataset, parse_mask_values
from datasets.synapse import HOLDOUT_LISTS, SynapseSlices, SynapseVolumes, cases_of_slices, read_list
from datasets.transforms import ISICTransform, RandomGenerator, run_angle
from utils.files import read_rows, some
from utils.machine.device import available_cpus
from utils.machine.memory import free_memory
from utils.repository import REPOSITORY
from utils.runs.stopping import leave_signals_to_main, signals_held

log = logging.getLogger("vmunet")

PREFETCH = 2  # batches that a worker keeps ready
DATA = REPOSITORY / "data"
ISIC_FOLDERS = {"isic17": DATA / "isic17", "isic18": DATA / "isic18", "demo": DATA / "demo" / "isic"}
SYNAPSE_FOLDERS = {"synapse": DATA / "Synapse", "acdc": DATA / "acdc", "demo": DATA / "demo" / "synapse"}
LIST_FOLDERS = ("list_volumes", "list_Synapse", "lists_Synapse")
AUGMENTATIONS: dict[str, Callable] = {"published": RandomGenerator, "strong": StrongAugmentation}  # of slices


class EpochBatchSampler(Sampler):
    """Lists of (epoch, index), the share of one process in each global batch of `batch_size` samples.

    The order depends on seed and epoch only, not on `rank` and `world_size`; rank r takes every world_size-th sample
    from the r-th on. When shuffling (training) a last batch with fewer samples than ranks is dropped, since every rank
    needs one; otherwise ranks without a share get no batch, and all ranks together see each sample exactly once.

    endless: goes on with the next epoch, so that workers prepare its first batches while the network is evaluated.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        endless: bool = False,
    ):
        if batch_size < world_size:
            raise ValueError(f"batch_size {batch_size} is for all processes together; expected at least {world_size}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.endless = endless
        self.epoch, self.done = 0, 0

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Begins with this epoch, without its first `done` batches, on which an interrupted run has trained."""
        self.epoch, self.done = epoch, done

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        yield from self.batches(self.epoch)[self.done :]
        if self.endless:
            for epoch in itertools.count(self.epoch + 1):
                yield from self.batches(epoch)

    def __len__(self) -> int:
        """Batches of one epoch."""
        return len(self.starts())

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        order = list(range(self.length))
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        parts = (order[start : start + self.batch_size][self.rank :: self.world_size] for start in self.starts())
        return [[(epoch, index) for index in part] for part in parts]

    def starts(self) -> range:
        """The first position of each global batch of which this rank has a share."""
        needed = self.world_size if self.shuffle else self.rank + 1
        return range(0, max(0, self.length - needed + 1), self.batch_size)


def processes_here() -> int:
    """Training processes on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def uses_cuda(config: BaseConfig) -> bool:
    """Whether the network will run on an NVIDIA (or ROCm) device."""
    return torch.cuda.is_available() and config.device.startswith(("auto", "cuda"))


def choose_workers(config: BaseConfig, batch_bytes: int) -> int:
    """The number of worker processes of a loader: `num_workers`, or chosen for -1.

    Without CUDA it is 0, since the network itself uses all cores. Otherwise up to 12: one for each core that the
    training processes leave free, but no more than the shared memory for finished batches (often 64 MB in containers)
    has room for.
    """
    if config.num_workers >= 0:
        return config.num_workers
    if not uses_cuda(config):
        return 0
    workers = min(12, max(1, available_cpus() // processes_here() - 1))
    if Path("/dev/shm").is_dir():
        workers = min(workers, int(shutil.disk_usage("/dev/shm").free // (2 * (PREFETCH + 1) * batch_bytes)))
    return workers


def fill_cache(dataset: CachedDataset, cache: str) -> None:
    """Decodes the whole data set into memory if `cache` is "on", or "auto" and at most half of what is free is needed.

    With several processes on this machine each may take its share of that half."""
    if cache not in ("auto", "on", "off"):
        raise ValueError(f"cache is {cache!r}; expected auto, on or off")
    needed = dataset.decoded_bytes() if cache == "auto" else 0
    if cache == "on" or cache == "auto" and needed <= free_memory() / 2 / processes_here():
        dataset.preload()
    elif cache == "auto":
        log.info("%d samples are decoded anew in each epoch: they need %.1f GB of memory", len(dataset), needed / 1e9)


def check_foreground(dataset: CachedDataset, folder: str | Path) -> None:
    """Raises ValueError if every mask is background. Stops at the first that is not."""
    if not any(dataset.sample(index)[1].any() for index in range(len(dataset))):
        raise ValueError(f"{folder}: found background only in all {len(dataset)} training masks, expected foreground")


class Loader(DataLoader):
    """A DataLoader whose workers can't be killed by a signal to the run while they start, can begin early, and leave
    when the run ends."""

    begun: Iterator | None = None  # a pass that the workers prepare already

    def begin(self) -> None:
        """Lets the workers prepare the first batches of the next pass now, which then need not wait for them."""
        if self.num_workers and self.begun is None:
            self.begun = self._start()

    def __iter__(self):
        batches, self.begun = self.begun or self._start(), None
        return batches

    def _start(self):
        new_workers = self.num_workers > 0 and self._iterator is None
        with signals_held():
            batches: Any = super().__iter__()
        if new_workers:
            # Keeps the pipes to the workers open for as long as the loader lives. The collector of garbage may close
            # them first; the workers can then not be told to leave, and PyTorch waits five seconds for each.
            end = weakref.finalize(self, batches._shutdown_workers)
            # At the end of the program it is called before what PyTorch has registered, after which nobody is told.
            atexit.register(end)
        return batches


def make_loader(dataset: CachedDataset, config: BaseConfig, shuffle: bool, rank: int, world_size: int) -> Loader:
    """A DataLoader of (image, target, names) batches.

    For training (`shuffle`) it never ends: an epoch is the next len(loader) batches, and
    loader.batch_sampler.set_epoch(e) says with which to begin."""
    if shuffle and config.batch_size > len(dataset):
        found = f"found {len(dataset)} samples to train on"
        raise ValueError(f"--batch-size {config.batch_size}: {found}, expected at least as many")
    length, seed = len(dataset), config.seed
    sampler = EpochBatchSampler(length, config.batch_size, seed, shuffle, rank, world_size, endless=shuffle)
    batch_bytes = 4 * 4 * config.image_size**2 * -(-config.batch_size // world_size)
    workers = choose_workers(config, batch_bytes)
    return Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=uses_cuda(config),
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=leave_signals_to_main,
        # cached samples must reach the workers without a copy
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # its own generator: the global one, which drop path uses, must not depend on how batches are loaded
        generator=torch.Generator().manual_seed(seed),
    )


def data_folder(
    config: ISICConfig | SynapseConfig, folders: dict[str, Path], make_demo: Callable[[Path], object]
) -> Path:
    """The folder to read: `data_path`, or the data set's own in `folders`. The demo is made on first use."""
    if config.data_path is None and config.dataset not in folders:
        raise ValueError(f"dataset is {config.dataset!r}; expected {', '.join(folders)}, or any name with a data_path")
    folder = Path(config.data_path or folders[config.dataset])
    if config.dataset == "demo":
        make_demo(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; see data/README.md, or try the dataset demo, which needs no download"
        )
    return folder


def build_isic_loader(config: ISICConfig, split: str, rank: int = 0, world_size: int = 1, once: bool = False) -> Loader:
    """The loader of one split: "train" shuffled and augmented, "val" and "test" in order and unchanged; `once`: for a
    single pass, for which workers decode as they go.

    The angle of the run's rotations in degrees is loader.dataset.transform.angle (None with rotation "sample").
    """
    if config.rotation not in ("run", "sample"):
        raise ValueError(f"rotation is {config.rotation!r}; expected run or sample")
    folder = data_folder(config, ISIC_FOLDERS, make_demo_isic)
    transform = ISICTransform(
        config.image_size,
        binary=config.num_classes == 1,
        angle=run_angle(config.seed) if config.rotation == "run" else None,
        normalization=config.normalization,
        mask_resize=config.mask_resize,
        antialias=config.antialias,
        channels=config.input_channels,
    )
    train = split == "train"
    mask_values = parse_mask_values(config.mask_values, config.num_classes)
    pairs = find_split(folder, split, config)
    dataset = ISICDataset(folder, split, transform, config.num_classes, mask_values, train, config.seed, pairs)
    loader = make_loader(dataset, config, train, rank, world_size)
    if not (once and loader.num_workers):
        fill_cache(dataset, config.cache)
    if train:
        check_foreground(dataset, folder)
    return loader


def build_isic_loaders(config: ISICConfig, rank: int = 0, world_size: int = 1) -> tuple[Loader, Loader]:
    """(train loader, val loader) of (images, targets, names); each rank of `world_size` gets its share."""
    train, val = (build_isic_loader(config, split, rank, world_size) for split in ("train", "val"))
    return train, val


def check_isic_parts(config: ISICConfig) -> None:
    """What the protocol "holdout" needs before training: train, val and test without common images.

    Raises FileNotFoundError if one is missing, ValueError that names the images in two of them."""
    folder = data_folder(config, ISIC_FOLDERS, make_demo_isic)
    parts = {part: find_split(folder, part, config) for part in ("train", "val", "test")}
    check_disjoint(folder, {part: {stem for stem, *_ in pairs} for part, pairs in parts.items()})


def check_synapse_parts(config: SynapseConfig) -> None:
    """The same for volumes: the lists train.txt, val_vol.txt and test_vol.txt without common cases."""
    _, lists, _ = synapse_folders(config)
    parts = {name: set(read_list(lists, name)) for name in ("train.txt", "val_vol.txt", "test_vol.txt")}
    parts["train.txt"] = cases_of_slices(parts["train.txt"])
    check_disjoint(lists, parts)


def check_disjoint(folder: str | Path, parts: dict[str, set[str]]) -> None:
    """Raises ValueError if two parts, {part: its names}, have names in common."""
    for (one, names), (other, more) in itertools.combinations(parts.items(), 2):
        if names & more:
            common = f"{len(names & more)} names in both {one} and {other}"
            raise ValueError(
                f"--protocol holdout: found {common} of {folder}, expected none: {some(sorted(names & more))}"
            )


def synapse_folders(config: SynapseConfig) -> tuple[Path, Path, Path]:
    """The folders (slices, lists, volumes): below `data_path`, which may also be its train_npz, or where `list_dir` and
    `volume_path` say."""
    root = data_folder(config, SYNAPSE_FOLDERS, make_demo_synapse)
    root = root.parent if root.name == "train_npz" else root
    names = (HOLDOUT_LISTS, *LIST_FOLDERS) if config.protocol == "holdout" else LIST_FOLDERS
    lists = [root / "lists" / name for name in names]
    found = [folder for folder in lists if folder.is_dir()]
    list_dir = Path(config.list_dir or (found or lists[-2:])[0])
    return root / "train_npz", list_dir, Path(config.volume_path or root / "test_vol_h5")


def patients_of_cases(config: SynapseConfig) -> dict[str, str]:
    """{case: patient}, where the data folder's cases.csv knows it (datasets.prepare_volumes); {} elsewhere."""
    slices, _, _ = synapse_folders(config)
    rows = read_rows(slices.parent / "cases.csv")
    return {row["case"]: row["patient"] for row in rows if row.get("case") and row.get("patient")}


def build_synapse_volumes(config: SynapseConfig, list_name: str = "test_vol.txt") -> SynapseVolumes:
    """The volumes of a list, a data set of (image, label, name, spacing)."""
    _, lists, volumes = synapse_folders(config)
    return SynapseVolumes(volumes, lists, config.num_classes, list_name)


def build_synapse_loaders(
    config: SynapseConfig, rank: int = 0, world_size: int = 1, list_name: str = "test_vol.txt"
) -> tuple[Loader, SynapseVolumes]:
    """(train loader of (images, labels, names), data set of a list's volumes); each rank trains on its share."""
    slices, lists, _ = synapse_folders(config)
    transform = AUGMENTATIONS[config.augmentation](config.image_size)
    dataset = SynapseSlices(slices, lists, transform, config.num_classes, config.seed)
    fill_cache(dataset, config.cache)
    check_foreground(dataset, slices)
    return make_loader(dataset, config, True, rank, world_size), build_synapse_volumes(config, list_name)
