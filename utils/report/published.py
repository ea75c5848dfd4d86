"""The paper's numbers (arXiv 2402.02491) and what a run must have in common with them to be compared.

Scores are in percent, HD95 in voxels. They agree with a second source, but for those of UNCONFIRMED.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]
Change = tuple[str, Any, Any]  # what differs, its value in the run, the published one

ORGAN_DICE = {
    "aorta": 86.40, "gallbladder": 69.41, "left kidney": 86.16, "right kidney": 82.76, "liver": 94.17,
    "pancreas": 58.80, "spleen": 89.51, "stomach": 81.40,
}  # fmt: skip
ROWS: dict[str, dict[str, float]] = {  # <data set>-<initial weights>, tables 1, 2 and 3
    "isic17-vmamba-s": {"miou": 80.23, "dsc": 89.03, "accuracy": 96.29, "specificity": 97.58, "sensitivity": 89.90},
    "isic17-vmamba-t": {"miou": 78.85, "dsc": 88.17},
    "isic17-none": {"miou": 77.59, "dsc": 87.38},
    "isic18-vmamba-s": {"miou": 81.35, "dsc": 89.71, "accuracy": 94.91, "specificity": 96.13, "sensitivity": 91.12},
    "isic18-vmamba-t": {"miou": 79.04, "dsc": 88.29},
    "isic18-none": {"miou": 78.66, "dsc": 88.06},
    "synapse-vmamba-s": {
        "dice_transunet": 81.08,
        "hd95_transunet": 19.21,
        **{f"dice_transunet {organ}": dice for organ, dice in ORGAN_DICE.items()},
    },
}
UNCONFIRMED = {"accuracy", "specificity", "sensitivity"}
DOUBT = "†"
DOUBT_MEANS = f"{DOUBT} from memory of the paper's tables, without a second source; the other numbers agree with one."
TESTED = {"isic17": 650, "isic18": 808, "synapse": 12}  # images, volumes
BESIDE = {"acdc"}  # data sets with rows like the paper's

# The values that the paper's runs had, as config.json holds them. The configs start from the same ones and may be
# edited; these stay, so that a report says what was changed. The rows of configs/optim.py likewise.
_BOTH = (
    {"recipe": "published", "network": "vmunet", "input_channels": 3, "class_names": [], "class_colours": []}
    | {"depths": [2, 2, 2, 2], "depths_decoder": [2, 2, 2, 1], "dims": [96, 192, 384, 768], "d_state": 16}
    | {"drop_path_rate": 0.2, "skip_at_quarter": False, "loss_weight": [1, 1], "protocol": "paper"}
    | {"load_ckpt_path": "pretrained_weights/vmamba_small_e238_ema.pth", "data_path": None}
    | {"epochs": 300, "batch_size": 32, "accumulation_steps": 1, "clip_grad_norm": None, "seed": 42}
    | {"opt": "AdamW", "opt_args": {}, "lr": None, "weight_decay": None, "decay": "all"}
    | {"sch": "CosineAnnealingLR", "sch_args": {}, "warmup": "from_first_step"}
    | {"device": "auto", "precision": "fp32", "scan_backend": "auto", "compile": False, "cuda_graphs": True}
    | {"use_checkpoint": False, "num_workers": -1, "cache": "auto", "work_dir": None, "print_interval": 20}
    | {"save_interval": 100, "resume": None, "test_only": None, "debug": False, "stop_when_lost": False}
    | {"accept_changed_data": False, "checkpoint_interval": 60}
)
PUBLISHED_IMAGES = (
    _BOTH
    | {"dataset": "isic18", "num_classes": 1, "mask_values": [], "image_size": 256, "val_interval": 30}
    | {"rotation": "run", "normalization": "minmax", "mask_resize": "bilinear", "antialias": False, "threshold": 0.5}
    | {"folds": 0, "fold": 0, "fold_seed": 42, "fold_group": ""}
)
PUBLISHED_VOLUMES = (
    _BOTH
    | {"dataset": "synapse", "num_classes": 9, "image_size": 224, "val_interval": 100}
    | {"list_dir": None, "volume_path": None, "volume_resize": "labels", "z_spacing": 1, "augmentation": "published"}
    | {"scaling": None, "scaling_range": [-125, 275], "orientation": "LPS"}
)
_ADAMW = {"name": "AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False}
OPTIMIZATION_IMAGES = {"optimizer": _ADAMW, "scheduler": {"name": "CosineAnnealingLR", "T_max": 50, "eta_min": 1e-5}}
OPTIMIZATION_VOLUMES = {"optimizer": _ADAMW, "scheduler": {"name": "CosineAnnealingLR", "T_max": 100, "eta_min": 1e-5}}

# Values of a config that change where, how fast and how often something happens, and no score by more than rounding.
# The recipe is a name for other values; a run that --stop-when-lost has ended is told by its epochs (records.py).
EXECUTION = (
    {"device", "scan_backend", "compile", "cuda_graphs", "use_checkpoint", "num_workers", "cache", "work_dir"}
    | {"print_interval", "save_interval", "val_interval", "resume", "debug", "z_spacing", "stop_when_lost"}
    | {"recipe", "class_names", "class_colours", "accept_changed_data", "checkpoint_interval"}
)
PLACES = {"data_path", "list_dir", "volume_path"}  # of the data; what lies there decides
ROW = {"dataset", "network", "load_ckpt_path", "seed", "test_only"}  # what a row of the tables is about


def paper_number(row: str | None, score: str) -> str:
    """The paper's number as text, with DOUBT behind it where no second source has it; "" if the paper has none."""
    number = ROWS.get(row or "", {}).get(score)
    if number is None:
        return ""
    return f"{number:.2f} {DOUBT}" if score in UNCONFIRMED else f"{number:.2f}"


