"""What both experiments share. Every field is also a command-line flag of the same name."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from configs.optim import OPTIMIZERS, SCHEDULERS

# What a user can ask for; models/cross_scan/backends.py has them, and "auto" is the best for the machine.
ScanBackend = Literal["auto", "cuda", "triton", "mamba_ssm", "cpu", "torch", "reference"]

if TYPE_CHECKING:
    Optimizer: TypeAlias = str
    Scheduler: TypeAlias = str
else:  # a row's name
    Optimizer, Scheduler = Literal[tuple(OPTIMIZERS)], Literal[tuple(SCHEDULERS)]

DEPTHS = {"vmunet": (2, 2, 2, 2), "vmunetv2": (2, 2, 9, 2)}  # as published


@dataclass(kw_only=True)
class BaseConfig:
    recipe: Literal["published", "stable"] = "published"  # a row of configs.recipes.RECIPES

    # --- model (paper section 3; the released configuration, 27.43 M parameters) ---
    network: str = "vmunet"  # vmunet, vmunetv2, ultralight, or a baseline: unet, smp:<architecture>[-<encoder>]
    num_classes: int  # 1: binary masks; more: class 0 is the background
    class_names: tuple[str, ...] = ()  # of the classes 1, 2, ...; none: the data folder's, else numbers
    class_colours: tuple[str, ...] = ()  # of the same classes, as "#ff0000"; none: those of mask_values or the masks
    input_channels: int = 3  # 3: grey images are repeated; 1: colour images become grey
    depths: tuple[int, int, int, int] | None = None  # VSS blocks of each encoder stage; none: 2 2 2 2, vmunetv2 2 2 9 2
    depths_decoder: tuple[int, int, int, int] = (2, 2, 2, 1)  # VSS blocks of each decoder stage, deepest first
    dims: tuple[int, int, int, int] = (96, 192, 384, 768)  # channels of each encoder stage
    d_state: int = 16  # states of the selective scan
    drop_path_rate: float = 0.2  # highest rate of stochastic depth
    skip_at_quarter: bool = False  # also add the skip at H/4 (published: not used)
    load_ckpt_path: str = "pretrained_weights/vmamba_small_e238_ema.pth"  # VMamba's; none; baselines: none, imagenet

    # --- data ---
    image_size: int  # side of the network's input, in pixels
    batch_size: int = 32  # images of one step, over all processes
    num_workers: int = -1  # processes that read data; -1: chosen from the machine
    cache: Literal["auto", "on", "off"] = "auto"  # keep decoded images in memory; auto: if they fit

    # --- optimisation ---
    epochs: int = 300  # passes over the training set
    seed: int = 42  # of weights, order of images, augmentation and stochastic depth
    opt: Optimizer = "AdamW"  # a row of configs.optim.OPTIMIZERS
    sch: Scheduler = "CosineAnnealingLR"  # a row of configs.optim.SCHEDULERS
    lr: float | None = None  # replaces the row's learning rate
    weight_decay: float | None = None  # replaces the row's weight decay
    opt_args: dict[str, str] = field(default_factory=dict)  # replaces other values of the row: --opt-args eps 1e-6
    sch_args: dict[str, str] = field(default_factory=dict)  # replaces values of the row: --sch-args T_max 300
    decay: Literal["all", "weights_only"] = "all"  # weights_only: none on A_logs, Ds, norms and biases (published: all)
    warmup: Literal["from_first_step", "published"] = "from_first_step"  # WP_* rows; published: rate 0 in epoch 1
    accumulation_steps: int = 1  # batches whose gradients are added up before a step
    clip_grad_norm: float | None = None  # largest norm of the gradient of a step

    # --- execution ---
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # bf16, fp16: autocast, the scan's state stays in float32
    scan_backend: ScanBackend = "auto"  # who computes the scan; auto: the fastest that works here
    use_checkpoint: bool = False  # recompute activations in the backward pass: less memory, more time
    compile: bool = False  # torch.compile the model
    cuda_graphs: bool = True  # on one NVIDIA GPU, launch all kernels of the network at once

    # --- the run ---
    protocol: Literal["paper", "holdout"] = "paper"  # holdout: select on one set, report on another
    work_dir: str | None = None  # holds one folder for each run; none: results/ beside the code
    stop_when_lost: bool = False  # end a run that has lost what it had learned (utils/runs/lost.py)
    print_interval: int = 20  # steps between two lines of the log and points in TensorBoard
    checkpoint_interval: float = 60  # seconds of work that a crash may cost; 0: all is saved after every epoch
    save_interval: int = 100  # epochs between two checkpoints that are kept for good
    resume: str | None = None  # a run folder to go on with, under its own configuration; --epochs may extend it
    accept_changed_data: bool = False  # beside --resume: go on although files of the data have changed meanwhile
    test_only: str | None = None  # a checkpoint to evaluate, under its own configuration, instead of training
    debug: bool = False  # more in the log, and the traceback of errors

    def __post_init__(self) -> None:
        if self.depths is None:
            self.depths = DEPTHS.get(self.network, DEPTHS["vmunet"])

    @property
    def of_volumes(self) -> bool:
        """Whether it is about volumes, cut into slices, or about images."""
        return False

    @property
    def structures(self) -> list[str]:
        """Names of the classes 1, 2, ...; a binary network has one structure."""
        if self.class_names:
            return list(self.class_names)
        return ["foreground"] if self.num_classes == 1 else [f"class {c}" for c in range(1, self.num_classes)]

    @property
    def structure_colours(self) -> tuple[str, ...]:
        """Colours of the classes 1, 2, ... of several, such as "#ff0000"; () where the user gave none."""
        in_masks = getattr(self, "mask_values", ())[1:] if self.num_classes > 1 else ()
        coloured = in_masks if all(value.startswith("#") for value in in_masks) else ()
        return self.class_colours or coloured
