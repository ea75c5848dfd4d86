"""Two processes draw stochastic depth as one process does, so that they follow its losses."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.loaders import EpochBatchSampler
from engine import Compute, train_one_epoch
from models.vmunet import VMUNet
from tests.ranks import run_in_two_processes
from tests.tiny import NETWORK
from utils.losses import BceDiceWithLogitsLoss
from utils.runs.batches import Batches


class Images(Dataset):
    def __len__(self):
        return 13

    def __getitem__(self, key):
        _, index = key
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return image, (image[:1] > 0.5).float(), str(index)


def train(rank=0, world_size=1, drop_path_rate=0.2):
    """The losses of all steps of two epochs, whose last batches have three images."""
    torch.manual_seed(1)
    model = VMUNet(num_classes=1, **NETWORK, drop_path_rate=drop_path_rate)
    sampler = EpochBatchSampler(13, 5, 3, shuffle=True, rank=rank, world_size=world_size, endless=True)
    batches = Batches(DataLoader(Images(), batch_sampler=sampler))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.01), []
    for _ in range(2):
        compute, criterion = Compute(torch.device("cpu")), BceDiceWithLogitsLoss()
        train_one_epoch(model, batches, optimizer, criterion, compute, on_step=lambda loss, rate: losses.append(loss))
        batches.next_epoch()
    return losses


def train_and_save(rank, folder):
    torch.save(train(rank, 2), f"{folder}/{rank}.pt")


def test_two_processes_follow_one_process_with_drop_path(tmp_path):
    run_in_two_processes(train_and_save, tmp_path)
    losses = train()
    assert losses[0] != pytest.approx(train(drop_path_rate=0.0)[0], rel=1e-4)  # something is dropped
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(shared) == 6 and shared == pytest.approx(losses, rel=1e-5)
