"""UltraLight VM-UNet (arXiv 2403.20035): 0.05 M parameters, six levels, Mamba blocks over quarters of the channels.

Parameter names are the original's, so that its checkpoints load. Letters: B batch   H, W map   L = H W tokens
C channels   I inner channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cross_scan import cross_selective_scan
from .cross_scan.operator import recurrence_flops
from .network import SegmentationNetwork
from .option_ranges import check_options

PARTS = 4  # of the channels, which share one Mamba block


class Mamba(nn.Module):
    """Mamba's block (arXiv 2312.00752, figure 3): (B, L, C) -> (B, L, C), each token from those before it."""

    def __init__(self, dim: int, d_state: int, scan_backend: str, kernel: int = 4):
        super().__init__()
        inner, rank = 2 * dim, math.ceil(dim / 16)
        self.split = [rank, d_state, d_state]
        self.scan_backend = scan_backend
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, -1)  # (B, L, I)
        past = self.conv1d.kernel_size[0] - 1
        x = F.silu(self.conv1d(F.pad(x.transpose(1, 2), (past, 0))).transpose(1, 2))
        dt, B, C = self.x_proj(x).split(self.split, -1)
        steps = self.dt_proj.bias, self.dt_proj.weight
        y = sequence_scan(x, dt, B, C, -self.A_log.exp(), self.D, *steps, self.scan_backend)
        return self.out_proj(y * F.silu(z))

    def cost(self, tokens: int) -> dict[str, int]:
        """Return what a forward over so many tokens costs, as `models.cost` counts it: the FLOP of the recurrence. The
        package thop sees none of its matmuls, which the original runs in one kernel."""
        return dict(scan_flops=recurrence_flops(tokens, *self.A_log.shape))


def sequence_scan(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, dt_weight: Tensor, backend: str
) -> Tensor:
    """Return y (b, L, I): a selective scan along a sequence in one direction, as in Mamba.

    x (b, L, I), dt (b, L, R), B and C (b, L, N), A (I, N), D and dt_bias (I), dt_weight (I, R); the recurrence is that
    of `cross_selective_scan`, over a map of one row. The other three directions run with output weights of zero, which
    costs little in a small network."""

    def first_of_four(tensor: Tensor, dim: int) -> Tensor:
        padding = [0, 0] * (-1 - dim) + [0, 3]
        return F.pad(tensor.unsqueeze(dim), padding)

    dt, B, C = (first_of_four(t.unsqueeze(1), -2) for t in (dt, B, C))  # (b, 1, L, 4, R or N)
    A = A.expand(4, -1, -1).contiguous()  # negative in all directions, so that no state grows
    D, dt_bias, dt_weight = (first_of_four(t, -t.ndim - 1) for t in (D, dt_bias, dt_weight))
    return cross_selective_scan(x.unsqueeze(1), dt, B, C, A, D, dt_bias, dt_weight, backend).squeeze(1)


class PVMLayer(nn.Module):
    """Parallel Vision Mamba (section 3.2): (B, C, H, W) -> (B, `channels`, H, W). The quarters of the channels go
    through one Mamba block, each beside a scaled skip; norm and projection join them."""

    def __init__(self, dim: int, channels: int, d_state: int, scan_backend: str):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(dim // PARTS, d_state, scan_backend)
        self.proj = nn.Linear(dim, channels)
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B, L, C)
        parts = tokens.unflatten(-1, (PARTS, -1)).permute(2, 0, 1, 3).flatten(0, 1)  # one batch of all quarters
        parts = self.mamba(parts) + self.skip_scale * parts
        tokens = parts.unflatten(0, (PARTS, B)).permute(1, 2, 0, 3).flatten(2)
        tokens = self.proj(self.norm(tokens))
        # contiguous, or torch.compile mistakes the layout of what follows at batch 1 (PyTorch 2.13)
        return tokens.transpose(1, 2).unflatten(2, (H, W)).contiguous()


class ChannelAttentionBridge(nn.Module):
    """Weights in 0..1 for the channels of each level, from the means of all levels: maps -> [(B, C, 1, 1)]."""

    def __init__(self, dims: Sequence[int]):
        super().__init__()
        self.get_all_att = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        for level, dim in enumerate(dims, 1):
            self.add_module(f"att{level}", nn.Linear(sum(dims), dim))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        means = torch.cat([x.mean((2, 3)) for x in maps], 1).unsqueeze(1)  # (B, 1, channels of all levels)
        means = self.get_all_att(means)
        attention = (getattr(self, f"att{level}")(means) for level in range(1, len(maps) + 1))
        return [a.sigmoid().transpose(1, 2).unsqueeze(-1) for a in attention]