def initial_weights(config: Values) -> str | None:
    """none, vmamba-t, vmamba-s or imagenet (of a baseline), as far as a config tells; else None."""
    path = config["load_ckpt_path"].lower()
    if path in ("none", "imagenet"):
        return path
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return {(True, False): "vmamba-s", (False, True): "vmamba-t"}.get(("small" in name, "tiny" in name))


def row_name(config: Values) -> str | None:
    """The name of a run's row, such as isic17-vmamba-s or, of a baseline, isic17-unet-none. None for other data sets,
    for weights that the file's name does not tell, and for runs that only test."""
    weights = initial_weights(config)
    if config["dataset"] not in TESTED.keys() | BESIDE or weights is None or config["test_only"]:
        return None
    parts = [config["dataset"]] + ([] if config["network"] == "vmunet" else [config["network"]]) + [weights]
    return "-".join(parts)


def changed_values(config: Values, defaults: Values) -> list[Change]:
    """The values of a config that differ from the published ones and can change a score."""
    ignored = EXECUTION | PLACES | ROW
    return [
        (name, value, defaults[name])
        for name, value in config.items()
        if name not in ignored and name in defaults and value != defaults[name]
    ]


def changed_rows(config: Values, optimization: Mapping[str, Values], published: Mapping[str, Values]) -> list[Change]:
    """The values of optimizer and scheduler that differ from the published ones because their rows of configs/optim.py
    were edited. Not among them is what the config says itself: another optimizer or scheduler, and single values.

    optimization   what the run was built with (utils.optim.optimization_values); `published` is alike"""
    replaced: dict[str, Collection[str]] = {
        "optimizer": [*config["opt_args"], *(name for name in ("lr", "weight_decay") if config[name] is not None)],
        "scheduler": config["sch_args"],
    }
    changes = []
    for part, there in published.items():
        here = optimization[part]
        if here["name"] == there["name"]:
            names = [name for name in dict.fromkeys([*there, *here]) if name not in replaced[part]]
            values = [(f"{name} of {there['name']}", here.get(name), there.get(name)) for name in names]
            changes += [(name, value, default) for name, value, default in values if value != default]
    return changes


def differences(
    config: Values, defaults: Values, tested: int | None = None, edited: Sequence[Change] = ()
) -> list[str]:
    """Sentences that say why a run's scores can't stand beside the published ones; none if they can.

    tested  the number of images or volumes that the test saw, None if there was no test
    edited  its `changed_rows`"""
    changes = [*changed_values(config, defaults), *edited]
    reasons = [f"{name} is {shown(value)}, published {shown(default)}" for name, value, default in changes]
    expected = TESTED.get(config["dataset"])
    if expected is None:
        reasons.insert(0, f"the paper has no data set {config['dataset']!r}")
    elif tested is not None and tested != expected:
        reasons.append(f"tested on {tested} images or volumes, published {expected}")
    if config["network"] != "vmunet":
        reasons.insert(0, f"the network is {config['network']}")
    return reasons


def shown(value: Any) -> str:
    """A value of a config as a person would write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value)) or "empty"
    return "none" if value is None else str(value)
