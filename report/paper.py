"""The paper's scores (arXiv 2402.02491), and what a run must share with the published values to be compared with them.

Scores are in percent, HD95 in voxels. All but those of UNCONFIRMED agree with a second source.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from configs.options import MachineOptions, NameOptions, RunOptions, VolumeDataOptions, fields_of

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
    "synapse-vmamba-s": {"dice_transunet": 81.08, "hd95_transunet": 19.21}
    | {f"dice_transunet {organ}": dice for organ, dice in ORGAN_DICE.items()},
}
UNCONFIRMED = {"accuracy", "specificity", "sensitivity"}
DOUBT = "†"
TESTED = {"isic17": 650, "isic18": 808, "synapse": 12}  # images, volumes
OTHER_DATA = {"acdc"}  # data sets with rows like the paper's

# The published rows of configs/optim.py, which may be edited there, by `of_volumes`. Likewise configs/published.json
# has the published values of the config files.
_ADAMW = {"name": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8, "amsgrad": False}
PUBLISHED_ROWS = {
    False: {"optimizer": _ADAMW, "scheduler": {"name": "CosineAnnealingLR", "T_max": 50, "eta_min": 1e-5}},
    True: {"optimizer": _ADAMW, "scheduler": {"name": "CosineAnnealingLR", "T_max": 100, "eta_min": 1e-5}},
}

RATES = ("lr", "weight_decay")  # fields of the config that replace a value of the optimizer's row
# Fields that change no score by more than rounding. A run that --stop-when-lost ended is known by its epochs.
NEUTRAL_FIELDS = fields_of(NameOptions, MachineOptions, RunOptions) - {"test_only"} | {"z_spacing"}
# Fields that determine the row of the paper's tables, and where the data are.
ROW_FIELDS = fields_of(VolumeDataOptions) | {"network", "load_ckpt_path", "seed", "test_only"}


def paper_number(row: str | None, score: str) -> str:
    """Return the paper's number as text, marked with DOUBT without a second source; "" if the paper has none."""
    number = ROWS.get(row or "", {}).get(score)
    if number is None:
        return ""
    return f"{number:.2f} {DOUBT}" if score in UNCONFIRMED else f"{number:.2f}"


def initial_weights(config: Values) -> str | None:
    """Return none, vmamba-t, vmamba-s or imagenet (baselines), judging by the name of the file; else None."""
    path = config["load_ckpt_path"].lower()
    if path in ("none", "imagenet"):
        return path
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return {(True, False): "vmamba-s", (False, True): "vmamba-t"}.get(("small" in name, "tiny" in name))


def row_name(config: Values) -> str | None:
    """Return the name of a run's row, such as isic17-vmamba-s or, for a baseline, isic17-unet-none. None for other data
    sets, for weights of unknown origin, and for runs without training."""
    weights = initial_weights(config)
    if config["dataset"] not in TESTED.keys() | OTHER_DATA or weights is None or config["test_only"]:
        return None
    parts = [config["dataset"]] + ([] if config["network"] == "vmunet" else [config["network"]]) + [weights]
    return "-".join(parts)


def changed_rows(values: Values, optimization: Mapping[str, Values], published: Mapping[str, Values]) -> list[Change]:
    """Return the values of optimizer and scheduler that differ from the published ones because their rows in
    configs/optim.py were edited. What the config itself sets is not among them.

    optimization   what the run was built with (utils.optimizers.optimization_values); `published` has the same form"""
    overridden = {"optimizer": {*RATES, *values["opt_args"]}, "scheduler": {*values["sch_args"]}}
    changes = []
    for part, row in published.items():
        built = optimization[part]
        names = dict.fromkeys([*row, *built]) if built["name"] == row["name"] else ()
        differing = [name for name in names if name not in overridden[part] and built.get(name) != row.get(name)]
        changes += [(f"{name} of {row['name']}", built.get(name), row.get(name)) for name in differing]
    return changes


def differences(
    values: Values, published: Values, tested: int | None = None, edited: Sequence[Change] = ()
) -> list[str]:
    """Return sentences that explain why a run's scores are not comparable with the published ones; [] if they are.

    tested: number of images or volumes in the test, None without a test. edited: the run's `changed_rows`."""
    shared = [name for name in values if name in published and name not in NEUTRAL_FIELDS | ROW_FIELDS]
    changes = [(name, values[name], published[name]) for name in shared if values[name] != published[name]]
    reasons = []
    for name, value, default in [*changes, *edited]:
        reasons.append(f"{name} is {format_value(value)}, published {format_value(default)}")
    expected = TESTED.get(values["dataset"])
    if expected is None:
        reasons.insert(0, f"the paper has no data set {values['dataset']!r}")
    elif tested is not None and tested != expected:
        reasons.append(f"tested on {tested} images or volumes, published {expected}")
    if values["network"] != "vmunet":
        reasons.insert(0, f"the network is {values['network']}")
    return reasons


def format_value(value: Any) -> str:
    """Return a value of a config as a person would write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(format_value, value)) or "empty"
    return "none" if value is None else str(value)
