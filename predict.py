"""Masks, overlays and measurements for images and CT volumes, from a checkpoint of train.py or train_synapse.py.

    python predict.py isic17 photo.jpg folder_of_images --output predictions
    python predict.py results/<run> scan.nii.gz folder_with_dicom_slices case0001.npy.h5 --output predictions
    python predict.py results/<fold 0> results/<fold 1> photo.jpg --output predictions
    torchrun --nproc_per_node=8 predict.py isic17 folder_of_images --output predictions

The network is isic17, which ships with the code, the folder of a run, or a file such as best.pth. List all networks
before the inputs; the probabilities of several networks are averaged.

As a library: inference.Predictor.

Inputs are preprocessed as in the test of the training script. Images are normalised and resized to the network's size,
and the probabilities are resized back. Volumes are brought to the axes of training and predicted slice by slice, as
`volume_resize` in the checkpoint says. Hounsfield units are clipped and scaled, unless the values are within 0..1
already. Results are in the input's own size and geometry; masks hold the labels that the network was trained on.

Files in --output: masks/, overlays/, structures.csv, prediction.json (the networks and options), log.txt, with
--probabilities probabilities/, with several networks or --tta disagreement/ (see inference/ensemble.py), and
left_out.csv, which lists every file that was not used with the reason.

Under torchrun the processes, one for each GPU, share the inputs.

Exit status 0: every input has its mask. 2: some inputs were left out and are listed, the others have their masks; a
DICOM-SEG could not be written; or an error occurred before anything was predicted.
"""

from utils.start import run_process

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import tyro

from datasets.loaders import processes_here
from datasets.masks import VOID
from inference import Predictor
from inference.formats.dicom_seg import NEEDED_BY, save_dicom_seg
from inference.inputs import Exclusion, Input, describe_error, format_of, search, unique_names
from inference.output_folder import Existing, OutputFolder, is_disk_error, log_exclusions
from inference.prediction import Prediction
from inference.prediction_options import PredictionOptions
from inference.progress import Progress
from inference.trained import describe
from inference.truth import Truth, dice
from utils import distributed
from utils.files import check_name, first_few, printable
from utils.machine.device import available_cpus
from utils.optional import optional
from utils.ordered_pool import OrderedPool
from utils.runs.command_line import run
from utils.runs.lock import locked_folder
from utils.runs.named_weights import SHIPPED, is_checkpoint
from utils.runs.run_folder import start_log

log = logging.getLogger("vmunet")

LONGEST = timedelta(days=30)  # that a process waits for the shares of the others; it notices at once if one has ended
INPUTS = tyro.conf.arg(metavar="INPUT ...", help_behavior_hint="(required)")


@dataclass(kw_only=True)
class PredictConfig(PredictionOptions):
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """a checkpoint, a run's folder, or isic17, which ships with the code; more may follow, to be averaged"""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, INPUTS]
    """images, volumes, folders of them, DICOM folders"""

    # --- results ---
    output: Annotated[str, tyro.conf.arg(metavar="FOLDER")]  # folder for the results
    existing: Existing = "refuse"  # if output holds files; skip: predict only what is missing
    overlays: bool = True  # pictures of the results
    dicom_seg: bool = False  # also a DICOM-SEG object of each DICOM series
    truth: str | None = None  # folder of experts' masks or labels to compare with; scores go to the log and the table
    debug: bool = False  # show the traceback of errors


