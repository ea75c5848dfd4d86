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

# Values of a config that change where, how fast and how often something happens, and no score by more than rounding.
EXECUTION = {
    "num_workers", "cache", "device", "scan_backend", "use_checkpoint", "compile", "cuda_graphs", "work_dir",
    "print_interval", "save_interval", "val_interval", "resume", "debug", "z_spacing",
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
