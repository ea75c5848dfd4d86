"""VM-UNet (arXiv 2402.02491): the network as users call it."""

import torch.nn.functional as F
from torch import nn

from .vmamba import VSSM

STRIDE = 32  # the deepest map is 32 times smaller than the image


class VMUNet(nn.Module):
    """Vision-Mamba U-Net. The defaults are the released configuration: 27.43 M parameters.

    Args:
        num_classes: channels of the output; 1 for a binary mask
        input_channels: channels of the images; a grey image is repeated to fill them
        depths, depths_decoder: VSS blocks in each encoder and decoder stage, in the order they run
        drop_path_rate: highest rate of stochastic depth
        dims: channels of the four encoder stages, or of the first one, which then double; the decoder mirrors them
        d_state: states of the scan
        scan_backend: see `models.cross_scan.cross_selective_scan`
        use_checkpoint: compute the blocks' activations again in the backward pass instead of keeping them
        skip_at_quarter: also add the skip at a quarter of the image's size (not in the published model)
    """

    def __init__(
        self,
        num_classes=1,
        input_channels=3,
        depths=(2, 2, 2, 2),
        depths_decoder=(2, 2, 2, 1),
        drop_path_rate=0.2,
        dims=(96, 192, 384, 768),
        d_state=16,
        scan_backend="auto",
        use_checkpoint=False,
        skip_at_quarter=False,
    ):
        super().__init__()
        dims = [dims * 2**i for i in range(4)] if isinstance(dims, int) else list(dims)
        if len(depths) != 4 or len(depths_decoder) != 4 or [dims[0] * 2**i for i in range(4)] != dims or dims[0] % 4:
            raise ValueError(
                f"VMUNet: found depths {list(depths)}, depths_decoder {list(depths_decoder)}, dims {dims}; "
                "expected four of each, dims doubling from stage to stage and the first a multiple of 4"
            )
        self.num_classes = num_classes
        self.input_channels = input_channels
        self.vmunet = VSSM(
            num_classes, input_channels, list(depths), list(depths_decoder), dims, d_state, drop_path_rate,
            scan_backend, use_checkpoint, skip_at_quarter,
        )  # fmt: skip

    def forward(self, x):
        """(B, input_channels or 1, H, W) -> logits (B, num_classes, H, W); H and W at least 32.

        Sides that are not multiples of 32 are padded with zeros, right and bottom; the output is cropped back."""
        B, channels, H, W = x.shape
        if channels == 1:
            x = x.expand(B, self.input_channels, H, W)
        elif channels != self.input_channels:
            raise ValueError(f"VMUNet: found {channels} input channels, expected {self.input_channels}, or 1 (grey)")
        if min(H, W) < STRIDE:
            raise ValueError(f"VMUNet: found an input of {H} x {W} pixels, expected at least {STRIDE} x {STRIDE}")
        if H % STRIDE or W % STRIDE:
            x = F.pad(x, (0, -W % STRIDE, 0, -H % STRIDE))
        return self.vmunet(x)[:, :, :H, :W]

    def predict(self, x):
        """Probabilities (B, num_classes, H, W): the sigmoid for one class, the softmax over several."""
        logits = self(x)
        return logits.sigmoid() if self.num_classes == 1 else logits.softmax(dim=1)
