"""An example for own images: three classes by colour, five folds by patient. Copy this file and change the values.

    python -m datasets.check data/own
    python -m configs.config_own --fold 0

data/own holds images and masks of equal names, such as patient07_2.jpg and patient07_2.png (data/README.md).
Every value is also a flag. Values of configs/config_setting.py that are not here keep their defaults.
"""

from dataclasses import dataclass
from typing import Literal

from configs.config_setting import ISICConfig
from configs.optim import Scheduler


@dataclass(kw_only=True)
class OwnConfig(ISICConfig):
    dataset: str = "own"  # part of the run folder's name
    data_path: str | None = "data/own"
    num_classes: int = 3
    mask_values: tuple[str, ...] = ("#000000", "#ff0000", "#0000ff")  # background, class 1, class 2

    folds: int = 5
    fold_group: str = "^[^_]+"  # all before the first _ is the patient

    epochs: int = 100
    sch: Scheduler = "CosineWarmup"  # falls once over the run; the published cosine is cut for 300 epochs
    clip_grad_norm: float | None = 1.0
    rotation: Literal["run", "sample"] = "sample"
    mask_resize: Literal["bilinear", "nearest"] = "nearest"
    load_ckpt_path: str = "none"  # or a file of pretrained_weights, which helps most where images are few


if __name__ == "__main__":
    from configs.resolve import resolve
    from train import main
    from utils.runs.command_line import run

    run(main, OwnConfig, resolve)
