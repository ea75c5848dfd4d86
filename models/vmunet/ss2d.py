"""SS2D, the token mixer of a VSS block (paper section 3.2, figure 2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cross_scan import backends, gated_cross_scan
from ..cross_scan.operator import recurrence_flops
from ..cross_scan.reference import inverse_softplus
from ..kernels import conv_silu as convolution
from ..kernels.conv_silu import conv_silu
from ..kernels.nvrtc import Program


class SS2D(nn.Module):
    """Projects, convolves, scans the map in four directions, normalises, gates and projects back.

    Letters: B batch   H, W map   C = `dim` channels   I = 2 C inner channels   N states   R = ceil(C / 16) step rank
    (B, H, W, C) -> (B, H, W, C). Parameter names are the original's, so that its checkpoints load."""

    def __init__(self, dim: int, d_state: int = 16, scan_backend: str = "auto"):
        super().__init__()
        inner, rank = 2 * dim, math.ceil(dim / 16)
        self.split = [rank, d_state, d_state]
        self.scan_backend = scan_backend
        self.x_proj_weight = nn.Parameter(torch.empty(4, sum(self.split), inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, inner))
        self.A_logs = nn.Parameter(torch.empty(4 * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(4 * inner))
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        """Mamba's initialisation: rates 1..N, a skip of 1, steps log-uniform in [dt_min, dt_max]."""
        if self.dt_projs_weight.is_meta:
            return  # holds no values; PyTorch's compiler would be imported to compute them
        inner, rank = self.dt_projs_weight.shape[1:]
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(rank**-0.5), rank**-0.5)
        step = torch.empty_like(self.dt_projs_bias).uniform_(math.log(dt_min), math.log(dt_max)).exp_()
        self.dt_projs_bias.copy_(inverse_softplus(step))
        self.A_logs.copy_(torch.arange(1, self.A_logs.shape[1] + 1).log().expand_as(self.A_logs))
        self.Ds.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        # two matmuls instead of one cut in half: what follows needs both halves contiguous
        weight_x, weight_z = self.in_proj.weight.chunk(2)
        z = F.linear(x, weight_z)  # (B, H, W, I), the gate
        x = F.linear(x, weight_x)
        x = conv_silu(x, self.conv2d)  # (B, H, W, I), channels last throughout
        # (B, H, W, 4, R + 2 N): for each direction the low-rank steps, B and C
        projected = F.linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (4, -1))
        A, D = -self.A_logs.exp().view(4, -1, self.A_logs.shape[1]), self.Ds.view(4, -1)
        steps, norm = (self.dt_projs_bias, self.dt_projs_weight), self.out_norm
        y = gated_cross_scan(x, z, projected, A, D, *steps, norm.weight, norm.bias, norm.eps, self.scan_backend)
        return self.out_proj(y)

    def cost(self, tokens: int) -> dict[str, int]:
        """Return what a forward over so many pixels costs, as `models.cost` counts it: the multiply-adds of linear
        layers and convolutions, the elements that are normalised, the FLOP of the recurrence."""
        weights = (self.in_proj.weight, self.out_proj.weight, self.conv2d.weight)
        inner, states = self.dt_projs_weight.shape[1], self.A_logs.shape[1]
        macs = tokens * sum(weight.numel() for weight in weights)
        return dict(macs=macs, norm_elements=tokens * inner, scan_flops=recurrence_flops(tokens, inner, states))

    def programs(self, dtype: torch.dtype, trains: bool) -> list[Program]:
        """Return the CUDA programs that a forward, and if it `trains` a backward, runs on maps of a dtype."""
        inner, rank = self.dt_projs_weight.shape[1:]
        uses_cuda = self.scan_backend in ("auto", "cuda")
        scans = backends.load("cuda").programs(inner, rank, dtype, trains) if uses_cuda else []
        return [*scans, *convolution.programs(dtype)]
