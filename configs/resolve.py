"""The one place that makes a config. `resolve` lays values over each other, the lowest first:

    class         config_setting.py, config_setting_synapse.py or a file like them, as it stands
    recipe        of --recipe, or the default for own data: that one spares values that the file has changed
    checkpoint    of --test-only; with --resume, instead of all else, the configuration of the run
    data folder   class names, colours and scaling that it holds
    flags         of the command line

It reads files and changes nothing, so that every process of a run gets the same config.
"""

import difflib
import inspect
import itertools
import logging
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from configs.check import check_config, describe, fits, flag
from configs.optim import rows_of
from configs.options import (
    OPTIONS,
    DataOptions,
    FoldOptions,
    MachineOptions,
    ResumeOptions,
    RunOptions,
    VolumeDataOptions,
    fields_of,
    published_values,
)
from configs.recipes import DEFAULT_FOR_OWN_DATA, PUBLISHED_DATA, RECIPES
from datasets.classes import (
    DATA,
    ISIC_FOLDERS,
    SYNAPSE_FOLDERS,
    check_kind,
    palette_colours,
    preparation,
    prepared_names,
    prepared_values,
)
from models.family import NETWORKS
from models.weights.reading import Checkpoint
from models.weights.shape import shape_of_weights
from utils.files import REPOSITORY, read_json, read_rows, reading
from utils.runs.command_line import parse_flags
from utils.runs.named_weights import read_checkpoint
from utils.runs.run_folder import MAY_CHANGE, find_run, of_volumes

log = logging.getLogger("vmunet")

Config = TypeVar("Config", bound=Any)


class Layer(NamedTuple):
    """Values from one place: a file, or "" for the command line."""

    place: str
    values: Mapping[str, Any]


def resolve(source: type[Config] | Config, arguments: Sequence[str] | None = None) -> Config:
    """Return the complete, checked config of a command line.

    source      a config class; or a config made in Python, whose values count like flags where they differ from those
                of its class
    arguments   flags; sys.argv[1:] for a class without them

    Raises ValueError, naming file or flag, for a value of another type or out of range, an unknown name, and options
    that exclude each other; FileNotFoundError for a run or checkpoint that is not there."""
    config_class = source if isinstance(source, type) else type(source)
    check_class(config_class)
    start = config_class()
    if isinstance(source, type):
        arguments = sys.argv[1:] if arguments is None else arguments
        parsed, given = parse_flags(config_class, arguments), given_flags(arguments)
        flags = {name: value for name, value in vars(parsed).items() if name in given}
    else:
        flags = {name: value for name, value in vars(source).items() if value != getattr(start, name)}
    flags = {n: getattr(start, n) for n in ("resume", "test_only") if getattr(start, n) is not None} | flags
    if flags.get("resume") is not None:
        return config_to_resume(config_class, flags)
    layers = [Layer(file_of(config_class), vars(start))]
    layers.append(Layer("", recipe_values(config_class, {**vars(start), **flags}, "recipe" in flags)))
    if flags.get("test_only") is not None:
        checkpoint = read_checkpoint(flags["test_only"])
        values = checkpoint_values(config_class, checkpoint, {**vars(start), **flags}, flags)
        layers.append(Layer(str(checkpoint.path), values))
    top = Layer("", flags)
    below = combine(config_class, [*layers, top])
    layers.append(Layer("", folder_values(below, {*flags, *edited_values(config_class)})))
    return checked(config_class, [*layers, top])


def checked(config_class: type[Config], layers: Sequence[Layer]) -> Config:
    """Return the config of these layers. Raises ValueError that names the place of the first wrong value."""
    config = combine(config_class, layers)
    places = {name: layer.place for layer in layers for name in layer.values}
    unedited = places.keys() - edited_values(config_class).keys()  # what nobody has edited is called by its flag
    places |= {name: "" for name in unedited if places[name] == layers[0].place}
    check_config(config, {name: f"{place}: {name}" for name, place in places.items() if place})
    return config


def combine(config_class: type[Config], layers: Sequence[Layer]) -> Config:
    """Return the config of these layers, unchecked.

    An optimizer or a network that a higher layer or a subclass chooses brings its own rate, decay or depths, unless one
    is given."""
    values = {name: value for layer in layers for name, value in layer.values.items()}
    lowest, published = layers[0].values, published_values(config_class)
    above = {name for layer in layers[1:] for name in layer.values}
    declared = declared_in_subclasses(config_class)
    for name, chooser in (("lr", "opt"), ("weight_decay", "opt"), ("depths", "network")):
        chosen = values[chooser] != lowest[chooser] or (chooser in declared and name not in declared)
        if chosen and name not in above and lowest[name] == published[name]:
            values[name] = None
    if values["depths"] is None:
        network = NETWORKS.get(values["network"], NETWORKS["vmunet"])
        values["depths"] = network.depths_published or published["depths"]
    return config_from_values(config_class, values)


