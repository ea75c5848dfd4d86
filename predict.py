"""Masks, overlays and measurements for images and CT volumes, from a checkpoint of train.py or train_synapse.py.

    python predict.py isic17 photo.jpg folder_of_images --output predictions
    python predict.py results/<run> scan.nii.gz folder_with_dicom_slices case0001.npy.h5 --output predictions

The network is isic17, which comes with this code, the folder of a run, or a file such as best.pth.

As a library:

    from predict import Predictor
    result = Predictor("isic17").predict("photo.jpg")       # or an array, a NIfTI file, a DICOM folder ...
    result.mask, result.structures()                        # class of each pixel of the input; areas and volumes

Every input goes through the same steps as in the test of the training script. Images are normalised, resized to the
network's size, and the probabilities are resized back to the image's own size. Volumes go slice by slice, as
`volume_resize` in the checkpoint says, after their axes were brought to those of training and, unless their values are
within 0..1 already, Hounsfield units were clipped and scaled. Results are in the input's own size and geometry.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from inference.inputs import Input, find_inputs, unique_names
from inference.prediction import Prediction
from inference.predictor import Options, Predictor
from inference.trained import describe
from inference.truth import Truth, dice
from utils.files import read_rows, some, write_atomically, write_rows
from utils.runs.command_line import run_command
from utils.runs.run import start_log

__all__ = ["Prediction", "Predictor"]  # as a library; they live in inference/

log = logging.getLogger("vmunet")


@dataclass(kw_only=True)
class PredictConfig(Options):
    checkpoint: Annotated[str, tyro.conf.Positional]  # a checkpoint, a run's folder, or isic17, which comes with this
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]  # images, volumes, folders of them, DICOM folders
    output: str  # folder for the results
    existing: Literal["refuse", "skip", "overwrite"] = "refuse"  # if output holds files; skip: what is done already
    overlays: bool = True  # pictures of the results
    truth: str | None = None  # images: folder of experts' masks to compare with; Dice goes to the log and the table
    debug: bool = False  # show the traceback of errors


# options that change the results
DECISIVE = sorted({f.name for f in dataclasses.fields(Options)} - {"batch_size", "device", "scan_backend"})


@dataclass
class Table:
    """structures.csv of an output folder: a row for each input and structure."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    unsaved: int = 0

    def add(self, name: str, path: Path, rows: list[dict[str, Any]]) -> None:
        self.rows += [{"name": name, "input": str(path), **row} for row in rows]
        self.unsaved += 1
        if self.unsaved >= 50:
            self.save()

    def save(self) -> None:
        if self.unsaved:
            write_rows(self.path, self.rows)
            self.unsaved = 0


def main(config: PredictConfig) -> None:
    if not config.inputs:
        raise ValueError("INPUTS: found none, expected images, volumes or folders of them")
    log.setLevel(logging.INFO)
    inputs = find_inputs(config.inputs)
    names = dict(zip(inputs, unique_names(inputs), strict=True))
    folder, table, todo = check_output(config, names)
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(Options)}
    predictor = Predictor(config.checkpoint, **options)
    truth = Truth(config.truth, todo, predictor.config) if config.truth is not None else None
    folder.mkdir(parents=True, exist_ok=True)  # only now, that a mistake above leaves nothing behind
    start_log(folder)
    network = describe(predictor.config)
    about = {"checkpoint": config.checkpoint, "sha256": predictor.sha256, "network": network, "options": options}
    save_about(folder / "prediction.json", about, config.existing == "skip")
    log.info("%d inputs, %d at a time on %s", len(todo), predictor.network.batch_size, predictor.device)
    failed: list[Input] = []
    bar = tqdm(total=len(todo), desc="predict", unit="input")

    def report(item: Input, error: Exception) -> None:
        failed.append(item)
        log.error("left out: %s", error)
        bar.update()

    try:
        for item, result in predictor.predict_all(todo, report):
            rows, mask = result.structures(), None
            if truth is not None:
                try:
                    mask = truth.read(item, result)
                except (ValueError, OSError) as error:
                    report(item, error)
                    continue
                add_dice(rows, result, mask, names[item])
            result.save(folder, names[item], config.overlays, mask)
            table.add(names[item], item.path, rows)
            bar.update()
    except KeyboardInterrupt:
        log.error("stopped after %d of %d inputs; --existing skip goes on with the others", bar.n, len(todo))
        raise SystemExit(130) from None
    finally:
        bar.close()
        table.save()
    if truth is not None:
        scores = [float(row["dice"]) for row in table.rows if row.get("dice", "") != ""]
        log.info("mean Dice of %d structures: %.3f", len(scores), sum(scores) / max(1, len(scores)))
    log.info("results are in %s", folder)
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} inputs were left out: {some(item.path for item in failed)}")


def add_dice(rows: list[dict[str, Any]], result: Prediction, truth: np.ndarray, name: str) -> None:
    """Adds each structure's Dice score to its row, and to the log; it is left empty where neither mask has it."""
    for row in rows:
        score = dice(result.mask, truth, row["class"])
        row["dice"] = "" if score is None else score
        log.info("%s, %s: %s", name, row["structure"], "in neither mask" if score is None else f"Dice {score:.3f}")


def check_output(config: PredictConfig, names: dict[Input, str]) -> tuple[Path, Table, list[Input]]:
    """(output folder, its Table, inputs that remain). Raises ValueError rather than to mix results."""
    folder = Path(config.output)
    if config.existing == "refuse" and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--output {folder}: found files there, expected a new or empty folder; --existing skip predicts what is "
            "missing, --existing overwrite everything anew"
        )
    table = Table(folder / "structures.csv")
    if config.existing == "skip":
        table.rows = read_rows(table.path)
        done = {row["name"]: row["input"] for row in table.rows}
        others = [name for item, name in names.items() if done.get(name, str(item.path)) != str(item.path)]
        if others:
            raise ValueError(f"--output {folder}: holds results of other inputs under the same names: {some(others)}")
        return folder, table, [item for item, name in names.items() if name not in done]
    return folder, table, list(names)


def save_about(path: Path, about: dict[str, Any], going_on: bool) -> None:
    """Writes how the masks beside it are made. Raises ValueError before masks of another network or way join them."""
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    if going_on and path.exists():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        different = [name for name in DECISIVE if before["options"].get(name) != now["options"][name]]
        different += ["checkpoint"] * (before["sha256"] != now["sha256"])
        if different:
            raise ValueError(f"--existing skip: what {path.parent} holds was made with another {', '.join(different)}")
    write_atomically(path, text.encode())


if __name__ == "__main__":
    run_command(main, PredictConfig)
