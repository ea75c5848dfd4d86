"""A Swin transformer U-Net of VM-UNet's size, to compare speed with: the same patch layers, stages and additive skips,
with torchvision's Swin blocks in place of the VSS blocks. 26.7 M parameters."""

import models.torchvision_compat  # noqa: F401  (before torchvision)

from torch import nn  # isort: skip
from torchvision.models.swin_transformer import SwinTransformerBlock  # isort: skip

from models.vmunet import VMUNet  # isort: skip

WINDOW = 8


def swin_unet() -> VMUNet:
    """Takes and returns what `VMUNet()` does."""
    model = VMUNet(depths=(2, 2, 2, 1), depths_decoder=(1, 2, 2, 2), drop_path_rate=0)
    for stage in (*model.vmunet.layers, *model.vmunet.layers_up):
        (dim,) = stage.blocks[0].ln_1.normalized_shape
        shifts = [0 if i % 2 == 0 else WINDOW // 2 for i in range(len(stage.blocks))]
        stage.blocks = nn.ModuleList(
            SwinTransformerBlock(dim, dim // 32, [WINDOW, WINDOW], [shift, shift]) for shift in shifts
        )
    return model
