"""VM-UNetV2 (arXiv 2403.09157): VM-UNet's encoder, and a decoder that multiplies the maps of all levels.

Parameter names are the original's, so that its checkpoints load. Letters: B batch   H, W map   C channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import STAGE_OPTIONS, SegmentationNetwork
from ..option_ranges import check_options
from .vmamba import PatchEmbed2D, PatchMerging2D, VSSLayer, drop_path_rates, initialize_linear

REDUCTION = 16  # of the channels inside channel attention


class ChannelAttention(nn.Module):
    """A weight in 0..1 for each channel from its mean and its maximum (CBAM): (B, C, H, W) -> (B, C, 1, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (self.fc2(F.relu(self.fc1(mean))) + self.fc2(F.relu(self.fc1(largest)))).sigmoid()


class SpatialAttention(nn.Module):
    """A weight in 0..1 for each pixel from the mean and the maximum of its channels: (B, C, H, W) -> (B, 1, H, W)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class Projection(nn.Module):
    """A convolution of kernel 1 with BatchNorm: (B, C, H, W) -> (B, `channels`, H, W). As published without ReLU."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SDI(nn.Module):
    """Semantics and detail infusion (section 3.3): the product over the levels of their maps, each brought to one size
    and convolved."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        product = self.convs[0](bring_to(maps[0], size))
        for x, conv in zip(maps[1:], self.convs[1:], strict=True):
            product = product * conv(bring_to(x, size))
        return product


def bring_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Larger maps are averaged, smaller ones interpolated."""
    if x.shape[2] > size[0]:
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    if x.shape[2] < size[0]:
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
    return x


class Encoder(nn.Module):
    """VM-UNet's encoder: images (B, channels, H, W) -> what enters its four stages, (B, C, H/4, W/4) and so on.

    The blocks of the last stage are in the checkpoints, but nothing published reads their output; they are not run and
    get no gradients."""

    def __init__(
        self,
        input_channels: int,
        depths: list[int],
        dims: list[int],
        d_state: int,
        drop_path_rate: float,
        scan_backend: str,
        use_checkpoint: bool,
    ):
        super().__init__()
        stage: dict = dict(d_state=d_state, scan_backend=scan_backend, use_checkpoint=use_checkpoint)
        self.patch_embed = PatchEmbed2D(input_channels, dims[0])
        self.layers = nn.ModuleList(
            VSSLayer(dim, rates, PatchMerging2D(dim) if i < 3 else None, **stage)
            for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True))
        )
        self.layers[3].requires_grad_(False)
        initialize_linear(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.patch_embed(x)]
        for layer in self.layers[:3]:
            maps.append(layer(maps[-1]))
        return [x.permute(0, 3, 1, 2) for x in maps]


class VMUNetV2(SegmentationNetwork):
    """VM-UNetV2. The defaults are the released configuration: 22.77 M parameters.

    Args:
        num_classes, input_channels, drop_path_rate, dims, d_state, scan_backend, use_checkpoint: as of `VMUNet`
        depths: VSS blocks in each encoder stage
        deep_supervision: the output is the sum of the logits of the two finest levels, as published; else of the finest
    """

    name = "vmunetv2"
    options = STAGE_OPTIONS
    depths_published = (2, 2, 9, 2)
    classifier = ("seg_outs.", "deconv6.")
    deconv2: nn.ConvTranspose2d
    deconv3: nn.ConvTranspose2d
    deconv4: nn.ConvTranspose2d
    deconv5: nn.ConvTranspose2d

    def __init__(
        self,
        num_classes: int = 1,
        input_channels: int = 3,
        depths: Sequence[int] = depths_published,
        drop_path_rate: float = 0.2,
        dims: Sequence[int] = (96, 192, 384, 768),
        d_state: int = 16,
        scan_backend: str = "auto",
        use_checkpoint: bool = False,
        deep_supervision: bool = True,
    ):
        super().__init__(num_classes, input_channels)
        check_options(self.name, 4, depths=depths, dims=dims, d_state=d_state, drop_path_rate=drop_path_rate)
        dims = list(dims)
        if [dims[0] * 2**i for i in range(4)] != dims or dims[0] % (2 * REDUCTION):
            expected = f"dims doubling from stage to stage and the first a multiple of {2 * REDUCTION}"
            raise ValueError(f"{self.name}: found dims {dims}, expected {expected}")
        channels = dims[0] // 2
        self.deep_supervision = deep_supervision
        for level, dim in enumerate(dims, 1):  # numbered as in the original's checkpoints
            self.add_module(f"ca_{level}", ChannelAttention(dim))
            self.add_module(f"sa_{level}", SpatialAttention())
            self.add_module(f"Translayer_{level}", Projection(dim, channels))
            self.add_module(f"sdi_{level}", SDI(channels))
        self.seg_outs = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 1) for _ in range(4)
        )  # from the deepest level on
        for number in (2, 3, 4, 5):
            self.add_module(f"deconv{number}", nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False))
        self.deconv6 = nn.ConvTranspose2d(num_classes, num_classes, 3, 2, 1, output_padding=1)
        for unused in (self.seg_outs[0], self.seg_outs[1], self.deconv5):  # the checkpoints have them, no output does
            unused.requires_grad_(False)
        options: dict = dict(drop_path_rate=drop_path_rate, scan_backend=scan_backend, use_checkpoint=use_checkpoint)
        self.vmunet = Encoder(input_channels, list(depths), dims, d_state, **options)

    def logits(self, x: Tensor) -> Tensor:
        maps = []
        for level, features in enumerate(self.vmunet(x), 1):
            channel, spatial, project = (getattr(self, f"{name}_{level}") for name in ("ca", "sa", "Translayer"))
            features = channel(features) * features
            features = spatial(features) * features
            maps.append(project(features))
        fused = [getattr(self, f"sdi_{level}")(maps, maps[level - 1].shape[2:]) for level in (1, 2, 3, 4)]
        coarse = self.deconv3(self.deconv2(fused[3]) + fused[2]) + fused[1]  # H/8
        fine = self.deconv4(coarse) + fused[0]  # H/4
        finest = self.enlarge(self.seg_outs[3](fine))
        if not self.deep_supervision:
            return finest
        return finest + self.deconv6(self.enlarge(self.seg_outs[2](coarse)))

    @staticmethod
    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
