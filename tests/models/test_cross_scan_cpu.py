"""The numba kernels against the definition in double precision, whatever the shape, the threads and the machine."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from models.cross_scan import cross_selective_scan
from models.cross_scan.cpu import cpu_scan as cpu
from models.cross_scan.problems import ScanInputs, present
from models.cross_scan.reference import make_inputs, scan
from tests.tiny import GOLDEN, ROOT

if cpu.IMPORT_ERROR is not None:
    pytest.skip(f"needs numba: {cpu.IMPORT_ERROR}", allow_module_level=True)

CASES = {  # b, H, W, I, N, R
    "one step": (1, 1, 1, 32, 16, 2),
    "one step less than a tile": (1, 1, 31, 16, 16, 1),
    "a tile": (1, 4, 8, 64, 16, 4),
    "a tile and one step": (2, 11, 3, 48, 16, 5),
    "long, wide rank": (1, 40, 25, 32, 16, 17),
    "batch of 3, raw steps": (3, 5, 14, 32, 16, None),
    "channels and states that fill no vector": (3, 7, 5, 21, 5, 3),
    "more states than lanes, raw steps": (2, 3, 6, 8, 18, None),
}


@pytest.fixture
def nan_in_new_memory():
    torch.use_deterministic_algorithms(True)  # fills it, and a result that stays unwritten shows
    yield
    torch.use_deterministic_algorithms(False)


def output_and_gradients(inputs, grad_y):
    y, saved = cpu.forward(inputs)
    assert saved.shape == cpu.saved_shape(inputs)
    return y, *present(cpu.backward(grad_y, saved, inputs))


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(inputs, forward=5e-7, gradient=2e-6):
    grad_y = torch.randn(inputs.x.shape, generator=torch.Generator().manual_seed(1)).to(inputs.x.dtype)
    leaves = [None if t is None else t.double().requires_grad_() for t in inputs]
    y_ref = scan(*leaves)
    used = [leaf for leaf in leaves if leaf is not None]
    expected = [y_ref.detach(), *torch.autograd.grad(y_ref, used, grad_y.double())]
    found = output_and_gradients(inputs, grad_y)
    for name, a, b in zip(("y", *inputs._fields), found, expected, strict=False):
        assert a.shape == b.shape and a.is_contiguous(), name
        assert relative_error(a, b) < (forward if name == "y" else gradient), name


@pytest.mark.usefixtures("nan_in_new_memory")
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_equal_the_definition(case):
    check(make_inputs(*CASES[case]))


@pytest.mark.parametrize("rank", [None, 4])
def test_large_steps_and_strongly_varied_rates(rank):
    inputs = make_inputs(1, 12, 9, 32, R=rank)
    dt = 13 * inputs.dt  # raw steps to beyond 40; softplus becomes the identity at 20
    steps = dt if rank is None else torch.einsum("bhwkr,kir->bhwki", dt, inputs.dt_weight)
    assert steps.max() > 40 and steps.min() < -40
    check(inputs._replace(dt=dt, A=inputs.A * torch.logspace(-3, 3, 16)))


@pytest.mark.parametrize("rate", [1e3, 1e12])
def test_a_state_that_has_decayed_is_exactly_zero(rate):
    inputs = make_inputs(1, 4, 10, 16)
    inputs = inputs._replace(A=torch.full_like(inputs.A, -rate), dt=8 + inputs.dt.abs())
    y = cpu.forward(inputs, save=False)[0]
    far = inputs.x.clone()
    far[0, 1, 3] += 100
    changed = cpu.forward(inputs._replace(x=far), save=False)[0] != y
    assert changed[0, 1, 3].all() and changed.sum() == 16
    assert y.isfinite().all()


@pytest.mark.parametrize("step", [1e2, 1e6, 1e8, 1e12, 1e20])
def test_whatever_the_step_is_a_decay_is_at_most_one(step):
    """As in a training that breaks: the exponent runs beyond what a float can round to an integer."""
    inputs = make_inputs(1, 5, 7, 32, R=4)
    inputs = inputs._replace(dt_bias=torch.full_like(inputs.dt_bias, step))
    y = cpu.forward(inputs, save=False)[0]
    assert relative_error(y, scan(*(t.double() for t in present(inputs)))) < 5e-7


def test_nan_in_a_step_is_nan_in_the_output():
    inputs = make_inputs(1, 3, 4, 32, R=4)
    inputs.dt_bias[1, 5] = torch.nan
    assert torch.equal(cpu.forward(inputs, save=False)[0].isnan().any(0).any(0).any(0).nonzero(), torch.tensor([[5]]))


def test_softplus_of_very_negative_steps_keeps_its_relative_accuracy():
    inputs = make_inputs(1, 1, 8, 16)
    inputs = inputs._replace(dt=inputs.dt - 40, D=torch.zeros(4, 16), dt_bias=torch.zeros(4, 16))
    y = cpu.forward(inputs, save=False)[0]
    assert relative_error(y, scan(*(t.double() for t in present(inputs)))) < 2e-6  # of steps around 1e-17


def test_selective_scan_equals_the_original():
    """`selective_scan_ref` with softplus and bias: 4 groups of 3 channels, each here the first direction of a scan."""
    golden = {name: torch.from_numpy(array).float() for name, array in np.load(GOLDEN / "scan.npz").items()}

    def first_direction(tensor):  # and zeros for the three others
        return torch.stack([tensor, *[torch.zeros_like(tensor)] * 3], -2)

    for group in range(4):
        c = slice(3 * group, 3 * group + 3)
        u, delta, B, C = (
            golden[name][:, part].transpose(1, 2)[:, :, None]
            for name, part in (("in_u", c), ("in_delta", c), ("in_B", group), ("in_C", group))
        )
        A, D, bias = (golden[name][c] for name in ("in_A", "in_D", "in_delta_bias"))
        delta, B, C, D = map(first_direction, (delta, B, C, D))
        inputs = ScanInputs(u, delta, B, C, A.expand(4, 3, 16), D, bias.expand(4, 3))
        grad_y = golden["gy"][:, c].transpose(1, 2)[:, :, None]
        y, *grads = output_and_gradients(inputs, grad_y)
        grad = ScanInputs(*grads)
        found = dict(y=y, u=grad.x, delta=grad.dt[..., 0, :], B=grad.B[..., 0, :], C=grad.C[..., 0, :])
        for name, tensor in found.items():
            expected = golden[name if name == "y" else f"grad_{name}"]
            expected = expected[:, group] if name in "BC" else expected[:, c]
            assert relative_error(tensor[:, :, 0].transpose(1, 2), expected) < 2e-6, name
        for name, tensor in dict(A=grad.A[0], D=grad.D[0], delta_bias=grad.dt_bias[0]).items():
            assert relative_error(tensor, golden[f"grad_{name}"][c]) < 2e-6, name


def test_the_four_directions_equal_the_original():
    golden = {name: torch.from_numpy(array).float() for name, array in np.load(GOLDEN / "ss2d.npz").items()}
    x = golden["core_in"].permute(0, 2, 3, 1).contiguous()
    dt, B, C = torch.einsum("bhwi,kri->bhwkr", x, golden["weight_x_proj_weight"]).split([2, 16, 16], -1)
    A, D = -golden["weight_A_logs"].exp().view(4, 64, 16), golden["weight_Ds"].view(4, 64)
    steps = (golden["weight_dt_projs_bias"], golden["weight_dt_projs_weight"])
    y = cpu.forward(ScanInputs(x, dt, B, C, A, D, *steps), save=False)[0]
    expected = sum(golden[f"core_y{k}"] for k in (1, 2, 3, 4))
    assert relative_error(y.flatten(1, 2).transpose(1, 2), expected) < 5e-7


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH_FOR_THREADS", 0)
    inputs = make_inputs(2, 9, 9, 112, R=3)
    grad_y = torch.ones_like(inputs.x)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(output_and_gradients(inputs, grad_y))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("openmp", [True, False])
def test_work_is_shared_by_threads_and_what_goes_wrong_in_one_is_raised(openmp, monkeypatch):
    if openmp and cpu.openmp_parallel() is None:
        pytest.skip("PyTorch is built without OpenMP")
    if not openmp:
        monkeypatch.setattr(cpu, "openmp_parallel", lambda: None)
    together, seen = threading.Barrier(3), set()

    def work():
        together.wait(timeout=20)
        seen.add(threading.get_ident())

    cpu.in_threads(work, 3)
    assert len(seen) == 3 and threading.get_ident() in seen

    def fail_elsewhere():
        if threading.get_ident() != caller:
            raise MemoryError("as of a kernel")

    caller = threading.get_ident()
    with pytest.raises(MemoryError, match="as of a kernel"):
        cpu.in_threads(fail_elsewhere, 2)


def test_views_and_copies_give_the_same_bits():
    inputs = make_inputs(2, 4, 9, 32, R=3)
    assert not inputs.B.is_contiguous()
    grad_y = torch.ones_like(inputs.x)

    def turned(tensor):  # (H, W) has no single stride
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)

    def with_maps(function):
        maps = {name: function(getattr(inputs, name)) for name in ("x", "dt", "B", "C")}
        return inputs._replace(**maps)

    views = output_and_gradients(inputs, grad_y)
    copies = output_and_gradients(with_maps(torch.Tensor.contiguous), grad_y)
    turned = output_and_gradients(with_maps(turned), turned(grad_y))
    assert all(map(torch.equal, views, copies)) and all(map(torch.equal, views, turned))


def test_without_saved_states_the_output_is_the_same():
    inputs = make_inputs(1, 5, 7, 16, R=1)
    y, saved = cpu.forward(inputs, save=False)
    assert saved.shape == (0,) and torch.equal(y, cpu.forward(inputs)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_scanned_in_float32(dtype):
    inputs = make_inputs(1, 4, 6, 16, R=2, dtype=dtype)
    y, *grads = output_and_gradients(inputs, torch.ones_like(inputs.x))
    assert y.dtype == dtype
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]
    check(inputs, forward=5e-3, gradient=5e-3)


def test_why_not():
    assert cpu.why_not(torch.device("cpu"), torch.float32) is None
    assert "torch" in cpu.why_not(torch.device("cpu"), torch.float64)
    assert "cuda" in cpu.why_not(torch.device("cuda"), torch.float32)


def test_without_numba_the_reason_is_the_import_error(monkeypatch):
    monkeypatch.setattr(cpu, "IMPORT_ERROR", ImportError("No module named 'numba'"))
    assert "No module named 'numba'" in cpu.why_not(torch.device("cpu"), torch.float32)


def test_opcheck_and_compile():
    inputs = make_inputs(2, 3, 4, I=12, N=3, R=2)
    for save in (True, False):
        tensors = inputs.gated(None, None, None)
        tensors = [None if t is None else t.detach().requires_grad_(save) for t in tensors]
        torch.library.opcheck(torch.ops.models.cross_scan.default, (*tensors, 0.0, "cpu", save))
    inputs = [t.requires_grad_() for t in inputs]
    expected = cross_selective_scan(*inputs, backend="cpu")
    compiled = torch.compile(cross_selective_scan, fullgraph=True, backend="aot_eager")(*inputs, backend="cpu")
    assert torch.equal(compiled, expected)


def run_python(code, **environment):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]  # of forks beside threads, from 3.12 on
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", timeout=200
    )


FORWARD = """
import logging, os, sys, torch
logging.basicConfig(format="%(message)s", stream=sys.stdout)
logging.getLogger("vmunet").setLevel("DEBUG")
from models.cross_scan.cpu import cpu_scan as cpu
from models.cross_scan.reference import make_inputs, scan
inputs = make_inputs(1, 5, 7, 32, R=2)
def error():
    y = cpu.forward(inputs, save=False)[0]
    expected = scan(*(t.double() for t in inputs))
    return ((y - expected).norm() / expected.norm()).item()
