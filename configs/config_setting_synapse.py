"""VM-UNet on Synapse abdominal CT: every hyperparameter, with the published value. Edit them here.

    python train_synapse.py

Each value is also a flag of the same name (`--lr 5e-4`), which wins over this file. A recipe (configs/recipes.py) keeps
the values that you edit here, unless you ask for it with `--recipe`. The optimizers' other values: configs/optim.py.

The paper reports, with VMamba-S weights (table 2): DSC 81.08, HD95 19.21.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from configs.optim import Optimizer, Scheduler
from configs.options import FoldOptions, MachineOptions, NameOptions, RunOptions, VolumeDataOptions
from datasets.synapse import ORGANS


@dataclass(kw_only=True)
class SynapseConfig(RunOptions, MachineOptions, FoldOptions, VolumeDataOptions, NameOptions):
    # --- data ---
    dataset: str = "synapse"  # synapse, acdc, demo (synthetic, made on first use), or a name for data_path
    data_path: str | None = None  # folder with train_npz, test_vol_h5 and lists; none: data/Synapse, data/acdc
    image_size: int = 224  # side of the network's input, in pixels
    slice_fit: Literal["zoom", "pad"] = "zoom"  # zoom slices to image_size, or keep their pixels, surrounded by zeros
    context: int = 0  # slices before and after each that become channels; 1 needs input_channels 3, 2 needs 5
    input_channels: int = 3  # 3: without context a grey slice is repeated
    num_classes: int = 9  # background and eight organs; prepared volumes know theirs
    augmentation: Literal["published", "strong"] = "published"  # strong: datasets/augmentation.py, for small data sets
    scaling: Literal["window", "percentiles"] | None = None  # of prepared volumes, whose folder knows it; none: CT
    scaling_range: tuple[float, float] = (-125, 275)  # values, or percentiles of a volume's values, that became 0 and 1
    orientation: str = "LPS"  # where columns, rows and slices point to, or stored; prepared volumes know it too
    label_ids: tuple[int, ...] = ()  # of the classes 1, 2, ... in files of labels; none: 1, 2, ...; likewise
    channel: int | None = None  # of files with several, counted from 0; likewise

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
    epochs: int = 300  # passes over the training slices
    batch_size: int = 32  # slices of one step, over all processes
    accumulation_steps: int = 1  # batches whose gradients are added up before a step
    seed: int = 42  # of weights, order of slices, augmentation and stochastic depth
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # bf16, fp16: autocast, the scan's state stays in float32
    loss: str = "auto"  # a function of utils/losses.py; auto: ce_dice
    loss_weight: tuple[float, float] = (1, 1)  # of cross-entropy and Dice
    class_weights: tuple[float, ...] = ()  # of the classes 0, 1, ... in the loss; none: equal (published)
    ignore_label: int | None = None  # voxels of this label count in no loss and no score; prepared volumes know it

    # --- optimizer and schedule (their other values: configs/optim.py) ---
    opt: Optimizer = "AdamW"
    lr: float | None = 1e-3  # learning rate; None: that of the optimizer's row in configs/optim.py
    weight_decay: float | None = 1e-2  # None: likewise
    decay: Literal["all", "weights_only"] = "all"  # weights_only: none on A_logs, Ds, norms and biases (published: all)
    clip_grad_norm: float | None = None  # largest norm of the gradient of a step
    opt_args: dict[str, str] = field(default_factory=dict)  # replaces other values of the row: --opt-args eps 1e-6
    sch: Scheduler = "CosineAnnealingLR"  # T_max 100, eta_min 1e-5, so the rate rises again (published)
    sch_args: dict[str, str] = field(default_factory=dict)  # replaces values of the row: --sch-args T_max 300
    warmup: Literal["from_first_step", "published"] = "from_first_step"  # WP_* rows; published: rate 0 in epoch 1
    ema: float | None = None  # decay of a moving average of the weights, which is then validated, kept and tested

    # --- validation and test ---
    protocol: Literal["paper", "holdout"] = "paper"  # holdout: select on one set, report on another
    select: Literal["best", "last"] = "best"  # the epoch whose weights are kept and tested; last: nothing is selected
    volume_resize: Literal["labels", "logits"] = "labels"  # labels: argmax, then nearest zoom, as published
    fold_seed: int = 12345  # of --folds: nnU-Net's, by which 5 folds are its folds
    z_spacing: float = 1  # mm between slices in the NIfTI files where the volume does not say it
    early_stopping: int | None = None  # end after this many epochs without a better one; none: never (published)
    val_interval: int = 100  # epochs between two evaluations of the volumes

    of_volumes: ClassVar[bool] = True

    @property
    def structures(self) -> list[str]:
        """Names of the classes 1, 2, ...: of eight, without other names, Synapse's organs."""
        organs = self.num_classes == len(ORGANS) + 1 and not self.class_names
        return list(ORGANS) if organs else super().structures
