"""The paper's numbers (arXiv 2402.02491) and what a run must have in common with them to be compared.

Scores are in percent, HD95 in voxels. Those of CONFIRMED were found in a second source; the others are quoted from
memory of the paper's tables and not checked yet.
"""

VMAMBA_S = {"miou": 80.23, "dsc": 89.03, "accuracy": 96.29, "specificity": 97.58, "sensitivity": 89.90}
ROWS = {  # <data set>-<initial weights>, tables 1, 2 and 3
    "isic17-vmamba-s": VMAMBA_S,
    "isic17-vmamba-t": {"miou": 78.85, "dsc": 88.17},
    "isic17-none": {"miou": 77.59, "dsc": 87.38},
    "isic18-vmamba-s": {"miou": 81.35, "dsc": 89.71, "accuracy": 94.91, "specificity": 96.13, "sensitivity": 91.12},
    "isic18-vmamba-t": {"miou": 79.04, "dsc": 88.29},
    "isic18-none": {"miou": 78.66, "dsc": 88.06},
    "synapse-vmamba-s": {"dice_transunet": 81.08, "hd95_transunet": 19.21},
}
CONFIRMED = {
    ("isic18-vmamba-s", "miou"), ("synapse-vmamba-s", "dice_transunet"), ("synapse-vmamba-s", "hd95_transunet"),
}  # fmt: skip
ORGAN_DICE = {  # synapse-vmamba-s
    "aorta": 86.40, "gallbladder": 69.41, "left kidney": 86.16, "right kidney": 82.76, "liver": 94.17,
    "pancreas": 58.80, "spleen": 89.51, "stomach": 81.40,
}  # fmt: skip
TESTED = {"isic17": 650, "isic18": 808, "synapse": 12}  # images, volumes

# The values that the paper's runs had, as config.json holds them. The configs start from the same ones and may be
# edited; these stay, so that a report says what was changed.
_BOTH = {
    "recipe": "published",
    "network": "vmunet", "input_channels": 3, "depths": [2, 2, 2, 2], "depths_decoder": [2, 2, 2, 1],
    "dims": [96, 192, 384, 768], "d_state": 16, "drop_path_rate": 0.2, "skip_at_quarter": False,
    "load_ckpt_path": "pretrained_weights/vmamba_small_e238_ema.pth",
    "batch_size": 32, "num_workers": -1, "cache": "auto",
    "epochs": 300, "seed": 42, "opt": "AdamW", "sch": "CosineAnnealingLR", "lr": None, "weight_decay": None,
    "opt_args": {}, "sch_args": {}, "decay": "all", "warmup": "from_first_step", "accumulation_steps": 1,
    "clip_grad_norm": None, "loss_weight": [1, 1],
    "device": "auto", "precision": "fp32", "scan_backend": "auto", "use_checkpoint": False, "compile": False,
    "cuda_graphs": True,
    "protocol": "paper", "work_dir": "results", "print_interval": 20, "save_interval": 100, "resume": None,
    "test_only": None, "debug": False, "data_path": None,
}  # fmt: skip
PUBLISHED_IMAGES = _BOTH | {
    "dataset": "isic18", "num_classes": 1, "image_size": 256, "mask_values": [],
    "folds": 0, "fold": 0, "fold_seed": 42, "fold_group": "",
    "rotation": "run", "normalization": "minmax", "mask_resize": "bilinear", "antialias": False, "threshold": 0.5,
    "val_interval": 30,
}  # fmt: skip
PUBLISHED_VOLUMES = _BOTH | {
    "dataset": "synapse", "num_classes": 9, "image_size": 224, "list_dir": None, "volume_path": None,
    "volume_resize": "labels", "z_spacing": 1, "val_interval": 100,
}  # fmt: skip

# Values of a config that change where, how fast and how often something happens, and no score by more than rounding.
EXECUTION = {
    "num_workers", "cache", "device", "scan_backend", "use_checkpoint", "compile", "cuda_graphs", "work_dir",
    "print_interval", "save_interval", "val_interval", "resume", "debug", "z_spacing", "recipe",
}  # fmt: skip
PLACES = {"data_path", "list_dir", "volume_path"}  # of the data; what lies there decides
ROW = {"dataset", "network", "load_ckpt_path", "seed", "test_only"}  # what a row of the tables is about


def initial_weights(config):
    """none, vmamba-t, vmamba-s or imagenet (of a baseline), as far as a config (a dict) tells; else None."""
    path = config["load_ckpt_path"].lower()
    if path in ("none", "imagenet"):
        return path
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return {(True, False): "vmamba-s", (False, True): "vmamba-t"}.get(("small" in name, "tiny" in name))


def row_name(config):
    """The name of a run's row, such as isic17-vmamba-s or, of a baseline, isic17-unet-none. None for other data sets,
    for weights that the file's name does not tell, and for runs that only test."""
    weights = initial_weights(config)
    if config["dataset"] not in TESTED or weights is None or config["test_only"]:
        return None
    parts = [config["dataset"]] + ([] if config["network"] == "vmunet" else [config["network"]]) + [weights]
    return "-".join(parts)


def changed_values(config, defaults):
    """[(field, value, default)] of the values that differ from the published ones and can change a score."""
    ignored = EXECUTION | PLACES | ROW
    return [
        (name, value, defaults[name])
        for name, value in config.items()
        if name not in ignored and name in defaults and value != defaults[name]
    ]


def differences(config, defaults, tested=None):
    """Sentences that say why a run's scores can't stand beside the published ones; none if they can.

    tested  the number of images or volumes that the test saw, None if there was no test"""
    reasons = [f"{name} is {shown(value)}, published {shown(default)}" for name, value, default in
               changed_values(config, defaults)]  # fmt: skip
    expected = TESTED.get(config["dataset"])
    if expected is None:
        reasons.insert(0, f"the paper has no data set {config['dataset']!r}")
    elif tested is not None and tested != expected:
        reasons.append(f"tested on {tested} images or volumes, published {expected}")
    if config["network"] != "vmunet":
        reasons.insert(0, f"the network is the baseline {config['network']}")
    return reasons


def shown(value):
    """A value of a config as a person would write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value)) or "empty"
    return "none" if value is None else str(value)
