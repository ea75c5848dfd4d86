"""What all networks share: inputs of any size, logits as outputs, probabilities on request."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .hub import CARD, HubMixin
from .option_ranges import check_options

STRIDE = 32  # the deepest map is 32 times smaller than the image
STAGE_OPTIONS = ("depths", "drop_path_rate", "dims", "d_state", "scan_backend", "use_checkpoint")  # of VSS blocks


class SegmentationNetwork(
    nn.Module, HubMixin, library_name="vmunet", pipeline_tag="image-segmentation", model_card_template=CARD
):
    """A network over inputs whose sides are multiples of 32, opened to any size from 32 x 32 on.

    A subclass has `logits(x)`: (B, input_channels, H, W) -> (B, num_classes, H, W), and these facts:"""

    name: str  # as `--network` takes it, and in messages
    options: tuple[str, ...] = ()  # values of a config that it is built with, beside num_classes and input_channels
    depths_published: tuple[int, ...] | None = None  # VSS blocks of the encoder's stages
    classifier: tuple[str, ...] = ()  # prefixes of the weights whose shapes depend on the number of classes

    def __init__(self, num_classes: int, input_channels: int):
        super().__init__()
        check_options(type(self).__name__, 0, num_classes=num_classes, input_channels=input_channels)
        self.num_classes = num_classes
        self.input_channels = input_channels

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        """Return the logits (B, num_classes, H, W) of images (B, input_channels or 1, H, W), H and W at least 32.

        Sides that are not multiples of 32 are padded with zeros, right and bottom; the output is cropped back."""
        B, channels, H, W = x.shape
        if channels == 1:
            x = x.expand(B, self.input_channels, H, W)
        elif channels != self.input_channels:
            expected = f"{self.input_channels}, or 1 (grey)"
            raise ValueError(f"{self.name}: found {channels} input channels, expected {expected}")
        if min(H, W) < STRIDE:
            raise ValueError(f"{self.name}: found an input of {H} x {W} pixels, expected at least {STRIDE} x {STRIDE}")
        if H % STRIDE or W % STRIDE:
            x = F.pad(x, (0, -W % STRIDE, 0, -H % STRIDE))
        outputs = self.logits(x)
        if isinstance(outputs, Tensor):
            return outputs[:, :, :H, :W]
        return [logits[:, :, :H, :W] for logits in outputs]  # of several outputs the first is the prediction

    def predict(self, x: Tensor) -> Tensor:
        """Return probabilities (B, num_classes, H, W): the sigmoid for one class, the softmax over several."""
        logits = self(x)
        return logits.sigmoid() if self.num_classes == 1 else logits.softmax(dim=1)
