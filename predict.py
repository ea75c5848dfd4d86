"""Masks, overlays and measurements for images and CT volumes, from a checkpoint of train.py or train_synapse.py.

    python predict.py isic17 photo.jpg folder_of_images --output predictions
    python predict.py results/<run> scan.nii.gz folder_with_dicom_slices case0001.npy.h5 --output predictions
    python predict.py results/<fold 0> results/<fold 1> photo.jpg --output predictions

The network is isic17, which comes with this code, the folder of a run, or a file such as best.pth. Of several networks,
which all come before the inputs, the probabilities are averaged.

As a library:

    from predict import Predictor
    result = Predictor("isic17").predict("photo.jpg")       # or an array, a NIfTI file, a DICOM folder ...
    result.mask, result.structures()                        # class of each pixel of the input; areas and volumes
    result.disagreement                                     # of several networks or views, 0 to 0.5 for each pixel

Every input goes through the same steps as in the test of the training script. Images are normalised, resized to the
network's size, and the probabilities are resized back to the image's own size. Volumes go slice by slice, as
`volume_resize` in the checkpoint says, after their axes were brought to those of training and, unless their values are
within 0..1 already, Hounsfield units were clipped and scaled. Results are in the input's own size and geometry.

Written to --output: masks/, overlays/, structures.csv, prediction.json (how the masks were made), log.txt, with
--probabilities probabilities/, with several networks or --tta disagreement/ (see inference/member.py), and
left_out.csv, which names every file that was not used and the reason.

Exit status 0: every input has its mask. 2: some were left out and are named, the others have theirs; or a mistake
before anything was predicted.
"""

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tqdm import tqdm

from inference.inputs import ABOUT, Found, Input, LeftOut, search, unique_names
from inference.options import Options
from inference.results import (
    DISK,
    Existing,
    Table,
    check_output,
    discard,
    error_number,
    log_left_out,
    log_stale,
    save_about,
    save_left_out,
)
from utils.files import check_name, printable, some
from utils.runs.claimed import claimed
from utils.runs.command_line import importing, run_command
from utils.runs.flags import parse_flags
from utils.runs.shipped import SHIPPED, find_checkpoint, is_checkpoint
from utils.threads import InOrder

if TYPE_CHECKING:
    import numpy as np

    from inference.prediction import Prediction
    from inference.predictor import Predictor
    from inference.truth import Truth

__all__ = ["Prediction", "Predictor"]  # as a library; they live in inference/

log = logging.getLogger("vmunet")


def __getattr__(name: str) -> Any:
    """Prediction and Predictor, imported when they are wanted: PyTorch takes seconds, which a mistake need not wait."""
    if name == "Predictor":
        from inference.predictor import Predictor

        return Predictor
    if name == "Prediction":
        from inference.prediction import Prediction

        return Prediction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(kw_only=True)
class PredictConfig(Options):
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """a checkpoint, a run's folder, or isic17, which comes with this code; more may follow, to be averaged"""
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT ...", help_behavior_hint="(required)")
    ]
    """images, volumes, folders of them, DICOM folders"""

    # --- results ---
    output: Annotated[str, tyro.conf.arg(metavar="FOLDER")]  # folder for the results
    existing: Existing = "refuse"  # if output holds files; skip: what is done already
    overlays: bool = True  # pictures of the results
    dicom_seg: bool = False  # also a DICOM-SEG object of each DICOM series
    truth: str | None = None  # images: folder of experts' masks to compare with; Dice goes to the log and the table
    debug: bool = False  # show the traceback of errors