def main(config: PredictConfig) -> None:
    log.setLevel(logging.INFO)
    checkpoints, paths = split_arguments(config.checkpoint, config.inputs)
    found = search(paths, config.output, config.insist)
    names = name_results(found.inputs, found.exclusions)
    if not names:
        reasons = first_few((f"{one.path} {one.reason}" for one in found.mistakes), 3)
        raise ValueError(f"INPUT: found none; {reasons or paths}")
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(PredictionOptions)}
    predictor = Predictor(checkpoints, **options)
    output = OutputFolder(config.output, config.existing, names, config.dicom_seg, config.truth is not None)
    output.exclusions = found.exclusions if distributed.is_main() else []
    total = len(output.todo) + len(found.mistakes)
    check_kind(output.todo, predictor)
    if config.dicom_seg:
        check_dicom_seg(output.todo)
    truth = Truth(config.truth, output.todo, predictor.config) if config.truth is not None else None
    locked = locked_folder(output.path, f"--output {output.path}") if distributed.is_main() else nullcontext()
    with distributed.process_group(torch.device("cpu"), LONGEST):
        output.check_same()
        output.path.mkdir(parents=True, exist_ok=True)  # only after the checks, so that an error leaves no folder
        with locked:
            start_log(output.path)
            members = [
                {"checkpoint": printable(name), "sha256": member.sha256}
                for name, member in zip(checkpoints, predictor.members, strict=True)
            ]
            network = describe(predictor.config)
            if distributed.is_main():
                output.begin({**members[0], "members": members, "network": network, "options": options})
            distributed.barrier()
            log_exclusions(output.exclusions)
            log.info(
                "inputs: %d, %d at a time on %s%s",
                *(len(output.todo), predictor.network.batch_size, predictor.device),
                f", in {distributed.world_size()} processes" * distributed.under_torchrun(),
            )
            if not output.todo:
                log.info("nothing to do: all %d inputs have their masks", len(names))
            without_seg = distributed.gather_rows(predict_all(output, predictor, truth, config))
            output.gather()
            if truth is not None:
                scores = [float(row["dice"]) for row in output.rows if row.get("dice") not in (None, "")]
                log.info("mean Dice of %d structures: %s", len(scores), f"{fmean(scores):.3f}" if scores else "none")
    output.check_saved()
    mistakes = [one for one in output.exclusions if one.mistake]
    log.info(
        "inputs: %d predicted, %d left out; files and folders passed over: %d; results are in %s",
        *(total - len(mistakes), len(mistakes), len(output.exclusions) - len(mistakes), output.path),
    )
    problems = []
    if mistakes:
        problems.append(f"{len(mistakes)} of {total} inputs were left out: {first_few(one.path for one in mistakes)}")
    if without_seg:
        problems.append(f"{len(without_seg)} DICOM-SEG could not be written: {first_few(without_seg)}")
    if problems and not distributed.is_main():
        sys.exit(2)  # the main process says why
    if problems:
        raise ValueError("; ".join(problems))


