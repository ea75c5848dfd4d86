"""The tables of scores in docs/results.md, docs/collapse.md and README.md, from the records in results/.

    python -m report.results

writes each of TABLES again, between the lines <!-- table NAME --> and <!-- end --> of a page. The text around them is
written by hand; tests/report/test_results.py compares its numbers with the records."""

from utils.start import run_process

import re
from collections.abc import Callable, Mapping, Sequence

from report import result_tables as tables
from utils.files import REPOSITORY, write_atomically

PAGES = ("docs/results.md", "docs/collapse.md", "README.md")
TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SEEDS = (42, 43, 44)


def stable(folder: str) -> list[str]:
    return [f"{folder}/stable_{seed}" for seed in SEEDS]


def rows(folder: str, *others: str) -> tables.Rows:
    """Return the rows of a published split: the seeds of stable, their mean, other runs."""
    single = {f"`{name.partition('/')[2]}`": [name] for name in (*stable(folder), *(f"{folder}/{o}" for o in others))}
    return {"mean ± sd of `stable`": stable(folder), **single}


ISIC17 = ("published_42", "published_steps_below_1_42", "stable_at_1e-3_42", "robust_42", "stable_unet_42")
ISIC17 += ("stable_vmunetv2_42", "stable_holdout_42")
ISIC18 = ("published_42", "robust_42", "stable_unet_42")
NETWORKS = {
    "VM-UNet": "robust_42",
    "no scan": "robust_no_scan_42",
    "7 x 7 convolution": "robust_conv7_42",
    "U-Net": "robust_unet_42",
}
OFFICIAL = {label: [f"isic17_official/{run}"] for label, run in NETWORKS.items()}
UNSEEN = {label: [f"isic18_unseen/{run}"] for label, run in NETWORKS.items()}
SCAN = {
    f"{tested}, VM-UNet − {label}": (runs["VM-UNet"], names)
    for tested, runs in (("official", OFFICIAL), ("unseen", UNSEEN))
    for label, names in runs.items()
    if label != "VM-UNet"
}
SPLITS = {
    "ISIC17, stable − U-Net": (stable("isic17"), ["isic17/stable_unet_42"]),
    "ISIC17, stable − VM-UNetV2": (stable("isic17"), ["isic17/stable_vmunetv2_42"]),
    "ISIC17, stable, seed 42: rate 5e-4 − 1e-3": (["isic17/stable_42"], ["isic17/stable_at_1e-3_42"]),
    "ISIC18, stable − U-Net": (stable("isic18"), ["isic18/stable_unet_42"]),
    "ISIC18, stable − published": (stable("isic18"), ["isic18/published_42"]),
}
ACDC = {"VM-UNet": ["acdc/stable_vmunet_42"], "U-Net": ["acdc/stable_unet_42"]}
SEEDS_OF_ACDC = {network: [f"acdc/robust_{network}_{seed}" for seed in SEEDS] for network in ("vmunet", "unet")}
PUBLISHED_ACDC = {
    "VM-UNet, three seeds": SEEDS_OF_ACDC["vmunet"],
    "U-Net, three seeds": SEEDS_OF_ACDC["unet"],
    "VM-UNet, `--context 1`": ["acdc/robust_context1_42"],
    "VM-UNet, `pad` 192": ["acdc/robust_pad192_42"],
}
PUBLISHED_ACDC_PAIRS = {
    "VM-UNet − U-Net, three seeds": (SEEDS_OF_ACDC["vmunet"], SEEDS_OF_ACDC["unet"]),
    "seed 42: `--context 1` − 0": (["acdc/robust_context1_42"], ["acdc/robust_vmunet_42"]),
    "seed 42: `pad` 192 − `zoom` 224": (["acdc/robust_pad192_42"], ["acdc/robust_vmunet_42"]),
}


def hippocampus(name: str, folds: Sequence[int] = range(5)) -> list[str]:
    return [f"hippocampus/{name}_fold{fold}" for fold in folds]


def folds_tested(pairs: Mapping[str, tuple[str, str]], folds: Sequence[int]) -> str:
    return tables.paired_folds(
        {k: (hippocampus(one, folds), hippocampus(other, folds)) for k, (one, other) in pairs.items()}
    )


FOLDS = {
    "VM-UNet, `zoom` 128, `--context 1`": "zoom128_context1",
    "VM-UNet, `pad` 64, `--context 1`": "pad64_context1",
    "nnU-Net 2d, 5 epochs": "nnunet_2d",
}
FOLD_PAIRS = {
    "VM-UNet, `zoom` 128 − nnU-Net": ("zoom128_context1", "nnunet_2d"),
    "VM-UNet, `zoom` 128 − `pad` 64": ("zoom128_context1", "pad64_context1"),
}
FIRST_FOLD = {
    "U-Net, `zoom` 128, `--context 1`": "unet_zoom128_context1",
    "VM-UNet, `pad` 64": "pad64",
    **FOLDS,
}
FIRST_FOLD_PAIRS = {
    "`zoom` 128: VM-UNet − U-Net": ("zoom128_context1", "unet_zoom128_context1"),
    "`pad` 64: `--context 1` − 0": ("pad64_context1", "pad64"),
}
FRONT = {"VM-UNet, three seeds": stable("isic17"), "U-Net (ResNet-34), one seed": ["isic17/stable_unet_42"]}
# runs between which only the rate differs, and others
FAST = ["isic17/published_42", "isic17/ablation/published_fp32", "isic17/stable_at_1e-3_42", "isic17/collapse_43"]
SLOW = ["isic17/ablation/published_5e-4", *stable("isic17")]
PARTS = [f"isic17/ablation/{name}" for name in ("no_warmup", "no_warmup_and_restarts", "no_clipping")]
COLLAPSE = {"1e-3": FAST, "1e-3, steps of at most 1": ["isic17/published_steps_below_1_42"], "5e-4": SLOW + PARTS}

TABLES: dict[str, Callable[[], str]] = {
    "front": lambda: tables.front(FRONT),
    "isic17": lambda: tables.published_split("isic17", rows("isic17", *ISIC17)),
    "isic18": lambda: tables.published_split("isic18", rows("isic18", *ISIC18)),
    "split_tests": lambda: tables.paired(SPLITS),
    "official": lambda: tables.challenge(OFFICIAL),
    "unseen": lambda: tables.challenge(UNSEEN),
    "networks": lambda: tables.networks(OFFICIAL),
    "scan_tests": lambda: tables.paired(SCAN, "miou"),
    "acdc": lambda: tables.volumes(ACDC),
    "acdc_test": lambda: tables.paired({"VM-UNet − U-Net": (ACDC["VM-UNet"], ACDC["U-Net"])}, unit="Patients"),
    "acdc_published": lambda: tables.volumes(PUBLISHED_ACDC),
    "acdc_published_test": lambda: tables.paired(PUBLISHED_ACDC_PAIRS, unit="Patients"),
    "hippocampus": lambda: tables.folds({label: hippocampus(name) for label, name in FOLDS.items()}),
    "hippocampus_test": lambda: folds_tested(FOLD_PAIRS, range(5)),
    "hippocampus_first_fold": lambda: tables.folds({k: hippocampus(name, [0]) for k, name in FIRST_FOLD.items()}),
    "hippocampus_first_fold_test": lambda: folds_tested(FIRST_FOLD_PAIRS, [0]),
    "collapse": lambda: tables.collapse(COLLAPSE),
}


def rewritten(text: str) -> str:
    """Return a page with its tables made again."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    for page in PAGES:
        path = REPOSITORY / page
        write_atomically(path, rewritten(path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    run_process(main)
