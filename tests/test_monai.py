"""The networks in a MONAI training loop, with its loss and its sliding window (docs/library.md)."""

import pytest
import torch

import models
from tests.tiny import NETWORK

monai = pytest.importorskip("monai")


def test_a_network_learns_with_monais_loss_and_predicts_with_its_sliding_window():
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceCELoss

    torch.manual_seed(0)
    network = models.VMUNet(**{**NETWORK, "num_classes": 3, "input_channels": 1, "drop_path_rate": 0})
    labels = torch.randint(3, (2, 1, 4, 4)).repeat_interleave(16, 2).repeat_interleave(16, 3)
    images = torch.rand(labels.shape) + 2 * labels  # brightness tells the class
    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), torch.optim.AdamW(network.parameters(), 1e-2)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        values.append(loss(network(images), labels))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]
    network.eval()
    with torch.no_grad():
        whole = sliding_window_inference(images, (64, 64), 1, network)
        torch.testing.assert_close(whole, network(images))
        wider = torch.cat([images, images], 3)
        assert sliding_window_inference(wider, (64, 64), 4, network, overlap=0.5).shape == (2, 3, 64, 128)
