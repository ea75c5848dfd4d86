"""Options of a run that are not hyperparameters, each in the class that says what it is about.

The files that people edit, config_setting.py and config_setting_synapse.py, inherit these classes and hold everything
else: the experiment. `fields_of` tells which fields of a config belong to one of the classes.
"""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ScanBackend = Literal["auto", "cuda", "triton", "mamba_ssm", "cpu", "torch", "reference"]  # of models/cross_scan


class Table:
    """A table of values to edit. In a subclass `lr = 1e-4` sets a default, as `lr: float | None = 1e-4` does."""

    def __init_subclass__(cls) -> None:
        inherited: dict[str, object] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited |= inspect.get_annotations(base)
        untyped = {name: inherited[name] for name in vars(cls) if name in inherited}
        cls.__annotations__ = untyped | inspect.get_annotations(cls)


@dataclass(kw_only=True)
class NameOptions(Table):
    """Names and colours: they change no number."""

    # --- names ---
    recipe: str = "published"  # a row of configs/recipes.py: published, stable, robust; own data: stable
    class_names: tuple[str, ...] = ()  # of the classes 1, 2, ...; none: the data folder's, else numbers
    class_colours: tuple[str, ...] = ()  # of the same classes, as "#ff0000"; none: those of mask_values or the masks

    @property
    def structures(self) -> list[str]:
        """Names of the classes 1, 2, ...; a binary network has one structure."""
        number: int = self.num_classes  # type: ignore[attr-defined]  # a field of both configs
        if self.class_names:
            return list(self.class_names)
        return ["foreground"] if number == 1 else [f"class {c}" for c in range(1, number)]

    @property
    def structure_colours(self) -> tuple[str, ...]:
        """Colours of the classes 1, 2, ... such as "#ff0000"; () where the user gave none."""
        return self.class_colours


@dataclass(kw_only=True)
class DataOptions:
    """Where the data are."""

    # --- data ---
    dataset: str
    data_path: str | None = None


@dataclass(kw_only=True)
class VolumeDataOptions(DataOptions):
    """Where volumes and the lists of cases are."""

    # --- data ---
    list_dir: str | None = None  # folder with train.txt and test_vol.txt; none: data_path/lists/list_Synapse
    volume_path: str | None = None  # folder with <case>.npy.h5; none: data_path/test_vol_h5


@dataclass(kw_only=True)
class SplitOptions:
    """Which part of the data is for training and which is reported."""

    # --- validation and test ---
    protocol: Literal["paper", "holdout"] = "paper"  # holdout: select on one set, report on another


@dataclass(kw_only=True)
class FoldOptions(SplitOptions):
    """Which fold of a cross-validation."""

    # --- folds ---
    folds: int = 0  # k-fold: images of train and val or of one folder, cases of train.txt, in so many parts; 0: off
    fold: int | Literal["all"] = 0  # the part to validate on, 0..folds-1; all: one run after the other, then a table
    fold_seed: int = 42  # of the deal; not `seed`, so that runs of different seeds share their parts
    fold_group: str = ""  # regular expression: names with one match, a patient's, stay together; volumes: cases.csv


@dataclass(kw_only=True)
class MachineOptions:
    """Where and how fast a run computes. These options change results only by rounding."""

    # --- machine ---
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    scan_backend: ScanBackend = "auto"  # implementation of the scan; auto: the fastest that works here
    num_workers: int = -1  # processes that read data; -1: chosen from the machine
    cache: Literal["auto", "on", "off"] = "auto"  # keep decoded images in memory; auto: if they fit
    use_checkpoint: bool = False  # recompute activations in the backward pass: less memory, more time
    compile: bool = False  # torch.compile the model
    cuda_graphs: bool = True  # on one NVIDIA GPU, launch all kernels of the network at once; off with debug


@dataclass(kw_only=True)
class ResumeOptions:
    """Resume a run. Only these and --epochs are allowed with --resume: the rest is the run's own configuration."""

    # --- run ---
    resume: str | None = None  # a run folder to continue; --epochs may extend it
    accept_changed_data: bool = False  # with --resume: continue although data files have changed
    debug: bool = False  # a detailed log, tracebacks of errors, no CUDA graphs


@dataclass(kw_only=True)
class RunOptions(ResumeOptions):
    """What a run writes, and when it ends."""

    # --- run ---
    work_dir: str | None = None  # holds one folder for each run; none: results/ (of an installation: here)
    test_only: str | None = None  # a checkpoint to evaluate, under its own configuration, instead of training
    val_interval: int  # epochs between two sets of prediction panels; volumes: between two evaluations
    print_interval: int = 20  # steps between two lines of the log and points in TensorBoard
    log_to: Literal["tensorboard", "mlflow", "wandb"] = "tensorboard"  # mlflow, wandb: there too (docs/training.md)
    checkpoint_interval: float = 60  # seconds of work that a crash may cost; 0: save after every epoch
    save_interval: int = 100  # epochs between two checkpoints that are kept for good
    stop_when_lost: bool = False  # end a run whose training has collapsed (utils/runs/collapse.py)


OPTIONS = (NameOptions, VolumeDataOptions, FoldOptions, MachineOptions, RunOptions)


def fields_of(*options: type) -> set[str]:
    """Return the names of the fields that these option classes declare or inherit."""
    return {field.name for one in options for field in dataclasses.fields(one)}  # type: ignore[arg-type]


def published_values(config_class: Any) -> dict[str, Any]:
    """Return {field: published value} of a config class, whatever its file has now, with tuples as in a config."""
    values = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    kind = "volumes" if config_class.of_volumes else "images"
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values[kind].items()}
