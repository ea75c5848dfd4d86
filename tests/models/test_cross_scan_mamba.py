"""The mamba_ssm backend, with the package's definition of its scan in place of its CUDA kernel."""

import pytest
import torch
import torch.nn.functional as F

from models.cross_scan import mamba, reference


def selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """What the package computes for u, delta (b, d, l), A (d, n), B, C (b, groups, n, l), D, delta_bias (d)."""
    assert delta_softplus and all(t.is_contiguous() for t in (A, B, C, D, delta_bias))
    delta = F.softplus(delta + delta_bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))  # (b, d, n, l)
    h, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[-1]):
        step = delta[..., t, None]
        h = (step * A).exp() * h + step * B[..., t] * u[..., t, None]
        ys.append((h * C[..., t]).sum(-1))
    return torch.stack(ys, -1) + D[:, None] * u


@pytest.mark.parametrize("rank", [None, 3])
def test_the_packages_scan_agrees_with_the_definition(monkeypatch, rank):
    monkeypatch.setattr(mamba, "selective_scan_fn", lambda: selective_scan)
    inputs = [
        None if t is None else t.detach().requires_grad_()
        for t in reference.make_inputs(2, 3, 5, 8, N=4, R=rank, dtype=torch.float64)
    ]
    leaves = [t for t in inputs if t is not None]
    found, expected = mamba.scan(*inputs), reference.scan(*inputs)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)  # the sum of the directions is in float32
    grad_y = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad(y, leaves, grad_y) for y in (found, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_it_is_once_differentiable(monkeypatch):
    monkeypatch.setattr(mamba, "selective_scan_fn", lambda: selective_scan)
    inputs = [t.detach().requires_grad_() for t in reference.make_inputs(1, 2, 3, 8, N=4, R=3)]
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(mamba.scan(*inputs).sum(), inputs[0], create_graph=True)


def test_it_says_why_it_can_not_run():
    assert "GPU" in mamba.why_not(torch.device("cpu"), torch.float32)
    assert "float64" in mamba.why_not(torch.device("cuda"), torch.float64)
    reason = mamba.why_not(torch.device("cuda"), torch.float32)
    assert reason is None or "MAMBA_KEEP_CUDA_BUILD" in reason
