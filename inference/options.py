"""How to predict: options of the command line and of `Predictor`. Reading them needs no PyTorch."""

from dataclasses import dataclass
from typing import Literal

from configs.base import ScanBackend


@dataclass(kw_only=True)
class Options:
    """How to predict. What is None comes from the checkpoint."""

    # --- input ---
    kind: Literal["images", "volumes"] | None = None  # what a checkpoint without a stored configuration is for
    image_size: int | None = None  # side of the network's input, in pixels
    normalization: Literal["minmax", "imagenet"] | None = None  # images
    window: tuple[float, float] | None = None  # volumes: values that become 0 and 1; for CT -125 275 (Hounsfield units)
    orientation: str | None = None  # volumes: where columns, rows and slices of the training data point to; or stored
    insist: bool = False  # also volumes by a network of images, slice by slice, and images by one of volumes

    # --- inference ---
    tta: Literal["none", "flips", "flips_rotations"] = "none"  # average over 4 or 8 views of each image
    sliding_window: bool = False  # windows of the network's size at the image's own scale, instead of resizing it
    overlap: float = 0.5  # of neighbouring windows

    # --- decision ---
    threshold: float | None = None  # from this probability on a pixel is foreground (one class)
    volume_resize: Literal["labels", "logits"] | None = None  # volumes, one network; see train_synapse.py --help
    probabilities: bool = False  # also the probabilities of all classes
    pixel_size: float | None = None  # mm, of images, for areas in mm2

    # --- execution ---
    batch_size: int | None = None  # images at a time; none: as many as the memory holds
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["fp32", "bf16", "fp16"] | None = None  # bf16, fp16: autocast
    scan_backend: ScanBackend = "auto"
