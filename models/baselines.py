"""Networks to compare with, from segmentation_models_pytorch (requirements-extra.txt), behind VMUNet's interface.

--network unet                          U-Net with a ResNet-34 encoder
--network smp:DeepLabV3Plus-resnet50    any architecture of the library with any of its encoders
--network smp:FPN                       the same with a ResNet-34 encoder
"""

import difflib
import re
from types import ModuleType

from torch import Tensor, nn

from .network import SegmentationNetwork

ENCODER = "resnet34"  # the default
INSTALL = "pip install -r requirements-extra.txt"


class Baseline(SegmentationNetwork):
    """The library's network of this name, with random weights.

    Raises ValueError for a name that the library lacks, or without the library."""

    def __init__(self, network: str, num_classes: int = 1, input_channels: int = 3):
        super().__init__(num_classes, input_channels)
        self.architecture, self.encoder = parse(network)
        self.name = f"{self.architecture}-{self.encoder}"
        self.network = self._create(None)

    def _create(self, encoder_weights: str | None) -> nn.Module:
        smp = import_library()
        _check("architecture", self.architecture, list(smp.MODEL_ARCHITECTURES_MAPPING))
        if not re.fullmatch(r"[\w.+-]+", self.encoder):  # hf-hub:, local-dir: timm would download it, or read a folder
            raise ValueError(f"--network: found the encoder {self.encoder!r}, expected its name, not a location")
        if not self.encoder.startswith("tu-"):  # timm's, of which there are a thousand
            _check("encoder", self.encoder, smp.encoders.get_encoder_names())
        shape = dict(in_channels=self.input_channels, classes=self.num_classes)
        try:
            return smp.create_model(self.architecture, self.encoder, encoder_weights, **shape)
        except (ValueError, KeyError, RuntimeError) as error:  # pairs that don't fit, timm's names, no such weights
            raise ValueError(f"--network smp:{self.name}: {error.args[0]}") from error

    def logits(self, x: Tensor) -> Tensor:
        return self.network(x)

    def load_imagenet_encoder(self) -> None:
        """Fill the encoder with its ImageNet weights, which the library downloads on first use."""
        weights = self._create("imagenet").get_submodule("encoder").state_dict()
        self.network.get_submodule("encoder").load_state_dict(weights)


def parse(network: str) -> tuple[str, str]:
    """Return (architecture, encoder) of a config's `network`: ("unet", "resnet34") for unet, and for smp:unet."""
    kind, _, rest = network.partition(":")
    if network != "unet" and (kind != "smp" or not rest):
        raise ValueError(f"--network: found {network!r}, expected unet or smp:<architecture>[-<encoder>]")
    architecture, _, encoder = (rest or network).partition("-")
    return architecture.lower(), encoder or ENCODER


def import_library() -> ModuleType:
    """Import segmentation_models_pytorch. Raises ValueError with the command that installs it."""
    try:
        from . import torchvision_compat  # noqa: F401, I001  before the library, which imports torchvision
        import segmentation_models_pytorch
    except ModuleNotFoundError as error:
        raise ValueError(f"--network: found no module {error.name!r}, which baselines need; {INSTALL}") from error
    return segmentation_models_pytorch


def _check(what, name, known):
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[:5]
        expected = f"one of the {len(known)} of segmentation_models_pytorch, such as {', '.join(near)}"
        raise ValueError(f"--network: found {what} {name!r}, expected {expected}")
