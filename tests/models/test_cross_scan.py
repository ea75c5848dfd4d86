"""The cross-scan: its definition against the original's numbers, backends against its definition."""

import re
import typing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from configs.options import ScanBackend
from models.cross_scan import backends, cross_selective_scan, gated_cross_scan, torch_loop
from models.cross_scan.reference import make_inputs, scan_order, selective_scan
from tests.tiny import GOLDEN

INPUT_NAMES = ("x", "dt", "B", "C", "A", "D", "dt_bias", "dt_weight")


def output_and_gradients(backend, inputs, grad_y):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    y = cross_selective_scan(*leaves, backend=backend)
    used = [t for t in leaves if t is not None]
    return y.detach(), torch.autograd.grad(y, used, grad_y.to(y.dtype))


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def test_the_four_directions_visit_the_pixels_by_row_by_column_and_backwards():
    assert scan_order(2, 3).tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]


def test_selective_scan_equals_the_original():
    """`selective_scan_ref` with softplus and bias; 12 channels in 4 groups that share B and C."""
    golden = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / "scan.npz").items()}
    leaves = {name: t.requires_grad_() for name, t in golden.items() if name.startswith("in_")}
    delta = F.softplus(leaves["in_delta"] + leaves["in_delta_bias"][:, None])
    ys = []
    for group in range(4):
        c = slice(3 * group, 3 * group + 3)
        u, dt = leaves["in_u"][:, c].transpose(1, 2), delta[:, c].transpose(1, 2)
        B, C = (leaves[name][:, group].transpose(1, 2) for name in ("in_B", "in_C"))
        ys.append(selective_scan(u, dt, leaves["in_A"][c], B, C, leaves["in_D"][c]))
    y = torch.cat(ys, dim=-1).transpose(1, 2)
    torch.testing.assert_close(y, golden["y"], rtol=1e-12, atol=1e-12)
    y.backward(golden["gy"])
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, golden["grad_" + name[3:]], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("H, W", [(1, 1), (1, 31), (4, 8), (11, 3), (7, 9)])
def test_torch_loop_equals_the_definition_in_float64(H, W, rank):
    inputs = make_inputs(3, H, W, I=6, N=5, R=rank, dtype=torch.float64)
    grad_y = torch.randn(3, H, W, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, grads = output_and_gradients("torch", inputs, grad_y)
    y_ref, grads_ref = output_and_gradients("reference", inputs, grad_y)
    torch.testing.assert_close(y, y_ref, rtol=1e-12, atol=1e-12)
    for name, grad, grad_ref in zip(INPUT_NAMES, grads, grads_ref, strict=False):
        torch.testing.assert_close(
            grad, grad_ref, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"d{name}: {text}"
        )


def test_torch_loop_passes_gradcheck():
    inputs = make_inputs(2, 2, 3, I=3, N=2, R=2, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda *tensors: cross_selective_scan(*tensors, backend="torch"), [t.requires_grad_() for t in inputs]
    )


def test_torch_loop_keeps_float32_accuracy_with_large_steps_and_strongly_varied_rates():
    x, dt, B, C, A, D, dt_bias, _ = make_inputs(1, 8, 8, I=8, N=16, dtype=torch.float64)
    dt = 20 * dt  # steps up to about 60, beyond softplus's threshold of 20
    A = A * torch.logspace(-3, 3, 16, dtype=torch.float64)
    inputs = (x, dt, B, C, A, D, dt_bias, None)
    single = [None if t is None else t.float() for t in inputs]
    grad_y = torch.randn_like(x)
    y, grads = output_and_gradients("torch", single, grad_y)
    y_ref, grads_ref = output_and_gradients(
        "reference", [None if t is None else t.double() for t in single], grad_y.float()
    )
    assert relative_error(y, y_ref) < 5e-7
    for name, grad, grad_ref in zip(INPUT_NAMES, grads, grads_ref, strict=False):
        assert relative_error(grad, grad_ref) < 2e-6, name


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_bfloat16_inputs_are_scanned_in_float32(backend):
    inputs = make_inputs(1, 4, 6, I=8, R=2, dtype=torch.bfloat16)
    y = cross_selective_scan(*inputs, backend=backend)
    expected = cross_selective_scan(*(t.double() for t in inputs), backend="reference")
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference", "exportable"])
def test_autocast_changes_nothing(backend, dtype):
    """Also where y leaves the range of float16, and for the operators' backward, to which autocast can't do harm."""
    inputs = make_inputs(1, 3, 5, I=32, R=4)
    leaves = [t.detach().requires_grad_() for t in inputs._replace(x=1e6 * inputs.x)]
    expected = cross_selective_scan(*leaves, backend=backend)
    with torch.autocast("cpu", dtype):
        found = cross_selective_scan(*leaves, backend=backend)
    assert torch.equal(found, expected) and found.abs().max() > 1e5
    expected = torch.autograd.grad(expected.sum(), leaves)
    with torch.autocast("cpu", dtype, enabled=backend not in backends.PLAIN):
        found = torch.autograd.grad(found.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- transforms and modes around the scan


def in_vmap(scan, x):
    return torch.stack([*torch.vmap(scan)(torch.stack([x, 2 * x]))])[0]


def in_fake_mode(scan, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert scan(mode.from_tensor(x)).shape == x.shape


def in_meta_mode(scan, x):
    with torch.device("meta"):
        return scan(x)


def in_jvp(scan, x):
    return torch.func.jvp(scan, (x,), (x,))[0]


def in_autocast(scan, x):
    with torch.autocast("cpu", torch.float16):
        return scan(x)


torch_scripts_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@torch_scripts_itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("surround", [in_vmap, in_fake_mode, in_meta_mode, in_jvp, in_autocast])
def test_what_surrounds_the_first_scan_is_not_kept(surround, dtype):
    for choice in (backends.why_not, backends.choose):
        choice.cache_clear()
    inputs = make_inputs(1, 3, 5, I=32, R=4, dtype=dtype)
    found = surround(lambda x: cross_selective_scan(x, *inputs[1:]), inputs.x)
    assert backends.choose("cpu", dtype) == ("cpu" if dtype == torch.float32 else "torch")
    expected = cross_selective_scan(*inputs)
    assert found is None or relative_error(found, expected.double()) < 1e-6


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_meta_tensors_have_the_outputs_shape(backend):
    inputs = make_inputs(2, 3, 5, I=32, R=4, dtype=torch.bfloat16)
    found = cross_selective_scan(*(t.to("meta") for t in inputs), backend=backend)
    assert found.shape == (2, 3, 5, 32) and found.dtype == torch.bfloat16 and found.is_meta


@torch_scripts_itself
def test_forward_mode_derivatives_and_transforms_have_right_values():
    inputs = make_inputs(2, 3, 4, I=16, R=2, dtype=torch.float64)
    directions = make_inputs(2, 3, 4, I=16, R=2, dtype=torch.float64, seed=1)
    expected = torch.func.jvp(
        lambda *t: cross_selective_scan(*t, backend="reference"), tuple(inputs), tuple(directions)
    )
    ahead, behind = (cross_selective_scan(*(t + e * d for t, d in zip(inputs, directions, strict=True)))
                     for e in (1e-6, -1e-6))  # fmt: skip
    assert relative_error((ahead - behind) / 2e-6, expected[1]) < 1e-8
    found = torch.func.jvp(cross_selective_scan, tuple(inputs), tuple(directions))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(inputs, directions, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(cross_selective_scan(*duals)).tangent, expected[1])
        with pytest.raises(RuntimeError, match="'torch'.*forward-mode.*'auto'.*'exportable', 'reference'"):
            cross_selective_scan(*duals, backend="torch")

    def of_sample(x, dt, B, C):
        y = cross_selective_scan(*(t[None] for t in (x, dt, B, C)), *inputs[4:])
        return y.square().sum()

    x = inputs.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_selective_scan(x, *inputs[1:]).square().sum(), x)
    found = torch.vmap(torch.func.grad(of_sample))(*inputs[:4])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_right_or_an_error(backend, power):
    """Also that of a plain sum, whose gradient's own gradient a check of that gradient alone would not see."""
    x, *others = make_inputs(1, 3, 4, I=16, R=2)
    x, dt = x.requires_grad_(), others[0].detach().requires_grad_()
    y = cross_selective_scan(x, dt, *others[1:], backend=backend)
    (first,) = torch.autograd.grad(y.pow(power).sum(), x, create_graph=True)
    if backend == "reference":
        assert torch.autograd.grad(first.sum(), dt)[0].abs().max() > 0
    else:
        with pytest.raises(RuntimeError, match="once differentiable"):
            torch.autograd.grad(first.sum() + x.sum(), dt)


def test_opcheck():
    for rank in (2, None):
        inputs = make_inputs(2, 3, 4, I=4, N=3, R=rank).gated(None, None, None)
        leaves = [None if t is None else t.requires_grad_() for t in inputs]
        torch.library.opcheck(torch.ops.models.cross_scan.default, (*leaves, 0.0, "torch", True))
        detached = [None if t is None else t.detach() for t in inputs]
        torch.library.opcheck(torch.ops.models.cross_scan.default, (*detached, 0.0, "torch", False))


def test_flop_counter_counts_the_scan():
    b, H, W, I, N, R = 2, 4, 6, 8, 16, 3
    inputs = [t.requires_grad_() for t in make_inputs(b, H, W, I, N, R)]
    backends.resolve("torch", "cpu", torch.float32)  # the self-test would be counted, too
    with FlopCounterMode(display=False) as counter:
        y = cross_selective_scan(*inputs, backend="torch")
    updates = 4 * b * H * W * I
    forward = 9 * updates * N + 2 * updates + 2 * updates * R
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.backward(torch.ones_like(y))
    assert counter.get_total_flops() == 3 * forward


def test_gate_and_norm_follow_the_scan():
    inputs = make_inputs(2, 3, 4, I=8, R=2, dtype=torch.float64)
    z, weight, bias = torch.randn(2, 3, 4, 8, dtype=torch.float64), torch.rand(8).double(), torch.rand(8).double()
    y = cross_selective_scan(*inputs, backend="reference")
    normed = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight + bias
    expected = normed * z * z.sigmoid()
    found = gated_cross_scan(*inputs.gated(z, weight, bias), backend="torch")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position, name", list(enumerate(INPUT_NAMES))[1:])
def test_a_wrong_shape_is_named(position, name):
    inputs = list(make_inputs(2, 3, 4, I=8, R=2))
    inputs[position] = inputs[position][..., :-1]
    with pytest.raises(ValueError, match="cross-scan: found .* expected"):
        cross_selective_scan(*inputs)


def test_a_wrong_dtype_is_named():
    inputs = list(make_inputs(2, 3, 4, I=8, R=2))
    inputs[2] = inputs[2].double()
    with pytest.raises(ValueError, match=r"found B in torch.float64, expected torch.float32"):
        cross_selective_scan(*inputs)


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match="found 'fast', expected 'auto'.*torch, reference"):
        cross_selective_scan(*make_inputs(1, 2, 2, I=4, R=2), backend="fast")


def test_users_can_choose_every_backend_but_the_exporters():
    assert typing.get_args(ScanBackend) == ("auto", *backends.PREFERENCE, "reference")
    assert {*typing.get_args(ScanBackend), "exportable"} - {"auto"} == backends.MODULES.keys()


def test_a_backend_that_returns_zeros_is_passed_over(monkeypatch, caplog):
    """As kernels without code for the card do."""
    zeros = SimpleNamespace(why_not=lambda *_: None, forward=lambda inputs, save: (torch.zeros_like(inputs.x), None))
    monkeypatch.setattr(backends, "load", lambda name, load=backends.load: zeros if name == "broken" else load(name))
    monkeypatch.setattr(backends, "PREFERENCE", ("broken", "torch"))
    backends.choose.cache_clear()
    with caplog.at_level("DEBUG", logger="vmunet"):
        assert backends.choose("cpu", torch.float32) == "torch"
    backends.choose.cache_clear()
    assert re.search("broken: .* cpu .* torch.float32 .* 1.0e[+]00", caplog.text)
    assert caplog.records[-1].levelname == "WARNING"


def test_a_backend_that_can_not_be_compiled_is_passed_over(monkeypatch, caplog):
    """As Triton without a C compiler. Asked for by name it says so."""

    def forward(inputs, save):
        raise RuntimeError("Failed to find C compiler.\nTraceback of many lines")

    broken = SimpleNamespace(why_not=lambda *_: None, forward=forward)
    monkeypatch.setattr(backends, "load", lambda name, load=backends.load: broken if name == "triton" else load(name))
    monkeypatch.setattr(backends, "PREFERENCE", ("triton", "torch"))
    for cached in (backends.choose, backends.why_not):
        cached.cache_clear()
    reason = "cpu .* torch.float32 .* RuntimeError: Failed to find C compiler."
    with caplog.at_level("DEBUG", logger="vmunet"):
        assert backends.choose("cpu", torch.float32) == "torch"
    assert re.search(f"triton: .*{reason}", caplog.text) and "Traceback" not in caplog.text
    with pytest.raises(RuntimeError, match=f"'triton' .*{reason}"):
        backends.resolve("triton", "cpu", torch.float32)
    for cached in (backends.choose, backends.why_not):
        cached.cache_clear()


def test_reference_refuses_long_sequences_with_gradients():
    inputs = [t.requires_grad_() for t in make_inputs(1, 33, 33, I=2, N=1, R=1)]
    with pytest.raises(RuntimeError, match="found 1089 steps .*expected at most 1024"):
        cross_selective_scan(*inputs, backend="reference")


def test_a_fused_backend_is_called_with_norm_and_gate_and_gives_their_gradients(monkeypatch):
    """The operator around it, with a backend that composes what the Triton kernels fuse."""

    class Fused:
        saved_shape = staticmethod(torch_loop.saved_shape)

        @staticmethod
        def gated_forward(inputs, eps, save):
            y, saved = torch_loop.forward(inputs.scan(), save)
            normed = F.layer_norm(y, y.shape[-1:], inputs.norm_weight, inputs.norm_bias, eps)
            return normed * F.silu(inputs.z), y if save else y.new_empty(0), saved

        @staticmethod
        def gated_backward(grad, y, saved, inputs, eps):
            norm = (inputs.norm_weight, inputs.norm_bias)
            normed, mean, rstd = torch.native_layer_norm(y, y.shape[-1:], *norm, eps)
            dz = torch.ops.aten.silu_backward(grad * normed, inputs.z)
            dy, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
                grad * F.silu(inputs.z), y, y.shape[-1:], mean, rstd, *norm, [True, True, True]
            )
            return torch_loop.backward(dy, saved, inputs.scan()).gated(dz, d_weight, d_bias)

    monkeypatch.setattr(backends, "load", lambda name, load=backends.load: Fused if name == "fused" else load(name))
    monkeypatch.setattr(backends, "resolve", lambda name, *_: name)
    for rank in (2, None):
        inputs = make_inputs(2, 3, 4, I=8, R=rank, dtype=torch.float64)
        tensors = inputs.gated(torch.randn_like(inputs.x), torch.rand(8).double(), torch.rand(8).double())
        results = []
        for backend in ("fused", "torch"):
            leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
            with FlopCounterMode(display=False) as counter:
                out = gated_cross_scan(*leaves, backend=backend)
                gradients = torch.autograd.grad(out.square().sum(), [t for t in leaves if t is not None])
            results.append([out, *gradients, torch.tensor(counter.get_total_flops())])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
        with torch.no_grad():
            torch.testing.assert_close(gated_cross_scan(*tensors, backend="fused"), results[1][0])
        operator = torch.ops.models.cross_scan.default
        torch.library.opcheck(operator, (*leaves, 1e-5, "fused", True))
        torch.library.opcheck(operator, (*tensors, 1e-5, "fused", False))
        compiled = torch.compile(gated_cross_scan, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*leaves, backend="fused"), results[1][0])