def config_from_values(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Return a config of plain values, in which JSON has made lists of the tuples; fields without one have the default.

    Raises ValueError for a name that is no field."""
    types = typing.get_type_hints(config_class)
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise ValueError(f"found {unknown[0]!r}, which is no option{nearest(unknown[0], types)}")
    kinds = {name: (kind, *typing.get_args(kind)) for name, kind in types.items()}  # of X | None also X
    tuples = {name for name, parts in kinds.items() if any(typing.get_origin(part) is tuple for part in parts)}
    lists = {name: tuple(value) for name, value in values.items() if name in tuples and isinstance(value, list)}
    return config_class(**{**values, **lists})


# ---- the class


def check_class(config_class: type) -> None:
    """Raise ValueError for names in an edited config file that are no fields, and for values of a wrong type."""
    fields, file = config_class.__dataclass_fields__, file_of(config_class)  # type: ignore[attr-defined]
    published = published_values(config_class)
    known = published.keys() | fields_of(*OPTIONS)
    missing = sorted(published.keys() - fields.keys())
    if missing:
        typo = difflib.get_close_matches(missing[0], fields.keys() - known, n=1)
        found = f"found {typo[0]}, which is no option" if typo else f"found no {missing[0]}"
        raise ValueError(f"{file}: {found}, expected {missing[0]}")
    for part in config_class.__mro__:
        if part is object or part in (*OPTIONS, *(base for one in OPTIONS for base in one.__mro__)):
            continue
        annotated = inspect.get_annotations(part)
        for name, value in {**dict.fromkeys(annotated), **vars(part)}.items():
            is_code = callable(value) or isinstance(value, property | staticmethod | classmethod)
            if name.startswith("__") or is_code or typing.get_origin(annotated.get(name)) is typing.ClassVar:
                continue
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            if name not in fields or name not in known and close:
                expected = nearest(name, known) or ", expected a type: a new option reads `name: float = 0.5`"
                raise ValueError(f"{file}: found {name}, which is no option{expected}")
    check_types(file, vars(config_class()), config_class)


def check_types(place: str, values: Mapping[str, Any], config_class: type) -> None:
    """Raise ValueError for the first value, of a file, that is not of its field's type."""
    types = typing.get_type_hints(config_class)
    for name, value in values.items():
        if not fits(tuple(value) if isinstance(value, list) else value, types[name]):
            raise ValueError(f"{place}: {name}: found {value!r}, expected {describe(types[name])}")


def edited_values(config_class: type) -> dict[str, Any]:
    """Return {name: value} of the class's values that are not the published ones, or that a subclass declares."""
    published, declared = published_values(config_class), declared_in_subclasses(config_class)
    values = vars(config_class()).items()
    return {name: v for name, v in values if name in published and (v != published[name] or name in declared)}


def declared_in_subclasses(config_class: type) -> set[str]:
    """Return the fields that classes below ISICConfig or SynapseConfig declare."""
    below = itertools.takewhile(lambda part: "of_volumes" not in vars(part), config_class.__mro__)
    return {name for part in below for name in inspect.get_annotations(part)}


def file_of(config_class: type) -> str:
    """Return the file that a config class stands in, relative to the repository where it is part of it."""
    path = Path(inspect.getsourcefile(config_class) or "config").resolve()
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return ", expected <the most similar name>", or "" if none is similar."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", expected {close[0]}" if close else ""


# ---- flags and recipes


def given_flags(arguments: Sequence[str]) -> set[str]:
    """Return the fields that a command line names."""
    flags = {text[2:].partition("=")[0].replace("-", "_") for text in arguments if text.startswith("--")}
    return flags | {name.removeprefix("no_") for name in flags}


def recipe_values(config_class: type, values: Mapping[str, Any], asked: bool) -> dict[str, Any]:
    """Return what the recipe sets. One that nobody asked for on the command line spares what the file has changed."""
    name, edited = values["recipe"], edited_values(config_class)
    if name not in RECIPES:
        place = "--recipe" if asked else f"{file_of(config_class)}: recipe"
        raise ValueError(f"{place}: found {name!r}, expected one of {', '.join(RECIPES)} (configs/recipes.py)")
    if not asked and "recipe" not in edited and values["dataset"] not in PUBLISHED_DATA:
        name = DEFAULT_FOR_OWN_DATA
    chosen = {key: value for key, value in RECIPES[name].items() if key in values}
    return {"recipe": name} | {key: value for key, value in chosen.items() if asked or key not in edited}


# ---- stored configs: a checkpoint's, a run's


def checkpoint_values(
    config_class: Any, checkpoint: Checkpoint, values: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a test takes from a checkpoint: all but the machine's and the run's options, and where other data
    are given, but for the data. A checkpoint without a config tells the network's shape.

    Raises ValueError for a checkpoint of the other script."""
    stored = checkpoint.config
    if not stored:
        return shape_of_weights(checkpoint.weights, checkpoint.path) if values["network"] in NETWORKS else {}
    if of_volumes(dict(stored)) is not config_class.of_volumes:
        command = "python train.py" if config_class.of_volumes else "python train_synapse.py"
        raise ValueError(f"--test-only {checkpoint.path}: its network is for {kind_of(stored)}: {command}")
    left_out = fields_of(MachineOptions, RunOptions) | {"load_ckpt_path"}
    if given.keys() & fields_of(VolumeDataOptions):
        left_out |= fields_of(VolumeDataOptions, FoldOptions) - {"dataset"}
    known = config_class.__dataclass_fields__.keys() - left_out  # type: ignore[attr-defined]
    inherited = {name: value for name, value in stored.items() if name in known}
    check_types(str(checkpoint.path), inherited, config_class)
    return inherited


def kind_of(stored: Mapping[str, Any]) -> str:
    """Return "images" or "volumes": what the training of a stored config was about."""
    return "volumes" if of_volumes(dict(stored)) else "images"


def config_class_of(kind: str) -> Any:
    """Return ISICConfig for "images", SynapseConfig for "volumes". A training needs only its own."""
    from configs.config_setting import ISICConfig
    from configs.config_setting_synapse import SynapseConfig

    return ISICConfig if kind == "images" else SynapseConfig


def config_to_resume(config_class: Any, flags: Mapping[str, Any]) -> Any:
    """Return the configuration of the run `flags["resume"]`, with the flags that are allowed beside it.

    Raises ValueError for other flags, for fewer epochs than the run has done, and for a config.json of another kind."""
    known = config_class.__dataclass_fields__
    allowed = [name for name in (*MAY_CHANGE, "num_workers", "cache") if name in known]
    others = [flag(name) for name in flags if name not in fields_of(ResumeOptions) | set(allowed)]
    if others:
        expected = f"only {', '.join(map(flag, allowed))} with its config.json"
        raise ValueError(f"--resume: found also {', '.join(others)}, expected {expected}")
    folder = find_run(flags["resume"])
    path, done = folder / "config.json", len(read_rows(folder / "metrics.csv", "epoch"))
    stored = read_json(path)
    with reading(path):
        if of_volumes(stored) is not config_class.of_volumes:
            script = "train_synapse.py" if of_volumes(stored) else "train.py"
            raise ValueError(f"{path}: found a run of {kind_of(stored)}, expected the command {script} --resume")
        unknown = sorted(stored.keys() - config_class.__dataclass_fields__.keys())  # type: ignore[attr-defined]
        if unknown or not {"dataset", "network"} <= stored.keys():
            found = ", ".join(unknown) or f"only {len(stored)} values"
            raise ValueError(f"{path}: found {found}, expected the fields of {config_class.__name__}")
    config = checked(config_class, [Layer("", defaults(config_class)), Layer(str(path), stored), Layer("", flags)])
    if config.epochs < done:
        raise ValueError(f"--epochs {config.epochs}: the run has {done} already, expected at least as many")
    return config


def defaults(config_class: type) -> dict[str, Any]:
    """Return the values that count for what a stored config lacks, because it is older: the published ones."""
    return {**vars(config_class()), **published_values(config_class)}


def config_of_checkpoint(kind: str, stored: Mapping[str, Any], path: Path, changes: Mapping[str, Any]) -> Any:
    """Return the config of a network from a checkpoint, with other values: an ISICConfig for "images", a SynapseConfig
    for "volumes". The machine's and the run's options are not those of the training.

    Raises ValueError for values of other types and out of range, and for a change that such a config lacks."""
    config_class = config_class_of(kind)
    known = config_class.__dataclass_fields__.keys()
    for name in changes.keys() - known:
        raise ValueError(f"{flag(name)}: found a value, expected none: {path} is of a network for {kind}")
    values = {n: v for n, v in stored.items() if n in known - fields_of(MachineOptions, RunOptions) - {"loss"}}
    stored_layer = Layer(str(path), values | {"load_ckpt_path": "none"})
    return checked(config_class, [Layer("", defaults(config_class)), stored_layer, Layer("", changes)])


# ---- the data folder


def folder_values(config: Any, fixed: set[str]) -> dict[str, Any]:
    """Return what the data folder holds: class names, for volumes their number, scaling and orientation, for images the
    colours of its palette. Names that the user has chosen, and a number of classes in `fixed`, stay.

    Raises ValueError for names of another number of classes."""
    folders = SYNAPSE_FOLDERS if config.of_volumes else ISIC_FOLDERS
    folder = Path(config.data_path or folders.get(config.dataset, DATA / config.dataset))
    if not folder.is_dir():
        return {}
    check_kind(folder, config, config.of_volumes)
    path, record = preparation(folder)
    values: dict[str, Any] = {}
    names, num_classes = prepared_names(path, record), config.num_classes
    if names and config.of_volumes and config.test_only is None and "num_classes" not in fixed:
        num_classes = values["num_classes"] = len(names) + 1
    if names and not config.class_names:
        if len(names) != max(1, num_classes - 1):
            expected = f"expected --num-classes {len(names) + 1} for the {len(names)} classes of {path}"
            raise ValueError(f"--num-classes {num_classes}: {expected} and the background")
        values["class_names"] = names
    if config.of_volumes and config.ignore_label is None and record.get("ignore_label") is not None:
        values["ignore_label"] = record["ignore_label"]
    if config.of_volumes and "intensities" in record:
        prepared = prepared_values(path, record)
        for name in sorted(prepared.keys() & fixed):
            if prepared[name] != (given := getattr(config, name)):
                raise ValueError(f"{flag(name)}: found {given!r}, expected {prepared[name]!r}, as in {path}")
        values |= prepared
    if num_classes > 1 and not config.of_volumes and not config.structure_colours:
        values["class_colours"] = palette_colours(folder, num_classes)
    return values


def remarks(config: Any) -> list[str]:
    """Return lines for the log: which recipe, and which values are not those of the config file or of the paper."""
    config_class, recipe = type(config), RECIPES.get(config.recipe, {})
    edited, file = edited_values(config_class), file_of(config_class)
    lines = []
    applied = ", ".join(f"{name} {value}" for name, value in recipe.items() if getattr(config, name, None) == value)
    is_default = config.recipe == DEFAULT_FOR_OWN_DATA and config.dataset not in PUBLISHED_DATA
    values = f": {applied}" if applied else ""
    lines.append(f"recipe {config.recipe}{' (the default for own data)' * is_default}{values}")
    replaced = {n: v for n, v in edited.items() if n in recipe and getattr(config, n) == recipe[n] != v}
    if replaced:
        values = ", ".join(f"{name} {value} by {recipe[name]}" for name, value in replaced.items())
        lines.append(f"recipe {config.recipe} replaces values of {file}: {values}")
    kept = {name: value for name, value in edited.items() if getattr(config, name) == value and name not in replaced}
    if kept:
        published = published_values(config_class)
        values = ", ".join(f"{name} {value} (published {published[name]})" for name, value in kept.items())
        lines.append(f"edited in {file}: {values}")
    new = sorted(vars(config).keys() - published_values(config_class).keys() - fields_of(*OPTIONS))
    if new:
        lines.append(f"new options in {file}: {', '.join(f'{name} {getattr(config, name)}' for name in new)}")
    row = rows_of(config)[0][config.opt]
    if "network" in kept and config.network in NETWORKS and config.depths != NETWORKS[config.network].depths_published:
        lines.append(f"{file}: depths {config.depths} with {config.network}; None takes its published ones")
    for name in ("lr", "weight_decay"):
        if "opt" in kept and name not in kept and getattr(config, name) not in (None, row.get(name)):
            lines.append(f"{file}: {name} {getattr(config, name)} with {config.opt}, whose row has {row.get(name)}")
    return lines


def collapse_warning(config: Any) -> str | None:
    """Return one sentence if a run is about to do what has ruined others, else None."""
    schedule = (config.opt, config.sch) == ("AdamW", "CosineAnnealingLR")
    published = schedule and config.lr in (None, published_values(type(config))["lr"])
    if config.network != "vmunet" or config.load_ckpt_path.lower() != "none" or not published:
        return None
    return (
        "from random weights, trainings on ISIC17 with the published schedule and rate have collapsed; --recipe stable "
        "has not so far (docs/collapse.md)"
    )


def log_checkpoint(config: Any, checkpoint: Checkpoint) -> None:
    """Log under which values a checkpoint is tested, and as warnings those that are not the checkpoint's."""
    network = f"network {config.network}, num_classes {config.num_classes}, image_size {config.image_size}"
    log.info("testing %s: %s", checkpoint.path, network)
    if not checkpoint.config:
        log.info("%s holds no configuration: its weights tell the shape, flags the rest", checkpoint.path)
    moved = [name for name in fields_of(DataOptions) if getattr(config, name) != checkpoint.config.get(name)]
    values = checkpoint_values(type(config), checkpoint, vars(config), dict.fromkeys(moved * bool(checkpoint.config)))
    for name, stored in vars(config_from_values(type(config), {**vars(config), **values})).items():
        if name in values and getattr(config, name) != stored:
            log.warning("%s %s instead of the checkpoint's %s", flag(name), getattr(config, name), stored)
