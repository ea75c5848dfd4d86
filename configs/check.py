"""Validate a config: types, ranges, and options that exclude each other."""

import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from configs.options import published_values
from models import option_ranges
from models.family import NETWORKS
from models.network import STRIDE
from utils.files import check_name
from utils.losses import find_losses, loss_name

POSITIVE = 1e-12
LOSS_OPTIONS = ("loss_weight", "class_weights", "ignore_label")
LONGEST_CLASS_NAME = 60
RANGES = option_ranges.RANGES | {  # lowest and highest value; of a tuple, of each of its numbers
    "num_classes": (1, 255),  # masks have 8 bits
    "image_size": (STRIDE, 8192),
    "context": (0, 8),
    "batch_size": (1, math.inf),
    "num_workers": (-1, 1024),
    "epochs": (1, math.inf),
    "seed": (0, 2**31),
    "lr": (POSITIVE, 1e6),
    "weight_decay": (0, 1e6),
    "accumulation_steps": (1, math.inf),
    "clip_grad_norm": (POSITIVE, math.inf),
    "ema": (0, 1 - POSITIVE),
    "print_interval": (1, math.inf),
    "checkpoint_interval": (0, math.inf),
    "save_interval": (1, math.inf),
    "val_interval": (1, math.inf),
    "loss_weight": (0, 1e6),
    "class_weights": (0, 1e6),
    "ignore_label": (1, 255),
    "early_stopping": (1, math.inf),
    "threshold": (0, 1),
    "z_spacing": (POSITIVE, 1e6),
    "label_ids": (1, 2**32 - 1),
    "channel": (0, 2**16),
    "folds": (0, math.inf),
    "fold": (0, math.inf),
}


def check_config(config: Any, names: Mapping[str, str] | None = None) -> None:
    """Raise ValueError for the first value of another type than its field's or out of range, and for options that
    contradict each other.

    names   what a field is called in messages, where that is not its flag"""
    names = names or {}
    for field, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is typing.ClassVar:
            continue
        name, value = names.get(field, flag(field)), getattr(config, field)
        if not fits(value, kind):
            raise ValueError(f"{name}: found {value!r}, expected {describe(kind)}")
        low, high = RANGES.get(field, (-math.inf, math.inf))
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not low <= number <= high:
                more = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                raise ValueError(f"{name}: found {number!r}, expected {more}")
    context = getattr(config, "context", 0)
    if context and config.input_channels != 2 * context + 1:
        found = f"found --input-channels {config.input_channels}, expected {2 * context + 1}"
        raise ValueError(f"{names.get('context', '--context')} {context}: {found}: the slice and those around it")
    check_network(config, names)
    check_loss(config, names)
    check_classes(config)
    if config.early_stopping is not None and config.select == "last":
        raise ValueError("--early-stopping: found --select last, which has no best epoch; expected --select best")
    if config.resume is not None and config.test_only is not None:
        raise ValueError("--resume and --test-only: found both, expected one of them")
    folds = config.folds
    if folds == 1 or folds and config.fold != "all" and config.fold >= folds:
        expected = "at least 2 folds, and one of 0..folds-1 or all"
        raise ValueError(f"--folds {folds} --fold {config.fold}: expected {expected}")
    if config.fold == "all" and config.test_only is not None:
        raise ValueError("--fold all --test-only: found both, expected the number of one fold")
    if not folds and config.fold == "all":
        raise ValueError("--fold all: found no --folds, expected how many, such as --folds 5")


