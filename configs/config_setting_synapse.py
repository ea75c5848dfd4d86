"""VM-UNet on Synapse abdominal CT: the published values.

    python train_synapse.py

Expected with VMamba-S weights (paper, table 2): DSC 81.08, HD95 19.21.
"""

from dataclasses import dataclass
from typing import Literal

from configs.base import BaseConfig

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")  # 1..8


@dataclass(kw_only=True)
class SynapseConfig(BaseConfig):
    # --- data ---
    dataset: str = "synapse"  # synapse, acdc, demo (synthetic, made on first use), or a name for data_path
    data_path: str | None = None  # folder with train_npz, test_vol_h5 and lists; none: data/Synapse, data/acdc
    list_dir: str | None = None  # folder with train.txt and test_vol.txt; none: data_path/lists/list_Synapse
    volume_path: str | None = None  # folder with <case>.npy.h5; none: data_path/test_vol_h5
    num_classes: int = 9  # background and eight organs; prepared volumes say theirs
    scaling: Literal["window", "percentiles"] | None = None  # of prepared volumes, whose folder says it; none: CT
    scaling_range: tuple[float, float] = (-125, 275)  # values, or percentiles of a volume's values, that became 0 and 1
    orientation: str = "LPS"  # where columns, rows and slices point to, or stored; prepared volumes say it too
    image_size: int = 224  # side of the network's input, in pixels

    augmentation: Literal["published", "strong"] = "published"  # strong: datasets/augmentation.py, for small data sets
    # --- optimisation ---
    loss_weight: tuple[float, float] = (1, 1)  # of cross-entropy and Dice
    # --- the run ---
    volume_resize: Literal["labels", "logits"] = "labels"  # labels: argmax, then nearest zoom, as published
    z_spacing: float = 1  # mm between slices in the NIfTI files where the volume does not say it
    val_interval: int = 100  # epochs between two evaluations of the volumes

    @property
    def of_volumes(self) -> bool:
        return True

    @property
    def structures(self) -> list[str]:
        organs = self.num_classes == len(ORGANS) + 1 and not self.class_names
        return list(ORGANS) if organs else super().structures
