"""Entry points of torch.hub: torch.hub.load(REPOSITORY, "vmunet", num_classes=3), and of a clone source="local"."""

from pathlib import Path
from typing import Any

import models

HERE = Path(__file__).resolve().parent
if Path(str(models.__file__)).resolve().parent != HERE / "models":  # many repositories have a package of this name
    raise ImportError(
        f"{HERE}: found a package 'models' of {models.__file__} in this process, expected none; pip install {HERE} "
        "makes this one's networks available as `vmunet`"
    )

dependencies = ["torch", "numpy", "numba", "h5py", "huggingface_hub", "safetensors"]


def vmunet(**options: Any) -> models.VMUNet:
    """Return VM-UNet with random weights, 27.43 M parameters. Options: those of models/vmunet/vmunet.py."""
    return models.VMUNet(**options)


def vmunetv2(**options: Any) -> models.VMUNetV2:
    """Return VM-UNetV2 with random weights, 22.77 M parameters. Options: those of models/vmunet/vmunetv2.py."""
    return models.VMUNetV2(**options)


def ultralight(**options: Any) -> models.UltraLightVMUNet:
    """Return UltraLight VM-UNet with random weights, 0.049 M parameters. Options: those of models/ultralight.py."""
    return models.UltraLightVMUNet(**options)


def isic17() -> models.VMUNet:
    """Return VM-UNet trained on ISIC17: skin lesions in dermoscopic photographs. docs/library.md describes how to
    prepare images, pretrained_weights/vmunet_isic17.md how well it does."""
    return models.load(HERE / "pretrained_weights" / "vmunet_isic17.h5")