def check_loss(config: Any, names: Mapping[str, str]) -> None:
    """Raise ValueError for an unknown loss, for an option that the loss does not take, and for class weights or an
    ignored label that do not fit the number of classes."""
    losses, number, called = find_losses(), config.num_classes, {n: names.get(n, flag(n)) for n in LOSS_OPTIONS}
    if config.loss not in ("auto", *losses):
        expected = f"a function of utils/losses.py: {', '.join(('auto', *losses))}"
        raise ValueError(f"{names.get('loss', '--loss')}: found {config.loss!r}, expected {expected}")
    if sum(config.loss_weight) == 0:
        raise ValueError(f"--loss-weight: found {config.loss_weight}, expected one of them above 0")
    weights, ignored = config.class_weights, config.ignore_label
    if weights and (len(weights) != max(2, number) or not any(weights)):
        expected = f"{max(2, number)} for --num-classes {number}, background first, one of them above 0"
        raise ValueError(f"{called['class_weights']}: found {weights}, expected {expected}")
    if ignored is not None and not 1 < number <= ignored:
        expected = "--num-classes 2 or more, and a label that is no class: at least as large"
        raise ValueError(f"{called['ignore_label']}: found {ignored} for --num-classes {number}, expected {expected}")
    name, published = loss_name(config), published_values(type(config))
    for option, place in called.items():
        if getattr(config, option) != published[option] and option not in inspect.signature(losses[name]).parameters:
            able = [loss for loss, function in losses.items() if option in inspect.signature(function).parameters]
            raise ValueError(f"{place}: found a value, which the loss {name} does not take, only {', '.join(able)}")


def check_network(config: Any, names: Mapping[str, str]) -> None:
    """Raise ValueError for a name that no network can have, and for options that the network does not have. Only their
    library knows which baselines there are."""
    name, network = names.get("network", "--network"), config.network
    if network not in (*NETWORKS, "unet") and not re.fullmatch("smp:.+", network):
        expected = f"{', '.join(NETWORKS)}, unet or smp:<architecture>[-<encoder>]"
        raise ValueError(f"{name}: found {network!r}, expected {expected}")
    own = NETWORKS[network].options if network in NETWORKS else ()
    options = {option for other in NETWORKS.values() for option in other.options} - {"scan_backend"}
    published = published_values(type(config))
    for option in sorted(options - set(own)):
        if network not in NETWORKS and option in names:  # from a file: a baseline leaves the layers' shapes unread
            continue
        if getattr(config, option) not in (published.get(option), getattr(type(config), option)):
            have = " and ".join(other for other, member in NETWORKS.items() if option in member.options)
            raise ValueError(f"{name} {network}: found {flag(option)}, which is an option of {have} only")
    starts = ("none", "imagenet")
    if network not in NETWORKS and config.test_only is None and config.load_ckpt_path.lower() not in starts:
        name = names.get("load_ckpt_path", "--load-ckpt-path")
        expected = "none (random weights) or imagenet (those of the library's encoder)"
        raise ValueError(f"{name}: found {config.load_ckpt_path} for the network {network}, expected {expected}")


def check_classes(config: Any) -> None:
    """Raise ValueError for names and colours of another number of classes, and for equal names."""
    names, colours, number = config.class_names, config.class_colours, config.num_classes
    if names:
        expected = max(1, number - 1)
        if len(names) != expected:
            raise ValueError(f"--class-names: found {len(names)} names, expected {expected} for --num-classes {number}")
        if len(set(names)) < len(names):
            raise ValueError(f"--class-names: found {', '.join(names)}, expected different names")
        for name in names:
            check_name(name, "--class-names")
            if not name.isprintable() or len(name) > LONGEST_CLASS_NAME or name.strip() != name or name == "background":
                expected = f"up to {LONGEST_CLASS_NAME} characters on one line, and not background, which is class 0"
                raise ValueError(f"--class-names: found {name!r}, expected {expected}")
    ids = getattr(config, "label_ids", ())
    if ids and (len(ids) != number - 1 or len(set(ids)) < len(ids)):
        raise ValueError(f"--label-ids: found {ids}, expected {number - 1} different ones for --num-classes {number}")
    if colours:
        if len(colours) != number - 1:
            expected = f"{number - 1} for --num-classes {number}, without one of the background"
            raise ValueError(f"--class-colours: found {len(colours)}, expected {expected}")
        for colour in colours:
            if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
                raise ValueError(f"--class-colours: found {colour!r}, expected colours such as #ff0000")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a field's type; whole numbers are also floats."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is tuple:
        parts = parts[:1] * len(value) if isinstance(value, tuple) and parts[1:] == (...,) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