def predict_all(output: OutputFolder, predictor: Predictor, truth: Truth | None, config: PredictConfig) -> list[Path]:
    """Predict this process's share of the inputs and save their results. Inputs that fail are excluded; they do not
    affect the others. Return the inputs whose results lack a requested DICOM-SEG.

    Threads draw, compress and write results while the next inputs are predicted; one thread for volumes, which are
    large."""
    share = output.todo[distributed.rank() :: distributed.world_size()]
    bar, without_seg = Progress(len(share), "input"), list[Path]()

    def report(item: Input, error: Exception) -> None:
        output.exclusions.append(Exclusion(item.path, str(error) or type(error).__name__))
        log.error("left out: %s", describe_error(item, error), exc_info=error if config.debug else None)
        bar.update()

    def save(item: Input, result: Prediction) -> list[dict[str, Any]]:
        """Save a result, and return its rows of the table. The DICOM-SEG comes last, because it may fail."""
        rows, mask = result.structures(), None
        if truth is not None:
            mask = truth.read(item, result)
            for number, row in enumerate(rows, start=1):
                row["dice"] = dice(result.classes, mask, number)
            mask[mask == VOID] = 0  # so that it is not drawn
        result.save(output.path, output.names[item], config.overlays, mask)
        if config.dicom_seg and item.format == "dicom":
            path = output.path / "dicom_seg" / f"{output.names[item]}.dcm"
            try:
                save_dicom_seg(path, result, predictor.sha256[:12])
            except Exception as error:  # any kind of error: the mask is kept
                if is_disk_error(error):
                    raise
                path.unlink(missing_ok=True)  # from an earlier command
                without_seg.append(item.path)
                log.error("%s: %s; its mask is written", item.path, error, exc_info=config.debug)
        return rows

    def finished(arguments: tuple[Input, Prediction], saving: Future) -> None:
        item, _ = arguments
        try:
            rows = saving.result()
        except Exception as error:
            if is_disk_error(error) or not output.path.is_dir():
                raise
            output.discard(item)
            report(item, error)
        else:
            for row in rows if truth is not None else ():
                text = "in neither mask" if row["dice"] is None else f"Dice {row['dice']:.3f}"
                log.info("%s, %s: %s", output.names[item], row["structure"], text)
            output.add(item, rows)
            bar.update()

    threads = 1 if any(item.is_volume for item in share) else max(1, available_cpus() // processes_here())
    try:
        with OrderedPool(threads, finished) as saver:
            for item, result in predictor.predict_all(share, report):
                saver.submit(result.nbytes, save, item, result)
    except KeyboardInterrupt:
        log.error("stopped after %d of %d inputs; --existing skip predicts the others", bar.done, len(share))
        raise SystemExit(130) from None
    finally:
        bar.close()
        output.save_table()
        output.save_exclusions()
    return without_seg


def split_arguments(checkpoint: str, others: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the command line into (checkpoints, inputs): the first argument and the checkpoints that follow it, then
    the inputs.

    Raises ValueError for a checkpoint after an input, for no input, and for an ambiguous name."""
    count = next((i for i, name in enumerate(others) if not is_checkpoint(name)), len(others))
    checkpoints, inputs = [checkpoint, *others[:count]], list(others[count:])
    for name in checkpoints[1:]:
        if name in SHIPPED and os.path.lexists(name):
            raise ValueError(f"{name}: found a shipped network and a path of this name, expected ./{name} for the path")
    for name in filter(is_checkpoint, inputs):
        raise ValueError(f"{name} is a checkpoint; expected all checkpoints before the inputs")
    path = Path(checkpoint)
    if not is_checkpoint(checkpoint) and path.is_file() and format_of(path) in ("image", "nifti", "itk", "dicom"):
        expected = f"{', '.join(SHIPPED)}, the folder of a run or a file of weights, and then the inputs"
        raise ValueError(f"CHECKPOINT: found {checkpoint}, which is an input, as the network; expected {expected}")
    if not inputs:
        raise ValueError("INPUT: found none after the checkpoint, expected images, volumes or folders of them")
    return checkpoints, inputs


def name_results(inputs: Sequence[Input], exclusions: list[Exclusion]) -> dict[Input, str]:
    """Return {input: the name of its results}. Add inputs whose names no file can have to `exclusions`."""
    names = {}
    for item, name in zip(inputs, unique_names(inputs), strict=True):
        try:
            check_name(name, "can't give its name to results")
        except ValueError as error:
            exclusions.append(Exclusion(item.path, str(error)))
        else:
            names[item] = name
    return names


def check_kind(inputs: Sequence[Input], predictor: Predictor) -> None:
    """Raise ValueError if no input is of the kind that the network was trained on."""
    if inputs and not predictor.options.insist and all(item.is_volume != predictor.volumes for item in inputs):
        found, expected = ("images", "volumes") if predictor.volumes else ("volumes", "images")
        names = first_few((item.path for item in inputs), 3)
        raise ValueError(
            f"INPUT: found {found} only ({names}), expected {expected} as in training; --insist predicts them"
        )


def check_dicom_seg(inputs: Sequence[Input]) -> None:
    """Raise ValueError if no input is a DICOM series or highdicom is missing. Log the other inputs."""
    optional("highdicom", NEEDED_BY)
    others = [item.path for item in inputs if item.format != "dicom"]
    if others:
        text = f"{NEEDED_BY}: {len(others)} of {len(inputs)} inputs are no DICOM series: {first_few(others, 3)}"
        if len(others) == len(inputs):
            raise ValueError(text)
        log.info(text)


def command() -> None:
    run(main, PredictConfig)


if __name__ == "__main__":
    run_process(command)
