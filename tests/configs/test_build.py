"""Batches from which a network with BatchNorm can't learn are found before the first step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs.build import check_smallest_batch
from datasets.loaders import EpochBatchSampler


def check(images, batch_size, world_size=1, pooled=True):
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = SimpleNamespace(batch_size=batch_size, input_channels=3, image_size=32, network="a network")
    try:
        check_smallest_batch(model, config, EpochBatchSampler(images, batch_size, 1, True, 0, world_size))
    finally:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "images, batch_size, world_size, better", [(5, 2, 1, 3), (9, 8, 1, 9), (7, 4, 2, 6), (5, 1, 1, 3)]
)
def test_a_batch_of_one_image_is_told_with_a_size_that_fits(images, batch_size, world_size, better):
    with pytest.raises(ValueError, match=rf"--batch-size {batch_size}\b.*{images}.*--batch-size {better}\b"):
        check(images, batch_size, world_size)


def test_other_batches_and_larger_maps_pass():
    check(6, 2)
    check(5, 2, pooled=False)
    check(9, 4, world_size=2)  # the last image is one for two processes: it is left out
