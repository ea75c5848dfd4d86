"""VM-UNet on ISIC17 or ISIC18: every hyperparameter, with the published value. Edit them here.

    python train.py --dataset isic17

Each value is also a flag of the same name (`--lr 5e-4`), which wins over this file. A recipe (configs/recipes.py) keeps
the values that you edit here, unless you ask for it with `--recipe`. The optimizers' other values: configs/optim.py.

The paper reports, with VMamba-S weights (table 1): ISIC17 mIoU 80.23, DSC 89.03; ISIC18 mIoU 81.35, DSC 89.71.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from configs.optim import Optimizer, Scheduler
from configs.options import DataOptions, FoldOptions, MachineOptions, NameOptions, RunOptions


@dataclass(kw_only=True)
class ISICConfig(RunOptions, MachineOptions, FoldOptions, DataOptions, NameOptions):
    # --- data ---
    dataset: str = "isic18"  # isic17, isic18, demo (synthetic, made on first use), or a name for data_path
    data_path: str | None = None  # folder with {train,val}/{images,masks}; none: data/<dataset>
    image_size: int = 256  # side of the network's input, in pixels
    input_channels: int = 3  # 3: grey images are repeated; 1: colour images become grey
    num_classes: int = 1  # 1: binary masks; more: class 0 is the background
    mask_values: tuple[str, ...] = ()  # several classes: grey value ("128") or colour ("#ff0000") of each, in order
    normalization: Literal["minmax", "imagenet"] = "minmax"  # minmax: each image to 0..255, as published
    augmentation: Literal["published", "strong"] = "published"  # strong: datasets/image_augmentation.py
    rotation: Literal["run", "sample"] = "run"  # run: one angle for the whole run, as published; strong has its own
    mask_resize: Literal["bilinear", "nearest"] = "bilinear"  # bilinear: soft borders, as published
    antialias: bool = False  # when shrinking; published: off

    # --- model (paper section 3; the released configuration, 27.43 M parameters) ---
    network: str = "vmunet"  # vmunet, vmunetv2, ultralight, or a baseline: unet, smp:<architecture>[-<encoder>]
    load_ckpt_path: str = "vmamba-small"  # downloaded once; vmamba-tiny, a file, none; baselines: none, imagenet
    depths: tuple[int, int, int, int] | None = (2, 2, 2, 2)  # VSS blocks of each encoder stage; vmunetv2 2 2 9 2
    depths_decoder: tuple[int, int, int, int] = (2, 2, 2, 1)  # VSS blocks of each decoder stage, deepest first
    dims: tuple[int, int, int, int] = (96, 192, 384, 768)  # channels of each encoder stage
    d_state: int = 16  # states of the selective scan
    drop_path_rate: float = 0.2  # highest rate of stochastic depth
    skip_at_quarter: bool = False  # also add the skip at H/4 (published: not used)

    # --- training ---
    epochs: int = 300  # passes over the training set
    batch_size: int = 32  # images of one step, over all processes
    accumulation_steps: int = 1  # batches whose gradients are added up before a step
    seed: int = 42  # of weights, order of images, augmentation and stochastic depth
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # bf16, fp16: autocast, the scan's state stays in float32
    loss: str = "auto"  # a function of utils/losses.py; auto: bce_dice for one class, ce_dice for several
    loss_weight: tuple[float, float] = (1, 1)  # of cross-entropy and Dice
    class_weights: tuple[float, ...] = ()  # of the classes 0, 1, ... in the loss, two for binary masks; none: equal
    ignore_label: int | None = None  # mask value that counts in no loss and no score, such as 255; several classes only

    # --- optimizer and schedule (their other values: configs/optim.py) ---
    opt: Optimizer = "AdamW"
    lr: float | None = 1e-3  # learning rate; None: that of the optimizer's row in configs/optim.py
    weight_decay: float | None = 1e-2  # None: likewise
    decay: Literal["all", "weights_only"] = "all"  # weights_only: none on A_logs, Ds, norms and biases (published: all)
    clip_grad_norm: float | None = None  # largest norm of the gradient of a step
    opt_args: dict[str, str] = field(default_factory=dict)  # replaces other values of the row: --opt-args eps 1e-6
    sch: Scheduler = "CosineAnnealingLR"  # T_max 50, eta_min 1e-5, so the rate rises again (published)
    sch_args: dict[str, str] = field(default_factory=dict)  # replaces values of the row: --sch-args T_max 300
    warmup: Literal["from_first_step", "published"] = "from_first_step"  # WP_* rows; published: rate 0 in epoch 1
    ema: float | None = None  # decay of a moving average of the weights, which is then validated, kept and tested

    # --- validation and test ---
    protocol: Literal["paper", "holdout"] = "paper"  # holdout: select on one set, report on another
    select: Literal["best", "last"] = "best"  # the epoch whose weights are kept and tested; last: nothing is selected
    threshold: float = 0.5  # a pixel is lesion from this probability on
    early_stopping: int | None = None  # end after this many epochs without a better one; none: never (published)
    val_interval: int = 30  # epochs between two sets of prediction panels; losses and metrics come every epoch

    of_volumes: ClassVar[bool] = False

    @property
    def structure_colours(self) -> tuple[str, ...]:
        """Colours of the classes 1, 2, ... of several: `class_colours`, or else the coloured `mask_values`."""
        in_masks = self.mask_values[1:] if self.num_classes > 1 else ()
        return self.class_colours or (in_masks if all(value.startswith("#") for value in in_masks) else ())
