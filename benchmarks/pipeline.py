"""The pipeline around the network: predict.py on photographs, the final test of train.py, checkpoints.

    python -m benchmarks.pipeline [--output FILE]

The images are crops of data/samples, turned, 256 x 256. Goals are for 16 cores, and with isic17 for a GPU."""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import predict
import train
from benchmarks import common
from benchmarks.common import SIDE, make_photographs
from configs.config_setting import ISICConfig
from configs.resolve import resolve
from inference.inputs import search
from inference.output_folder import OutputFolder
from inference.predictor import Predictor
from models.family import build_network
from models.vmunet import VMUNet
from training import Session
from utils.runs.checkpoint import copied, save_checkpoint, save_latest

PHOTOGRAPHS, TESTED = 150, 650
WARM_UP, ROUNDS = 2, 3  # a GPU records graphs in two rounds: that of the last batch in the second
IMAGES_PER_SECOND, TEST_SECONDS, CHECKPOINT_SHARE = 300, 3, 1  # goals; the last in % of the time between checkpoints
SMALL = ISICConfig(
    dataset="demo", load_ckpt_path="none", image_size=32, depths=(1, 1, 1, 1), depths_decoder=(1, 1, 1, 1),
    dims=(8, 16, 32, 64), d_state=4,
)  # fmt: skip


class Brightness(torch.nn.Module):
    """A network without cost, which takes dark pixels for a lesion."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 128 - images.mean(1, keepdim=True)


class BrightnessSession(Session):
    """A run whose trained network is `Brightness`."""

    def trained_model(self) -> torch.nn.Module:
        self.cost.result()  # counted in a thread, which would disturb the test
        return Brightness()


def save_small(path: Path) -> Path:
    """Save a checkpoint of a small random network, shifted so that its masks have half of the pixels."""
    torch.manual_seed(0)
    model = build_network(vars(SMALL)).eval()
    with torch.no_grad():
        model.vmunet.final_conv.bias -= model(255 * torch.rand(2, 3, 32, 32)).median()
    save_checkpoint(path, {"model": model.state_dict(), "epoch": 1, "config": dataclasses.asdict(SMALL)})
    return path


def measure_predict(name: str, checkpoint: Path | str, photographs: Path, output: Path) -> dict[str, Any]:
    """Return a row: images per second of predict.py, from files to files, without the time to start."""
    predictor = Predictor(checkpoint)
    names = predict.name_results(search([str(photographs)], output).inputs, [])
    rates = []
    for number in range(WARM_UP + ROUNDS):
        folder = output / f"{name} {number}"
        folder.mkdir(parents=True)
        config = predict.PredictConfig(checkpoint=str(checkpoint), inputs=(str(photographs),), output=str(folder))
        start = time.perf_counter()
        predict.predict_all(OutputFolder(folder, "refuse", names), predictor, None, config)
        rates.append(len(names) / (time.perf_counter() - start))
    device, rate = predictor.device.type, statistics.median(rates[WARM_UP:])
    return {"network": name, "device": device, "images/s": rate, "goal": IMAGES_PER_SECOND}


def measure_test(data: Path, work_dir: Path) -> dict[str, Any]:
    """Return a row: the seconds of the final test, with a network that costs nothing."""
    changes = dict(dataset="own", image_size=SIDE, data_path=str(data), work_dir=str(work_dir))
    config = resolve(dataclasses.replace(SMALL, **changes))
    for _ in range(2):  # the first is not counted
        with BrightnessSession(config) as session:
            session.trained_model()
            start = time.perf_counter()
            train.test(session)
            seconds = time.perf_counter() - start
    return {"images": TESTED, "seconds": seconds, "goal": TEST_SECONDS}


def measure_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each file: its size, the seconds that training waits for it, and those that a thread writes."""
    model = VMUNet()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    best = {"model": model.state_dict()}
    rows = []
    for name, state in (("best.pth", best), ("latest.pth", best | {"optimizer": optimizer.state_dict()})):
        waits, writes = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            state_copy = copied(state)
            waits.append(time.perf_counter() - start)
            save_checkpoint(folder / name, state_copy) if name == "best.pth" else save_latest(folder, state_copy)
            writes.append(time.perf_counter() - start - waits[-1])
        wait, write = statistics.median(waits), statistics.median(writes)
        row = {"file": name, "MB": (folder / name).stat().st_size / 1e6, "waiting, s": wait}
        row |= {"writing, in a thread, s": write, "waiting, % of the training": 100 * wait / SMALL.checkpoint_interval}
        rows.append(row | {"goal": CHECKPOINT_SHARE})
    return rows


def main() -> None:
    report = common.start(__doc__, "pipeline")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photographs(folder / "photographs", PHOTOGRAPHS)
        networks = (("small", save_small(folder / "small.pth")), ("isic17", "isic17"))
        rows = [measure_predict(*network, folder / "photographs/images", folder / "out") for network in networks]
        report.table("predict.py", rows)
        make_photographs(folder / "data/train", 1)
        make_photographs(folder / "data/val", TESTED)
        report.table("final test of train.py", [measure_test(folder / "data", folder / "runs")])
        report.table("checkpoints", measure_checkpoints(folder))


if __name__ == "__main__":
    main()
