import gc
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datasets import cache
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.isic import ISICDataset
from datasets.loaders import (
    ISIC_FOLDERS,
    EpochBatchSampler,
    Loader,
    build_isic_loader,
    build_isic_loaders,
    build_synapse_loaders,
    choose_workers,
    synapse_folders,
)
from datasets.transforms import run_angle
from tests.tiny import ROOT, isic_config, synapse_config
from utils.machine.device import available_cpus
from utils.machine.memory import free_memory
from utils.runs.batches import Batches
from utils.runs.stopping import leave_signals_to_main

# forking with threads about, and more workers than cores, are what these tests are for
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("demo") / "isic", size=40, train=10, val=5, test=1)


@pytest.fixture(scope="module")
def synapse(tmp_path_factory):
    return make_demo_synapse(tmp_path_factory.mktemp("demo") / "synapse", size=40, train=2, val=1, test=1, slices=5)


def batches(loader, epoch):
    loader.batch_sampler.set_epoch(epoch)
    return list(itertools.islice(loader, len(loader)))


def assert_equal_batches(some, others):
    for (image, target, names), (other_image, other_target, other_names) in zip(some, others, strict=True):
        assert names == other_names
        assert torch.equal(image, other_image) and torch.equal(target, other_target)


# ---- sampler


def test_an_epoch_has_every_sample_once_in_a_new_order():
    sampler = EpochBatchSampler(10, 4, seed=1, shuffle=True)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [4, 4, 2] and len(sampler) == 3
        assert {number for number, _ in itertools.chain(*batches)} == {epoch}
        orders.append([index for _, index in itertools.chain(*batches)])
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1] != orders[2]
    sampler.set_epoch(0)
    assert [index for _, index in itertools.chain(*sampler)] == orders[0]


def test_an_endless_sampler_goes_on_with_the_next_epoch():
    sampler, endless = (EpochBatchSampler(10, 4, seed=1, shuffle=True, endless=endless) for endless in (False, True))
    endless.set_epoch(5, done=2)
    expected = sampler.batches(5)[2:] + sampler.batches(6) + sampler.batches(7)
    assert list(itertools.islice(endless, len(expected))) == expected and len(endless) == 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_one_process(world_size):
    whole = list(EpochBatchSampler(23, 6, seed=1, shuffle=True))
    shares = [list(EpochBatchSampler(23, 6, 1, True, rank, world_size)) for rank in range(world_size)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(part == batch[rank::world_size] for rank, part in enumerate(parts))


def test_a_last_training_batch_too_small_for_all_ranks_is_dropped():
    samplers = [EpochBatchSampler(9, 4, 1, True, rank, 2) for rank in range(2)]
    assert [[len(batch) for batch in sampler] for sampler in samplers] == [[2, 2], [2, 2]]
    assert [len(sampler) for sampler in samplers] == [2, 2]
    assert len(list(EpochBatchSampler(9, 4, 1, True))) == 3


@pytest.mark.parametrize("length", [1, 4, 9, 10, 11])
def test_validation_sees_every_sample_once_over_all_ranks(length):
    samplers = [EpochBatchSampler(length, 4, 1, False, rank, 3) for rank in range(3)]
    seen = [index for sampler in samplers for batch in sampler for _, index in batch]
    assert sorted(seen) == list(range(length))
    assert all(len(list(sampler)) == len(sampler) and all(sampler) for sampler in samplers)


def test_a_batch_smaller_than_the_ranks_is_an_error():
    with pytest.raises(ValueError, match="batch_size 2 is for all processes together; expected at least 3"):
        EpochBatchSampler(10, 2, 1, True, 0, 3)


# ---- ISIC


def test_isic_batches(isic):
    train, val = build_isic_loaders(isic_config(isic))
    images, masks, names = batches(train, 1)[0]
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
    assert masks.shape == (4, 1, 32, 32) and len(names) == 4
    assert [name for _, _, names in val for name in names] == [pair[0] for pair in val.dataset.pairs]
    assert train.dataset.transform.angle == run_angle(42)


def test_rotation_of_each_sample(isic):
    assert build_isic_loader(isic_config(isic, rotation="sample"), "train").dataset.transform.angle is None


@pytest.mark.parametrize("cached", ["on", "off"])
def test_isic_batches_do_not_depend_on_workers_and_cache(isic, cached):
    plain, _ = build_isic_loaders(isic_config(isic))
    parallel, _ = build_isic_loaders(isic_config(isic, num_workers=2, cache=cached))
    for epoch in (1, 2, 1):
        assert_equal_batches(batches(plain, epoch), batches(parallel, epoch))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_processes_decode_what_threads_decode_and_draw_no_random_numbers(isic, monkeypatch):
    expected = build_isic_loader(isic_config(isic), "train").dataset.cache
    monkeypatch.setattr(cache, "PART", 1)
    monkeypatch.setattr(cache, "MANY", 2)
    monkeypatch.setattr(cache, "available_cpus", lambda: 4)
    monkeypatch.setattr(cache.CachedDataset, "_decoded", main_process_may_not(cache.CachedDataset._decoded))
    torch.manual_seed(1)
    found = build_isic_loader(isic_config(isic), "train").dataset.cache
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))

    def unreadable(dataset, index, decode=ISICDataset.decode):
        if os.getpid() == here or index != 3:
            return decode(dataset, index)
        raise ValueError("mask.png cannot be read")

    here = os.getpid()
    monkeypatch.setattr(ISICDataset, "decode", unreadable)
    with pytest.raises(ValueError, match="mask.png cannot be read"):
        build_isic_loader(isic_config(isic), "train")


