"""The cross-scan by definition: four sequences, the recurrence, the sum. Readable, works in double precision, slow.

Letters, here and in every backend:
b batch   H, W map   L = H * W steps   I inner channels   N states   R rank of the steps
Paper section 3.2 (SS2D); the recurrence is equation 2 of the paper with the Euler form of the input term.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .problems import ScanInputs

LONGEST_WITH_GRADIENT = 1024  # autograd keeps every state of every step


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None: the definition runs everywhere, if it is asked for by name."""
    return None


def scan_order(H: int, W: int, device: torch.device | None = None) -> Tensor:
    """Return (4, L): the pixel that each direction visits at each step.

    Row by row, column by column, and both backwards."""
    pixels = torch.arange(H * W, device=device)
    rows, columns = pixels, pixels.view(H, W).t().flatten()
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])


def selective_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t],   y[t] = <C[t], h[t]> + D u[t]

    u, dt (b, L, I)   A (I, N)   B, C (b, L, N)   D (I)   ->   y (b, L, I)"""
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None]
        h = (step * A).exp() * h + step * B[:, t, None, :] * u[:, t, :, None]
        ys.append((h * C[:, t, None, :]).sum(-1))
    return torch.stack(ys, 1) + D * u


def scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    dt_weight: Tensor | None = None,
) -> Tensor:
    """Return the scan, (b, H, W, I), of x (b, H, W, I), dt (b, H, W, 4, R or I), B and C (b, H, W, 4, N), A (4, I, N),
    D and dt_bias (4, I), dt_weight (4, I, R) or None."""
    H, W = x.shape[1:3]
    if torch.is_grad_enabled() and H * W > LONGEST_WITH_GRADIENT:
        raise RuntimeError(
            f"scan backend 'reference': found {H * W} steps with gradients, expected at most {LONGEST_WITH_GRADIENT}; "
            "it keeps every state and is for tests only; use 'torch'"
        )
    precise = torch.promote_types(x.dtype, torch.float32)  # 16-bit inputs are scanned in float32, as everywhere
    u, dt, B, C = (t.to(precise).flatten(1, 2) for t in (x, dt, B, C))
    if dt_weight is not None:
        dt = torch.einsum("blkr,kir->blki", dt, dt_weight)
    y = torch.zeros_like(u)
    order = scan_order(H, W, x.device)
    for k in (0, 2, 1, 3):  # the original's order of summation
        row = order[k]
        steps = F.softplus(dt[:, row, k] + dt_bias[k])
        y_k = selective_scan(u[:, row], steps, A[k], B[:, row, k], C[:, row, k], D[k])
        y = y.index_add(1, row, y_k)
    return y.view(x.shape).to(x.dtype)


def inverse_softplus(y: Tensor) -> Tensor:
    """Return the x with softplus(x) = y."""
    return y + torch.log(-torch.expm1(-y))


def make_inputs(
    b: int,
    H: int,
    W: int,
    I: int,
    N: int = 16,
    R: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ScanInputs:
    """Return random inputs like the model's, with perturbed initial values of A, D and the bias. dt, B and C are views
    of one projection, as in SS2D; without R, dt holds the raw steps themselves and dt_weight is None."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    rank, parameters = R or I, torch.promote_types(dtype, torch.float32)
    x, projected = normal(b, H, W, I), normal(b, H, W, 4, rank + 2 * N)
    A = -torch.arange(1, N + 1) * (0.1 * normal(4, I, N)).exp()
    D = 1 + 0.1 * normal(4, I)
    step = 0.001 * 100 ** torch.rand(4, I, generator=random, dtype=torch.float64)  # log-uniform in [0.001, 0.1]
    dt_bias = inverse_softplus(step)
    dt_weight = None if R is None else (R**-0.5 * normal(4, I, R)).to(device=device, dtype=parameters)
    x, projected = (t.to(device=device, dtype=dtype) for t in (x, projected))
    A, D, dt_bias = (t.to(device=device, dtype=parameters) for t in (A, D, dt_bias))
    dt, B, C = projected.split([rank, N, N], -1)
    return ScanInputs(x, dt, B, C, A, D, dt_bias, dt_weight)
