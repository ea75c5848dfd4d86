"""Training on this machine's CPU as `train.py` does it: images a second, and the share of time spent waiting for data.

    python -m benchmarks.training [--output FILE]

Trains on data/isic17 at 256 x 256 in the published batches of 32, or on the synthetic demo without that folder."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from configs.config_setting import ISICConfig
from configs.network import build_model, prepare
from configs.optim import OPTIMIZERS
from datasets.loaders import ISIC_FOLDERS, build_isic_loader
from engine import Execution, train_one_epoch
from utils.losses import BceDiceWithLogitsLoss
from utils.machine.device import has_bf16
from utils.optim import build_optimizer
from utils.runs.batches import Batches
from utils.runs.run import set_seed

BATCHES = 5  # after a first one, which takes memory and loads the scan's code


class FirstBatches:
    """The first `count` batches of a loader; `asked` and `given` are when each was asked for and came."""

    def __init__(self, loader: Any, count: int):
        self.loader, self.count = loader, count
        self.asked: list[float] = []
        self.given: list[float] = []

    def __len__(self) -> int:
        return min(self.count, len(self.loader))

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        for _ in range(len(self)):
            self.asked.append(time.perf_counter())
            batch = next(batches)
            self.given.append(time.perf_counter())
            yield batch
        self.asked.append(time.perf_counter())


def measure(config: ISICConfig) -> dict[str, Any]:
    """A row: speed and waiting over the first batches of an epoch, without the very first."""
    set_seed(config.seed)
    device = torch.device("cpu")
    loader = FirstBatches(build_isic_loader(config, "train"), 1 + BATCHES)
    model = prepare(build_model(config), config, device)
    execution = Execution(device, config.precision, progress=False)
    train_one_epoch(
        model, Batches(loader), build_optimizer(model, config, OPTIMIZERS), BceDiceWithLogitsLoss(), execution
    )
    batches = [after - before for before, after in zip(loader.asked[1:], loader.asked[2:], strict=False)]
    waits = [given - asked for asked, given in zip(loader.asked[1:], loader.given[1:], strict=False)]
    return {
        "images": config.dataset,
        "size": config.image_size,
        "precision": config.precision,
        "batch": config.batch_size,
        "images/s": config.batch_size / statistics.median(batches),
        "s a batch": statistics.median(batches),
        "waiting for data, %": 100 * sum(waits) / sum(batches),
    }


def main() -> None:
    report = common.start(__doc__, "training")
    prepared = Path(ISIC_FOLDERS["isic17"]).is_dir()
    if not prepared:
        print("data/isic17 is not there (data/README.md says how to make it); training on the demo")
    dataset = "isic17" if prepared else "demo"
    precisions = ("fp32", "bf16") if has_bf16() else ("fp32",)
    rows = [measure(ISICConfig(dataset=dataset, device="cpu", precision=precision)) for precision in precisions]
    report.table("training", rows)
    print(f"\nwritten to {report.path}")


if __name__ == "__main__":
    main()
