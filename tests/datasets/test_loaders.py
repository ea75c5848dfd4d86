import itertools
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datasets.classes import ISIC_FOLDERS
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.isic import ISICDataset
from datasets.loaders import (
    EpochBatchSampler,
    Loader,
    build_isic_loader,
    build_isic_loaders,
    choose_workers,
)
from datasets.transforms import run_angle
from datasets.volume_loaders import build_synapse_loaders, synapse_folders
from tests.tiny import ROOT, isic_config, synapse_config
from utils.machine.device import available_cpus
from utils.machine.memory import free_memory
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
    with pytest.raises(ValueError, match="--batch-size.* 2 .* 3"):
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


def test_filling_the_cache_draws_no_random_numbers_and_fails_for_an_unreadable_file(isic, monkeypatch):
    torch.manual_seed(1)
    build_isic_loader(isic_config(isic), "train")
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)

    def unreadable(dataset, index, decode=ISICDataset.decode):
        if index != 3:
            return decode(dataset, index)
        raise ValueError("mask.png cannot be read")

    monkeypatch.setattr(ISICDataset, "decode", unreadable)
    with pytest.raises(ValueError, match="mask.png"):
        build_isic_loader(isic_config(isic, cache="on"), "train")


def test_for_a_single_pass_workers_decode_as_they_go(isic):
    kept = build_isic_loader(isic_config(isic), "val", once=True)
    passing = build_isic_loader(isic_config(isic, num_workers=2, cache="on"), "val", once=True)
    assert kept.dataset.cache is not None and passing.dataset.cache is None
    assert_equal_batches(list(kept), list(passing))


def test_every_pass_uses_the_same_workers(isic):
    _, plain = build_isic_loaders(isic_config(isic, batch_size=2))
    _, parallel = build_isic_loaders(isic_config(isic, batch_size=2, num_workers=2))
    workers = set()
    for _ in range(2):
        assert_equal_batches(plain, parallel)
        workers |= {worker.pid for worker in parallel._iterator._workers}
    assert len(workers) == 2


HELD = """
import time
import torch
from datasets.loaders import Loader
from utils.runs.stopping import leave_signals_to_main
sampler = torch.utils.data.SequentialSampler(range(1000))
options = dict(persistent_workers=True, multiprocessing_context="fork", worker_init_fn=leave_signals_to_main)
loader = Loader(range(1000), sampler=sampler, num_workers=2, **options)
source = iter(loader)
next(source)
print(time.time(), *(worker.pid for worker in source._workers), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_a_program_that_holds_its_loader_to_the_end_does_not_wait_for_workers():
    done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=100)
    end = time.time()
    start, *workers = done.stdout.split()
    assert done.returncode == 0 and end - float(start) < 8  # where PyTorch has to wait, it waits 5 s for each worker
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)


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
    worker.join(30)
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
        (dict(dataset="isic19", data_path=None), "--dataset.*'isic19'.* isic17, isic18, demo"),
        (dict(num_classes=3, mask_values=("0", "1")), "--mask-values.* 2,.* 3"),
    ):
        with pytest.raises(ValueError, match=message):
            build_isic_loaders(isic_config(isic, **changes))
    with pytest.raises(FileNotFoundError, match="nothing.*data/README.md"):
        build_isic_loaders(isic_config(tmp_path / "nothing", dataset="isic17"))


def test_the_demo_is_made_where_none_is(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("datasets.demo.make_demo_isic", lambda folder: made.append(make_demo_isic(folder, 16, 4, 1, 1)))
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
    with pytest.raises(FileNotFoundError, match="list_Synapse/train.txt"):
        build_synapse_loaders(synapse_config(tmp_path, dataset="synapse"))


# ---- what the machine offers


def test_workers_are_chosen_from_the_machine(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_workers(-1, "auto", 1) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cpus, processes, expected in ((1, 1, 1), (4, 1, 3), (64, 1, 12), (64, 8, 7)):
        monkeypatch.setattr("datasets.loaders.available_cpus", lambda cpus=cpus: cpus)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert choose_workers(-1, "auto", 1) == expected
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=64 << 20))
    if Path("/dev/shm").is_dir():
        assert choose_workers(-1, "auto", 32 << 20) == 0 and choose_workers(4, "cpu", 5 << 20) == 2
        assert "--num-workers 4" in caplog.text and "--shm-size" in caplog.text and "67 MB" in caplog.text
    assert choose_workers(5, "cuda", 1) == 5
    assert choose_workers(-1, "cpu", 1) == 0


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
