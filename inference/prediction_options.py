"""Options of prediction, for the command line and for `Predictor`."""

from dataclasses import dataclass
from typing import Literal

from configs.options import ScanBackend


@dataclass(kw_only=True)
class ResultOptions:
    """Options that change the results. None stands for the checkpoint's value."""

    # --- input ---
    kind: Literal["images", "volumes"] | None = None  # for a checkpoint without a stored configuration
    image_size: int | None = None  # side of the network's input, in pixels
    normalization: Literal["minmax", "imagenet"] | None = None  # images
    window: tuple[float, float] | None = None  # volumes: values that become 0 and 1; for CT -125 275 (Hounsfield units)
    orientation: str | None = None  # volumes: where columns, rows and slices of the training data point to; or stored
    channel: int | None = None  # volumes: of NIfTI files with several, counted from 0; none: that of the training data
    insist: bool = False  # also volumes by a network of images, and images by one of volumes; label maps; any modality

    # --- inference ---
    tta: Literal["none", "flips", "flips_rotations"] = "none"  # average over 4 or 8 views of each image
    sliding_window: bool = False  # windows of the network's size at the image's own scale, instead of resizing it
    overlap: float = 0.5  # of neighbouring windows

    # --- decision ---
    threshold: float | None = None  # from this probability on a pixel is foreground (one class)
    volume_resize: Literal["labels", "logits"] | None = None  # volumes, one network; see train_synapse.py --help
    probabilities: bool = False  # also save the probabilities of all classes
    pixel_size: float | None = None  # mm, of images, for areas in mm2

    # --- execution ---
    precision: Literal["fp32", "bf16", "fp16"] | None = None  # bf16, fp16: autocast


@dataclass(kw_only=True)
class PredictionOptions(ResultOptions):
    """All options of prediction: those that change the results, and those of the machine."""

    # --- execution ---
    batch_size: int | None = None  # images at a time; none: as many as fit in memory
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    scan_backend: ScanBackend = "auto"
