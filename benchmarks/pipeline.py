"""What surrounds the network: predict.py on photographs, the final test of train.py with its pictures, a checkpoint.

    python -m benchmarks.pipeline [--output FILE]

The images are those of data/samples, cropped and turned, 256 x 256. Goals are for 16 cores, and with isic17
for a GPU."""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import predict
import train
from benchmarks import common
from configs.config_setting import ISICConfig
from configs.network import build_model
from configs.optim import OPTIMIZERS
from engine import Execution
from inference.inputs import search
from inference.predictor import Predictor
from inference.results import Table
from models.vmunet import VMUNet
from utils.losses import BceDiceWithLogitsLoss
from utils.machine.device import choose_device
from utils.optim import build_optimizer
from utils.repository import REPOSITORY
from utils.runs.checkpoint import copied, save_checkpoint, save_latest
from utils.runs.run import started_run

PHOTOGRAPHS, TESTED, SIDE = 150, 650, 256
WARM_UP, ROUNDS = 2, 3  # not counted: on a GPU graphs are recorded in them, that of the last batch in the second
IMAGES_PER_SECOND, TEST_SECONDS, CHECKPOINT_SHARE = 300, 3, 1  # goals; the last in % of the time between checkpoints
SMALL = ISICConfig(
    dataset="demo", load_ckpt_path="none", image_size=32, depths=(1, 1, 1, 1), depths_decoder=(1, 1, 1, 1),
    dims=(8, 16, 32, 64), d_state=4,
)  # fmt: skip


class Brightness(torch.nn.Module):
    """A network that costs nothing: where an image is dark there is a lesion."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 128 - images.mean(1, keepdim=True)


def make_photographs(folder: Path, count: int) -> None:
    """Different photographs with masks: crops of the samples, in four orientations."""
    samples, random = sorted(Path(REPOSITORY, "data/samples/images").glob("*.jpg")), np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        with Image.open(samples[number % len(samples)]) as sample:
            corner, turn = random.integers(SIDE // 8), 90 * int(random.integers(4))
            photograph = sample.convert("RGB").crop((corner, corner, *sample.size)).resize((SIDE, SIDE)).rotate(turn)
        photograph.save(folder / "images" / f"{number:03d}.jpg", quality=92)
        photograph.convert("L").point(lambda grey: 255 * (grey < 128)).save(folder / "masks" / f"{number:03d}.png")


def save_small(path: Path) -> Path:
    """A checkpoint of a small random network, shifted so that its masks have half of the pixels."""
    torch.manual_seed(0)
    model = build_model(SMALL).eval()
    with torch.no_grad():
        model.vmunet.final_conv.bias -= model(255 * torch.rand(2, 3, 32, 32)).median()
    save_checkpoint(path, {"model": model.state_dict(), "epoch": 1, "config": dataclasses.asdict(SMALL)})
    return path


def measure_predict(name: str, checkpoint: Path | str, photographs: Path, output: Path) -> dict[str, Any]:
    """A row: images that predict.py masks a second, from files to files, without the time to start."""
    predictor = Predictor(checkpoint)
    names, found = predict.with_names(search([str(photographs)], output))
    rates = []
    for number in range(WARM_UP + ROUNDS):
        folder = output / f"{name} {number}"
        folder.mkdir(parents=True)
        config = predict.PredictConfig(checkpoint=str(checkpoint), inputs=(str(photographs),), output=str(folder))
        start = time.perf_counter()
        predict.predict_all(found.inputs, names, predictor, None, Table(folder / "structures.csv"), [], config)
        rates.append(len(found.inputs) / (time.perf_counter() - start))
    device, rate = predictor.device.type, statistics.median(rates[WARM_UP:])
    return {"network": name, "device": device, "images/s": rate, "goal": IMAGES_PER_SECOND}


def measure_test(data: Path, work_dir: Path) -> dict[str, Any]:
    """A row: the seconds of the final test, with a network that costs nothing."""
    config = ISICConfig(dataset="own", data_path=str(data), load_ckpt_path="none", work_dir=str(work_dir))
    device, seconds = choose_device(config.device), []
    for _ in range(2):  # the first is not counted
        with started_run(config) as run:
            start = time.perf_counter()
            train.test(run, config, Brightness(), BceDiceWithLogitsLoss(), Execution(device, progress=False))
            seconds.append(time.perf_counter() - start)
    return {"images": TESTED, "seconds": seconds[-1], "goal": TEST_SECONDS}


def measure_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """A row for each file: its size, the seconds that training waits for it, and those that a thread writes it."""
    model, config = VMUNet(), ISICConfig()
    optimizer = build_optimizer(model, config, OPTIMIZERS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # which makes its moments
    best = {"model": model.state_dict()}
    rows = []
    for name, state in (("best.pth", best), ("latest.pth", best | {"optimizer": optimizer.state_dict()})):
        waits, writes = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            kept = copied(state)
            waits.append(time.perf_counter() - start)
            save_checkpoint(folder / name, kept) if name == "best.pth" else save_latest(folder, kept)
            writes.append(time.perf_counter() - start - waits[-1])
        wait = statistics.median(waits)
        share = 100 * wait / config.checkpoint_interval
        row = {"file": name, "MB": (folder / name).stat().st_size / 1e6, "waiting, s": wait}
        row |= {"writing, in a thread, s": statistics.median(writes)}
        rows.append(row | {"waiting, % of the training": share, "goal": CHECKPOINT_SHARE})
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
    print(f"\nwritten to {report.path}")


if __name__ == "__main__":
    main()