def main(config: PredictConfig) -> None:
    log.setLevel(logging.INFO)
    checkpoints, paths = split_arguments(config.checkpoint, config.inputs)
    found = search(paths, config.output)
    names, found = with_names(found)
    if not names:
        raise ValueError(f"INPUTS: found none; {some((f'{o.path} {o.reason}' for o in found.mistakes), 3) or paths}")
    folder = Path(config.output)
    table, todo = check_output(folder, config.existing, names)

    with importing():  # only now: a mistake above is answered at once
        from inference.predictor import Predictor
        from inference.trained import describe
        from inference.truth import Truth
        from utils.runs.run import start_log

    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(Options)}
    predictor = Predictor(checkpoints, **options)
    check_kind(todo, predictor)
    if config.dicom_seg:
        check_dicom_seg(todo)
    truth = Truth(config.truth, todo, predictor.config) if config.truth is not None else None
    folder.mkdir(parents=True, exist_ok=True)  # only now, that a mistake above leaves nothing behind
    with claimed(folder, f"--output {folder}"):
        table, todo = check_output(folder, config.existing, names)  # again: another command may just have ended here
        start_log(folder)
        members = [
            {"checkpoint": printable(n), "sha256": m.sha256}
            for n, m in zip(checkpoints, predictor.members, strict=True)
        ]
        about = {**members[0], "members": members, "network": describe(predictor.config), "options": options}
        save_about(folder / ABOUT, about, config.existing == "skip")
        log_left_out(found.left_out)
        if config.existing == "overwrite":
            log_stale(folder, names.values())
        log.info("%d inputs, %d at a time on %s", len(todo), predictor.network.batch_size, predictor.device)
        if not todo:
            log.info("nothing to do: all %d inputs have their masks", len(names))
        failed = predict_all(todo, names, predictor, truth, table, found.left_out, config)
        if truth is not None:
            scores = [float(row["dice"]) for row in table.rows if row.get("dice", "") != ""]
            log.info("mean Dice of %d structures: %.3f", len(scores), sum(scores) / max(1, len(scores)))
    mistakes = [*found.mistakes, *failed]
    passed = len(found.left_out) - len(found.mistakes)
    log.info(
        "%d inputs predicted, %d left out, %d files and folders passed over; results are in %s",
        *(len(todo) - len(failed), len(mistakes), passed, folder),
    )
    if mistakes:
        count = len(todo) + len(found.mistakes)
        raise ValueError(f"{len(mistakes)} of {count} inputs were left out: {some(one.path for one in mistakes)}")


def predict_all(
    todo: Sequence[Input],
    names: dict[Input, str],
    predictor: "Predictor",
    truth: "Truth | None",
    table: Table,
    left_out: Sequence[LeftOut],
    config: PredictConfig,
) -> list[LeftOut]:
    """Predicts the inputs and saves their results; returns those that went wrong, which cost nothing but themselves.

    Results are drawn, compressed and written by threads while the next ones are predicted. Of volumes there is one such
    thread, because of their size."""
    from utils.machine.device import available_cpus

    folder, failed = Path(config.output), list[LeftOut]()
    bar = tqdm(total=len(todo), desc="predict", unit="input", disable=None)  # none where nobody watches
    saved, said = 0, time.monotonic()

    def report(item: Input, error: Exception) -> None:
        text = str(error) or type(error).__name__
        failed.append(LeftOut(item.path, text))
        about_it = text if str(item.path) in text else f"{item.path}: {text}"
        log.error("left out: %s", about_it, exc_info=error if config.debug else None)
        bar.update()

    def finish(item: Input, result: "Prediction") -> list[dict[str, Any]]:
        return save(item, names[item], result, predictor, truth, config)

    def finished(arguments: tuple[Input, "Prediction"], saving: Future) -> None:
        nonlocal saved, said
        item, _ = arguments
        try:
            rows = saving.result()
        except Exception as error:
            if error_number(error) in DISK:
                raise
            discard(folder, names[item])
            report(item, error)
        else:
            log_dice(rows, names[item])
            table.add(names[item], item.path, rows)
            saved += 1
            bar.update()
        if bar.disable and time.monotonic() > said + 60:
            said = time.monotonic()
            log.info("%d of %d inputs", saved + len(failed), len(todo))

    threads = 1 if any(item.is_volume for item in todo) else available_cpus()
    try:
        with InOrder(threads, finished) as saver:
            for item, result in predictor.predict_all(todo, report):
                saver.submit(result.nbytes, finish, item, result)
    except KeyboardInterrupt:
        count = saved + len(failed)
        log.error("stopped after %d of %d inputs; --existing skip goes on with the others", count, len(todo))
        raise SystemExit(130) from None
    finally:
        bar.close()
        table.save()
        save_left_out(folder / "left_out.csv", [*left_out, *failed])
    return failed


# ---- before