def main_process_may_not(function):
    """The function, which raises in this process."""
    here = os.getpid()

    def elsewhere(*arguments):
        assert os.getpid() != here
        return function(*arguments)

    return elsewhere


def test_for_a_single_pass_workers_decode_as_they_go(isic):
    kept = build_isic_loader(isic_config(isic), "val", once=True)
    passing = build_isic_loader(isic_config(isic, num_workers=2, cache="on"), "val", once=True)
    assert kept.dataset.cache is not None and passing.dataset.cache is None
    assert_equal_batches(list(kept), list(passing))


def test_a_pass_that_was_begun_early_has_the_same_batches(isic):
    _, plain = build_isic_loaders(isic_config(isic, batch_size=2))
    _, early = build_isic_loaders(isic_config(isic, batch_size=2, num_workers=2))
    workers = set()
    for _ in range(2):
        early.begin()
        early.begin()  # which it has
        assert_equal_batches(plain, early)
        workers |= {worker.pid for worker in early._iterator._workers}
    assert len(workers) == 2  # the same ones throughout


def test_training_that_was_begun_early_has_the_same_batches(isic, monkeypatch):
    starts, usual = [], Loader._start
    monkeypatch.setattr(Loader, "_start", lambda loader: starts.append(loader) or usual(loader))
    plain, _ = build_isic_loaders(isic_config(isic, batch_size=2))
    early, _ = build_isic_loaders(isic_config(isic, batch_size=2, num_workers=1))
    plain, early = Batches(plain, epoch=3, losses=[0.5]), Batches(early, epoch=3, losses=[0.5])
    early.begin()
    early.begin()  # which it has
    assert starts == [early.loader]
    assert_equal_batches(plain, early)
    assert starts == [early.loader, plain.loader]


def test_workers_leave_at_once_when_their_loader_is_garbage(isic):
    """In a cycle, so that the collector finds loader, pipes and workers at the same time."""
    loader, _ = build_isic_loaders(isic_config(isic, num_workers=2))
    source = iter(loader)
    next(source)
    held = [loader, source]
    held.append(held)
    workers = [worker.pid for worker in source._workers]
    start = time.monotonic()
    del loader, source, held
    gc.collect()
    assert time.monotonic() - start < 4  # PyTorch by itself waits for 10 s
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers)


HELD = """
import weakref
class Something: pass
something = Something()
weakref.finalize(something, str)  # an earlier one, as of a library: it sets the order in which all of them are called
import torch.utils.data.dataloader as pytorch
from datasets.loaders import Loader
def shutdown(batches, usual=pytorch._MultiProcessingDataLoaderIter._shutdown_workers):
    print("told" if pytorch._utils.python_exit_status is False else "too late", flush=True)
    usual(batches)
pytorch._MultiProcessingDataLoaderIter._shutdown_workers = shutdown
loader = Loader([1, 2], num_workers=1, persistent_workers=True, multiprocessing_context="fork")
source = iter(loader)
"""


def test_workers_are_told_to_leave_although_something_holds_their_loader_to_the_end():
    done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=100)
    assert done.returncode == 0 and done.stdout.split("\n")[0] == "told", done.stderr


class Stuck(torch.utils.data.Dataset):
    """Never gives its sample. `file` says that it is asked for one."""

    def __init__(self, file):
        self.file = file

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.file.touch()
        while True:
            time.sleep(1)


def test_a_worker_that_does_not_leave_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds to wait for it
    data = Stuck(tmp_path / "asked")
    loader = Loader(data, num_workers=1, worker_init_fn=leave_signals_to_main, multiprocessing_context="fork")
    source = iter(loader)
    (worker,) = source._workers
    while not data.file.exists():
        time.sleep(0.01)
    del source, loader
    assert worker.exitcode == 0  # by SIGTERM, see leave_signals_to_main