class SpatialAttentionBridge(nn.Module):
    """Weights in 0..1 for the pixels of each level, by one convolution for all: maps -> [(B, 1, H, W)]."""

    def __init__(self):
        super().__init__()
        self.shared_conv2d = nn.Sequential(nn.Conv2d(2, 1, 7, padding=9, dilation=3), nn.Sigmoid())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.shared_conv2d(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)) for x in maps]


class AttentionBridge(nn.Module):
    """The skips of all levels, weighted by pixel and by channel (SC attention bridge); shapes stay."""

    def __init__(self, dims: Sequence[int]):
        super().__init__()
        self.catt = ChannelAttentionBridge(dims)
        self.satt = SpatialAttentionBridge()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        weighted = [weight * x for weight, x in zip(self.satt(maps), maps, strict=True)]
        summed = [a + b for a, b in zip(weighted, maps, strict=True)]
        return [weight * x + a for weight, x, a in zip(self.catt(summed), summed, weighted, strict=True)]


class UltraLightVMUNet(SegmentationNetwork):
    """UltraLight VM-UNet. The defaults are the released configuration: 0.049 M parameters.

    Args:
        num_classes, input_channels, d_state, scan_backend: as of `VMUNet`
        dims: channels of the six levels; the last three have Mamba blocks and are multiples of 4
    """

    name = "ultralight"
    options = ("d_state", "scan_backend")
    classifier = ("final.",)
    encoder6: nn.Sequential

    def __init__(
        self,
        num_classes: int = 1,
        input_channels: int = 3,
        dims: Sequence[int] = (8, 16, 24, 32, 48, 64),
        d_state: int = 16,
        scan_backend: str = "auto",
    ):
        super().__init__(num_classes, input_channels)
        check_options(self.name, 6, dims=dims, d_state=d_state)
        if any(dim % PARTS for dim in dims):
            raise ValueError(f"{self.name}: found dims {list(dims)}; expected six multiples of {PARTS}")

        def block(dim: int, channels: int, mamba: bool) -> nn.Sequential:
            layer = PVMLayer(dim, channels, d_state, scan_backend) if mamba else nn.Conv2d(dim, channels, 3, padding=1)
            return nn.Sequential(layer)

        inputs = (input_channels, *dims[:5])
        for level in range(6):
            self.add_module(f"encoder{level + 1}", block(inputs[level], dims[level], level > 2))
        self.scab = AttentionBridge(dims[:5])
        for number, level in enumerate((5, 4, 3, 2, 1), 1):
            self.add_module(f"decoder{number}", block(dims[level], dims[level - 1], level > 2))
        for number in range(1, 6):  # ebn, dbn: batch norms in an older version
            self.add_module(f"ebn{number}", nn.GroupNorm(4, dims[number - 1]))
            self.add_module(f"dbn{number}", nn.GroupNorm(4, dims[5 - number]))
        self.final = nn.Conv2d(dims[0], num_classes, 1)
        self.apply(initialize)

    def logits(self, x: Tensor) -> Tensor:
        maps = []
        for level in range(1, 6):
            encode, norm = getattr(self, f"encoder{level}"), getattr(self, f"ebn{level}")
            x = F.gelu(F.max_pool2d(norm(encode(x)), 2))
            maps.append(x)
        skips = self.scab(maps)
        x = F.gelu(self.encoder6(x))
        for number, skip in enumerate(reversed(skips), 1):
            decode, norm = getattr(self, f"decoder{number}"), getattr(self, f"dbn{number}")
            x = norm(decode(x))
            x = F.gelu(x if number == 1 else double(x)) + skip
        return double(self.final(x))


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def initialize(module: nn.Module) -> None:
    """The published start. It also replaces Mamba's own of the steps' bias, which begins at zero: steps of
    softplus(0) = 0.69 instead of 0.001 to 0.1."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        fan = math.prod(module.kernel_size) * module.out_channels // groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
        if module.bias is not None and isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