assert error() < 5e-7
"""


@pytest.mark.slow
def test_compiled_code_is_announced_and_kept_for_the_next_process(tmp_path):
    first, second = (run_python(FORWARD, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "compiling the CPU scan (forward_task)" in first.stdout and "compiled in" in first.stdout
    assert second.returncode == 0, second.stderr
    assert f"found in {tmp_path}" in second.stdout


def test_other_machines_have_narrower_vectors():
    """AVX2: each vector takes two registers. Nothing is kept: it isn't for this machine."""
    without_cache = "from numba.core import config; config.CACHE_DIR = '/dev/null'\n"
    haswell = dict(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx,+avx2,+fma")
    done = run_python(without_cache + FORWARD, **haswell)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_forked_process_has_threads_of_its_own():
    done = run_python(
        FORWARD
        + """
cpu.ENOUGH_FOR_THREADS = 0
torch.set_num_threads(2)
y = cpu.forward(inputs)[0]
child = os.fork()
if not child:
    os._exit(0 if torch.equal(cpu.forward(inputs)[0], y) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, caplog):
    from numba.core import caching, dispatcher

    def fail(error):
        def failing(*args):
            raise error

        return failing

    monkeypatch.setattr(caching.FunctionCache, "save_overload", fail(OSError("No space left on device")))
    with caplog.at_level("INFO", logger="vmunet"):
        cpu._run(cpu.kernels.task(lambda i, array: array.fill(i)), [(3,)], 1, array := np.zeros(2))
        assert array.tolist() == [3, 3] and "No space left on device" in caplog.text
        monkeypatch.setattr(dispatcher.Dispatcher, "enable_caching", fail(RuntimeError("no locator available")))
        cpu._run(cpu.kernels.task(lambda i, array: array.fill(i)), [(4,)], 1, array)
        assert array.tolist() == [4, 4] and "no locator available" in caplog.text


DAMAGE = {
    "empty": lambda code: b"",
    "cut": lambda code: code[: len(code) // 2],
    "altered": lambda code: code[:-40] + bytes([code[-40] ^ 1]) + code[-39:],
}


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_compiled_code_is_compiled_anew_with_a_warning(damage, suffix, tmp_path, monkeypatch, caplog):
    from numba.core import config

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))

    def fill(i, array):
        array[:] = i

    def call():
        kernel = cpu.kernels.task(fill)
        cpu._run(kernel, [(3,)], 1, array := np.zeros(2))
        assert array.tolist() == [3, 3]
        return sum(kernel.stats.cache_hits.values())

    assert [call(), call()] == [0, 1] and not caplog.records
    (file,) = tmp_path.rglob(f"*.{suffix}")
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert [call(), call()] == [0, 1]
    (record,) = caplog.records
    assert record.levelname == "WARNING" and str(file.parent) in record.getMessage()
