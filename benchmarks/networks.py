"""The networks that `--network` offers beside each other on this machine's CPU: parameters, cost, images a second.

    python -m benchmarks.networks [--output FILE]

256 x 256, float32, one class. They take turns; the load of the machine at the start is in the first line."""

import os
from collections.abc import Callable

import torch

from benchmarks import common
from models.cost import measure_cost
from models.family import NETWORKS, build_network
from models.network import SegmentationNetwork
from utils.losses import BceDiceWithLogitsLoss

NAMES = [*NETWORKS, "unet"]
SIZE, BATCH, ROUNDS = 256, 4, 7


def predicting(network: SegmentationNetwork, images: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run():
        network.eval().predict(images)

    return run


def training(network: SegmentationNetwork, images: torch.Tensor) -> Callable[[], object]:
    """One step, optimizer included."""
    masks, criterion = (images[:, :1] > 128).float(), BceDiceWithLogitsLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def run():
        optimizer.zero_grad()
        criterion(network.train()(images), masks).backward()
        optimizer.step()

    return run


def main() -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    report = common.start(__doc__, "networks")
    report.content["environment"]["load at the start"] = load
    print(f"load at the start {load}")
    torch.manual_seed(0)
    images = 255 * torch.rand(BATCH, 3, SIZE, SIZE)
    networks = {name: build_network({"network": name, "num_classes": 1, "input_channels": 3}) for name in NAMES}
    costs = {name: measure_cost(network, SIZE, SIZE) for name, network in networks.items()}
    times = {
        "one image": common.medians({name: predicting(n, images[:1]) for name, n in networks.items()}, ROUNDS),
        "training": common.medians({name: training(n, images) for name, n in networks.items()}, ROUNDS),
    }
    rows = []
    for name, cost in costs.items():
        row = {"network": name, "M parameters": cost.parameters / 1e6, "GFLOP": cost.flops / 1e9}
        row["images/s, one at a time"] = 1e3 / times["one image"][name]
        row[f"images/s, training, batches of {BATCH}"] = 1e3 * BATCH / times["training"][name]
        rows.append(row)
    report.table("networks", rows)


if __name__ == "__main__":
    main()
