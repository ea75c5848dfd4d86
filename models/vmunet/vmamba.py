"""The parts of VM-UNet, from patch embedding to final expansion (paper section 3.1), and VSSM, which connects them.

Letters: B batch   H, W map   C channels. Maps are channels last, (B, H, W, C), between all modules.
Parameter names and their order are the original's.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.layer_norm import LayerNorm
from ..shared_batch import whole_batch
from .ss2d import SS2D


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the whole residual branch of a sample with probability `drop_prob`.

    Each of several processes draws for the whole batch and uses the values of its own samples."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return x
        size, own = whole_batch(len(x))
        kept = x.new_empty(size, *[1] * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)[own]
        return x * kept.div_(1 - self.drop_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.4f}"


class PatchEmbed2D(nn.Module):
    """Image to tokens: (B, channels, H, W) -> (B, H/4, W/4, C)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=4, stride=4)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # where the layouts that a convolution needs take longer than the convolution
            return self.norm(self.as_linear(x))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))

    def as_linear(self, x: Tensor) -> Tensor:
        """`proj` as a linear layer of patches, channels last: the kernel is as large as its steps."""
        patches = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # (B, H/4, W/4, channels, 4, 4)
        return F.linear(patches.flatten(3), self.proj.weight.flatten(1), self.proj.bias)


class PatchMerging2D(nn.Module):
    """Halves the map and doubles the channels: (B, H, W, C) -> (B, H/2, W/2, 2C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(4 * dim, for_matmul=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, row, W/2, column, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))  # channels as (column, row, C)


def spread(x: Tensor, factor: int) -> Tensor:
    """Channels to space: (B, H, W, factor^2 C) -> (B, factor H, factor W, C), channels split as (row, column, C)."""
    B, H, W, _ = x.shape
    x = x.view(B, H, W, factor, factor, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(B, factor * H, factor * W, -1)


class PatchExpand2D(nn.Module):
    """Doubles the map and halves the channels: (B, H, W, 2C) -> (B, 2H, 2W, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.expand = nn.Linear(2 * dim, 4 * dim, bias=False)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(spread(self.expand(x), 2))


class FinalPatchExpand2D(nn.Module):
    """Back to the image's size, and to the classes: (B, H, W, C) -> logits (B, num_classes, 4H, 4W).

    `head` is a convolution of kernel 1. It and the norm act on single pixels, so the pixels move to their places last,
    when each is `num_classes` numbers and no longer C / 4."""

    def __init__(self, dim: int):
        super().__init__()
        self.expand = nn.Linear(dim, 4 * dim, bias=False)
        self.norm = LayerNorm(dim // 4, for_matmul=True)

    def forward(self, x: Tensor, head: nn.Conv2d) -> Tensor:
        x = self.norm(self.expand(x).unflatten(-1, (16, -1)))  # (B, H, W, 4 x 4 pixels, C / 4)
        logits = F.linear(x, head.weight.flatten(1), head.bias)
        return spread(logits.flatten(-2), 4).permute(0, 3, 1, 2)


class VSSBlock(nn.Module):
    """A residual block around SS2D (paper figure 2): x + DropPath(SS2D(LayerNorm(x)))."""

    def __init__(self, dim: int, drop_path: float, d_state: int, scan_backend: str):
        super().__init__()
        self.ln_1 = LayerNorm(dim, for_matmul=True)
        self.self_attention = SS2D(dim, d_state, scan_backend)  # the original's name
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        return x + self.drop_path(self.self_attention(self.ln_1(x)))


class VSSLayer(nn.Module):
    """An encoder stage: blocks, then merging (None in the last stage)."""

    def __init__(
        self,
        dim: int,
        drop_paths: list[float],
        downsample: PatchMerging2D | None,
        d_state: int,
        scan_backend: str,
        use_checkpoint: bool,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(VSSBlock(dim, rate, d_state, scan_backend) for rate in drop_paths)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        x = run_blocks(self.blocks, x, self.use_checkpoint)
        return x if self.downsample is None else self.downsample(x)


class VSSLayerUp(nn.Module):
    """A decoder stage: expansion (None in the first stage), then blocks."""

    def __init__(
        self,
        dim: int,
        drop_paths: list[float],
        upsample: PatchExpand2D | None,
        d_state: int,
        scan_backend: str,
        use_checkpoint: bool,
    ):
        super().__init__()
        # the expansion runs first; it is registered second because the original's state dict has it so
        self.blocks = nn.ModuleList(VSSBlock(dim, rate, d_state, scan_backend) for rate in drop_paths)
        self.upsample = upsample
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.upsample is None else self.upsample(x)
        return run_blocks(self.blocks, x, self.use_checkpoint)


def run_blocks(blocks: nn.ModuleList, x: Tensor, use_checkpoint: bool) -> Tensor:
    """The blocks in order; with `use_checkpoint` their activations are computed again in the backward pass."""
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if use_checkpoint and x.requires_grad else block(x)
    return x


class VSSM(nn.Module):
    """Encoder, decoder, additive skips: (B, channels, H, W) -> logits (B, num_classes, H, W), H and W multiples of 32.

    The skips are the inputs of the encoder's stages 1 to 3. The input of stage 0, at a quarter of the image's size, is
    used only with `skip_at_quarter`: the paper's figure shows it, the published model does not have it."""

    def __init__(
        self,
        num_classes: int,
        input_channels: int,
        depths: list[int],
        depths_decoder: list[int],
        dims: list[int],
        d_state: int,
        drop_path_rate: float,
        scan_backend: str,
        use_checkpoint: bool,
        skip_at_quarter: bool,
    ):
        super().__init__()
        stage: dict = dict(d_state=d_state, scan_backend=scan_backend, use_checkpoint=use_checkpoint)
        self.skip_at_quarter = skip_at_quarter
        self.patch_embed = PatchEmbed2D(input_channels, dims[0])
        self.layers = nn.ModuleList(
            VSSLayer(dim, rates, PatchMerging2D(dim) if i < 3 else None, **stage)
            for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True))
        )
        # the rates of the decoder fall towards its end
        up_rates = drop_path_rates(drop_path_rate, depths_decoder[::-1])[::-1]
        self.layers_up = nn.ModuleList(
            VSSLayerUp(dim, rates[::-1], PatchExpand2D(dim) if i > 0 else None, **stage)
            for i, (dim, rates) in enumerate(zip(dims[::-1], up_rates, strict=True))
        )
        self.final_up = FinalPatchExpand2D(dims[0])
        self.final_conv = nn.Conv2d(dims[0] // 4, num_classes, 1)
        initialize_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        skips = []
        for layer in self.layers:
            skips.append(x)
            x = layer(x)
        x = self.layers_up[0](x)
        for layer, skip in zip(self.layers_up[1:], skips[:0:-1], strict=True):
            x = layer(x + skip)
        if self.skip_at_quarter:
            x = x + skips[0]
        return self.final_up(x, self.final_conv)


def initialize_linear(network: nn.Module) -> None:
    """The published start of all linear layers; everything else keeps its own."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_meta:  # see SS2D.reset_scan_parameters
            nn.init.normal_(module.weight, std=0.02)


def drop_path_rates(rate: float, depths: list[int]) -> list[list[float]]:
    """Rates growing evenly from 0 to `rate` over all blocks, one list for each stage."""
    last = max(sum(depths) - 1, 1)
    rates = iter(rate * block / last for block in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]
