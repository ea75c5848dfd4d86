"""The networks of `--network` side by side on this machine's CPU: parameters, cost, images per second.

    python -m benchmarks.networks [--output FILE]

256 x 256, float32, one class. The networks take turns. The report has the load of the machine at the start."""

import functools
import os

import torch

from benchmarks import common
from models.cost import measure_cost
from models.family import NETWORKS, build_network

NAMES = [*NETWORKS, "unet"]
SIZE, BATCH, ROUNDS = 256, 4, 7


def main() -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    report = common.start(__doc__, "networks")
    report.table("load", [{"at the start": load}])
    torch.manual_seed(0)
    images = common.make_images(BATCH, SIZE)
    networks = {name: build_network({"network": name, "num_classes": 1, "input_channels": 3}) for name in NAMES}
    costs = {name: measure_cost(network, SIZE, SIZE) for name, network in networks.items()}
    predict = torch.inference_mode()(lambda network: network.predict(images[:1]))
    runs = {name: functools.partial(predict, network.eval()) for name, network in networks.items()}
    one_image = common.medians(runs, ROUNDS)
    training = common.medians({name: common.training_step(n, images) for name, n in networks.items()}, ROUNDS)
    rows = []
    for name, cost in costs.items():
        row = {"network": name, "M parameters": cost.parameters / 1e6, "GFLOP": cost.flops / 1e9}
        row["images/s, one at a time"] = 1e3 / one_image[name]
        row[f"images/s, training, batches of {BATCH}"] = 1e3 * BATCH / training[name]
        rows.append(row)
    report.table("networks", rows)


if __name__ == "__main__":
    main()