def test_loading_leaves_the_global_generators_alone(isic):
    loader, _ = build_isic_loaders(isic_config(isic))
    before = torch.get_rng_state()
    batches(loader, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_ranks_of_a_batch_make_the_batch_of_one_process(isic):
    whole = batches(build_isic_loader(isic_config(isic), "train"), 3)
    shares = [batches(build_isic_loader(isic_config(isic), "train", rank, 2), 3) for rank in range(2)]
    for (images, _, _), (first, _, _), (second, _, _) in zip(whole, *shares, strict=True):
        assert torch.equal(images[0::2], first) and torch.equal(images[1::2], second)


def test_several_classes(isic):
    config = isic_config(isic, num_classes=2, mask_values=("0", "255"))
    _, target, _ = batches(build_isic_loader(config, "train"), 1)[0]
    assert target.shape == (4, 32, 32) and target.dtype == torch.int64 and target.unique().tolist() == [0, 1]


def test_errors_of_a_config_are_named(isic, tmp_path):
    for changes, message in (
        (dict(dataset="isic19", data_path=None), "dataset is 'isic19'; expected isic17, isic18, demo"),
        (dict(rotation="twice"), "rotation is 'twice'; expected run or sample"),
        (dict(cache="maybe"), "cache is 'maybe'; expected auto, on or off"),
        (dict(num_classes=3, mask_values=("0", "1")), "mask_values names 2 values; expected 3"),
    ):
        with pytest.raises(ValueError, match=message):
            build_isic_loaders(isic_config(isic, **changes))
    with pytest.raises(FileNotFoundError, match="nothing is not a folder; see data/README.md"):
        build_isic_loaders(isic_config(tmp_path / "nothing", dataset="isic17"))


def test_the_demo_is_made_where_none_is(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "datasets.loaders.make_demo_isic", lambda folder: made.append(make_demo_isic(folder, 16, 4, 1, 1))
    )
    # in the repository it would stay, and `make demo` would train on its four images
    assert ISIC_FOLDERS["demo"] == ROOT / "data/demo/isic"
    monkeypatch.setitem(ISIC_FOLDERS, "demo", tmp_path / "demo")
    build_isic_loaders(isic_config(None, data_path=None))
    assert set(made) == {tmp_path / "demo"}


# ---- Synapse


def test_synapse_batches(synapse):
    train, volumes = build_synapse_loaders(synapse_config(synapse))
    images, labels, names = batches(train, 1)[0]
    assert images.shape == (4, 1, 32, 32) and labels.shape == (4, 32, 32) and labels.dtype == torch.int64
    assert len(names) == 4 and len(volumes) == 1 and volumes[0][2] == "case0004"
    parallel, _ = build_synapse_loaders(synapse_config(synapse, num_workers=2, cache="off"))
    for epoch in (1, 2):
        assert_equal_batches(batches(train, epoch), batches(parallel, epoch))


def test_synapse_folders_may_be_given_one_by_one(synapse, tmp_path):
    moved = tmp_path / "Synapse"
    for part in ("train_npz", "test_vol_h5"):
        (moved / part).parent.mkdir(exist_ok=True)
        (moved / part).symlink_to(synapse / part)
    lists = synapse / "lists" / "list_Synapse"
    given = synapse_config(moved / "train_npz", dataset="synapse", list_dir=str(lists))
    assert len(build_synapse_loaders(given)[0].dataset) == 10
    (moved / "lists").mkdir()
    (moved / "lists" / "lists_Synapse").symlink_to(lists)
    assert len(build_synapse_loaders(synapse_config(moved, dataset="synapse"))[1]) == 1


def test_missing_lists_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="list_Synapse/train.txt is missing"):
        build_synapse_loaders(synapse_config(tmp_path, dataset="synapse"))


# ---- what the machine offers


def test_workers_are_chosen_from_the_machine(monkeypatch):
    config = SimpleNamespace(num_workers=-1, device="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_workers(config, 1) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cpus, processes, expected in ((1, 1, 1), (4, 1, 3), (64, 1, 12), (64, 8, 7)):
        monkeypatch.setattr("datasets.loaders.available_cpus", lambda cpus=cpus: cpus)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert choose_workers(config, 1) == expected
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=64 << 20))
    if Path("/dev/shm").is_dir():
        assert choose_workers(config, 32 << 20) == 0
    assert choose_workers(SimpleNamespace(num_workers=5, device="cuda"), 1) == 5
    assert choose_workers(SimpleNamespace(num_workers=-1, device="cpu"), 1) == 0


def test_the_cache_is_chosen_by_free_memory(isic, monkeypatch):
    assert build_isic_loader(isic_config(isic), "val").dataset.cache is not None
    monkeypatch.setattr("datasets.loaders.free_memory", lambda: 1000)
    assert build_isic_loader(isic_config(isic), "val").dataset.cache is None
    assert build_isic_loader(isic_config(isic, cache="on"), "val").dataset.cache is not None


def test_free_memory_is_a_sensible_number():
    assert 1 << 20 < free_memory() < 1 << 50
    assert available_cpus() >= 1


def test_holdout_lists_are_taken_for_holdout(tmp_path):
    root = make_demo_synapse(tmp_path / "data", size=16, train=2, val=1, test=1, slices=2)
    lists = root / "lists"
    assert synapse_folders(synapse_config(root, protocol="holdout"))[1] == lists / "list_Synapse"
    (lists / "list_Synapse_holdout").mkdir()
    assert synapse_folders(synapse_config(root, protocol="holdout"))[1] == lists / "list_Synapse_holdout"
    assert synapse_folders(synapse_config(root))[1] == lists / "list_Synapse"
    assert synapse_folders(synapse_config(tmp_path, dataset="own"))[1] == tmp_path / "lists" / "list_Synapse"
