"""VM-UNet on ISIC17 or ISIC18: the published values.

    python train.py --dataset isic17

Expected with VMamba-S weights (paper, table 1): ISIC17 mIoU 80.23, DSC 89.03; ISIC18 mIoU 81.35, DSC 89.71.
"""

from dataclasses import dataclass
from typing import Literal

from configs.base import BaseConfig


@dataclass(kw_only=True)
class ISICConfig(BaseConfig):
    # --- data ---
    dataset: str = "isic18"  # isic17, isic18, demo (synthetic, made on first use), or a name for data_path
    data_path: str | None = None  # folder with {train,val}/{images,masks}; none: data/<dataset>
    num_classes: int = 1  # 1: binary masks; more: class 0 is the background
    image_size: int = 256  # side of the network's input, in pixels
    mask_values: tuple[str, ...] = ()  # several classes: grey value ("128") or colour ("#ff0000") of each, in order

    # --- folds ---
    folds: int = 0  # k-fold: images of train and val, or of one folder, are dealt into so many parts; 0: off
    fold: int | Literal["all"] = 0  # the part to validate on, 0..folds-1; all: one run after the other, then a table
    fold_seed: int = 42  # of the deal; not `seed`, so that runs of different seeds share their parts
    fold_group: str = ""  # regular expression: names in which it matches the same text, a patient's, stay together

    # --- images ---
    rotation: Literal["run", "sample"] = "run"  # run: one angle for the whole run, as published
    normalization: Literal["minmax", "imagenet"] = "minmax"  # minmax: each image to 0..255, as published
    mask_resize: Literal["bilinear", "nearest"] = "bilinear"  # bilinear: soft borders, as published
    antialias: bool = False  # when shrinking; published: off

    # --- optimisation ---
    loss_weight: tuple[float, float] = (1, 1)  # of cross-entropy and Dice
    # --- the run ---
    threshold: float = 0.5  # from this probability on a pixel is lesion
    val_interval: int = 30  # epochs between two sets of prediction panels; losses and metrics come every epoch
