"""Checkpoints of random networks, which have something to predict all the same."""

import dataclasses

import torch

from configs.build import build_model
from tests.tiny import TRAINING
from utils.runs.checkpoint import save_checkpoint

SIZE = TRAINING["image_size"]
SMALL = TRAINING | dict(dataset="demo", scan_backend="torch")


def save_trained(folder, config):
    """A checkpoint of a random network, shifted so that no class has all pixels."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        inputs = torch.rand(2, 1, SIZE, SIZE) * (1 if config.of_volumes else 255)
        model.vmunet.final_conv.bias -= model(inputs).transpose(0, 1).flatten(1).median(1).values
    path = folder / f"{config.num_classes}_{config.dataset}.pth"
    save_checkpoint(path, {"model": model.state_dict(), "epoch": 1, "config": dataclasses.asdict(config)})
    return path