def split_arguments(checkpoint: str, others: Sequence[str]) -> tuple[list[str], list[str]]:
    """(checkpoints, inputs) of the command line: checkpoints are the first argument and what follows it that is one.

    Raises FileNotFoundError for a checkpoint that is not there, ValueError for one after an input, for no input, and
    for a name that can be both."""
    count = next((i for i, named in enumerate(others) if not is_checkpoint(named)), len(others))
    checkpoints, inputs = [checkpoint, *others[:count]], list(others[count:])
    for named in checkpoints:
        if named not in SHIPPED:
            find_checkpoint(named)
    for named in checkpoints[1:]:
        if named in SHIPPED and os.path.lexists(named):
            raise ValueError(
                f"{named} is a network that comes with the code and a path here; write ./{named} for the path"
            )
    late = [named for named in inputs if is_checkpoint(named)]
    if late:
        raise ValueError(f"{late[0]} is a checkpoint; expected all checkpoints before the inputs")
    if not inputs:
        raise ValueError("INPUT: found none after the checkpoint, expected images, volumes or folders of them")
    return checkpoints, inputs


def with_names(found: Found) -> tuple[dict[Input, str], Found]:
    """({input: the name of its results}, what was found without the inputs whose names no file can have)."""
    names, left_out = {}, list(found.left_out)
    for item, name in zip(found.inputs, unique_names(found.inputs), strict=True):
        try:
            check_name(name, "can't give its name to results")
        except ValueError as error:
            left_out.append(LeftOut(item.path, str(error)))
        else:
            names[item] = name
    return names, Found(list(names), left_out)


def check_kind(inputs: Sequence[Input], predictor: "Predictor") -> None:
    """Raises ValueError where no input is of the kind that the network was trained on."""
    if inputs and not predictor.options.insist and all(item.is_volume != predictor.volumes for item in inputs):
        found, expected = ("images", "volumes") if predictor.volumes else ("volumes", "images")
        raise ValueError(
            f"INPUT: found {found} only ({some((i.path for i in inputs), 3)}), expected {expected}, on which this "
            "network was trained; --insist predicts them all the same"
        )


def check_dicom_seg(inputs: Sequence[Input]) -> None:
    """Raises ValueError where no input is a DICOM series, or highdicom is missing; a line counts the others."""
    from inference.dicom_seg import import_highdicom

    import_highdicom()
    others = [item.path for item in inputs if item.format != "dicom"]
    if others and len(others) == len(inputs):
        raise ValueError(f"--dicom-seg: found no DICOM series among the inputs ({some(others, 3)})")
    if others:
        log.info("--dicom-seg: %d of %d inputs are no DICOM series: %s", len(others), len(inputs), some(others, 3))


# ---- one input


def save(
    item: Input, name: str, result: "Prediction", predictor: "Predictor", truth: "Truth | None", config: PredictConfig
) -> list[dict[str, Any]]:
    """Compares a result with the expert's mask, if there is one, and saves it. Returns its rows of the table."""
    folder = Path(config.output)
    if config.dicom_seg and item.format == "dicom":
        from inference.dicom_seg import save_dicom_seg

        save_dicom_seg(folder / "dicom_seg" / f"{name}.dcm", result, predictor.sha256[:12])
    rows, mask = result.structures(), None
    if truth is not None:
        mask = truth.read(item, result)
        add_dice(rows, result, mask)
    result.save(folder, name, config.overlays, mask)
    return rows


def add_dice(rows: list[dict[str, Any]], result: "Prediction", truth: "np.ndarray") -> None:
    """Adds each structure's Dice score to its row; it is left empty where neither mask has it."""
    from inference.truth import dice

    for row in rows:
        score = dice(result.mask, truth, row["class"])
        row["dice"] = "" if score is None else score


def log_dice(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Writes the Dice scores of a result, if there are any, to the log."""
    for row in rows:
        if "dice" in row:
            text = "in neither mask" if row["dice"] == "" else f"Dice {row['dice']:.3f}"
            log.info("%s, %s: %s", name, row["structure"], text)


def parse(config_class: type[PredictConfig]) -> PredictConfig:
    """The config of the command line. What is wrong by itself is said at once, before PyTorch is imported."""
    help_wanted = {"-h", "--help"} & set(sys.argv[1:])
    usage = "predict.py --output FOLDER" if help_wanted else None  # names what is required, which tyro does not
    config = parse_flags(config_class, prog=usage)
    _, paths = split_arguments(config.checkpoint, config.inputs)
    check_output(Path(config.output), config.existing, {})
    if not any(map(os.path.lexists, paths)):
        raise FileNotFoundError(f"INPUT: there is no {some(paths)}, expected images, volumes or folders of them")
    return config


if __name__ == "__main__":
    run_command(main, PredictConfig, parse)
