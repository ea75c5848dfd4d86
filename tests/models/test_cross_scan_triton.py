"""The Triton kernels: run by Triton's interpreter against double precision, and compiled for two GPUs.

The interpreter has to be chosen before Triton is imported, so its cases run in a process of their own, this file's
`__main__`; they are small because it is slow."""

import inspect
import json
import re
import subprocess

import pytest
import torch
import torch.nn.functional as F

from models.cross_scan import gpu_problem, reference
from models.cross_scan.problems import present
from models.cross_scan.triton import triton_scan
from tests.interpreter import patch_language_once, run_interpreted

if triton_scan.IMPORT_ERROR is not None:
    pytest.skip(f"needs Triton: {triton_scan.IMPORT_ERROR}", allow_module_level=True)

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CASES = {  # b, H, W, I, N, R, dtype, gated, chunked
    "odd map, more than a block of channels": (1, 3, 7, 40, 2, 3, torch.float32, False, False),
    "one step short of a tile, low rank of one": (1, 5, 3, 16, 4, 1, torch.float32, False, False),
    "chunks, raw steps": (1, 10, 4, 20, 2, None, torch.float32, False, True),
    "chunks, batch, norm and gate": (2, 3, 6, 24, 2, 2, torch.float32, True, True),
    "bfloat16": (1, 5, 4, 24, 2, 3, torch.bfloat16, True, True),
}
# forward and gradients, as relative norms. The interpreter cuts bits off when it rounds to bfloat16, instead of
# rounding to nearest, so its results are twice as far away as a GPU's.
TOLERANCE = {torch.float32: (5e-7, 2e-6), torch.bfloat16: (1e-2, 1e-2)}


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def errors(b, H, W, I, N, R, dtype, gated, chunked):
    """Relative errors of the output and of every gradient."""
    gpu_problem.CHUNKS.update(enough_warps=10_000 if chunked else 0, shortest_chunk=16)
    inputs = reference.make_inputs(b, H, W, I, N, R, dtype)
    random = torch.Generator().manual_seed(1)
    z = torch.randn(b, H, W, 2 * I, generator=random).to(dtype)[..., I:]
    norm = [1 + 0.1 * torch.randn(I, generator=random), 0.1 * torch.randn(I, generator=random)]
    grad = torch.randn(b, H, W, I, generator=random).to(dtype)
    inputs = inputs.gated(z, *norm) if gated else inputs
    leaves = inputs._make(None if t is None else t.double().requires_grad_() for t in inputs)
    if gated:
        norm = (leaves.norm_weight, leaves.norm_bias)
        expected = F.layer_norm(reference.scan(*leaves.scan()), (I,), *norm, 1e-5) * F.silu(leaves.z)
        out, y, saved = triton_scan.gated_forward(inputs, 1e-5)
        assert torch.equal(out, triton_scan.gated_forward(inputs, 1e-5, save=False)[0])
        grads = triton_scan.gated_backward(grad, y, saved, inputs, 1e-5)
    else:
        expected = reference.scan(*leaves)
        out, saved = triton_scan.forward(inputs)
        assert torch.equal(out, triton_scan.forward(inputs, save=False)[0])
        assert saved.shape == triton_scan.saved_shape(inputs)
        grads = triton_scan.backward(grad, saved, inputs)
    wanted = iter(torch.autograd.grad(expected, present(leaves), grad.double()))
    result = {"out": relative(out, expected)}
    assert type(grads) is type(leaves)
    for name, found, leaf in zip(leaves._fields, grads, leaves, strict=True):
        assert (found is None) == (leaf is None)
        if found is not None:
            result[name] = relative(found, next(wanted))
    return result


@pytest.fixture(scope="module")
def interpreted():
    """Errors of all cases, from one interpreting process."""
    return run_interpreted(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_double_precision(interpreted, case):
    forward, backward = TOLERANCE[CASES[case][6]]
    found = interpreted[case]
    assert found.pop("out") <= forward
    assert {name: error for name, error in found.items() if not error <= backward} == {}


class Recorder:
    """Stands in for a kernel and notes its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def launches(monkeypatch, b, side, I, N, R, dtype):
    """What a forward, with and without saving, and a backward launch."""
    found = []
    for name, kernel in vars(triton_scan.kernels).copy().items():
        if name.endswith("_kernel"):
            monkeypatch.setattr(triton_scan.kernels, name, Recorder(kernel, found))
    inputs = reference.make_inputs(1, 1, 1, I, N, R, dtype)
    maps = {name: getattr(inputs, name) for name in ("x", "dt", "B", "C")}
    inputs = inputs._replace(**{n: t.expand(b, side, side, *t.shape[3:]).contiguous() for n, t in maps.items()})
    gated = inputs.gated(torch.empty_like(inputs.x), torch.ones(I), torch.ones(I))
    _, y, saved = triton_scan.gated_forward(gated, 1e-5)
    triton_scan.gated_backward(y, y, saved, gated, 1e-5)
    triton_scan.forward(inputs, save=False)
    unique = {(k.fn.__name__, kw.get("SAVE"), kw.get("BACKWARDS")): (k, a, kw) for k, a, kw in found}
    return list(unique.values())


def compiled(kernel, args, kwargs, capability):
    """The kernel as the launch would compile it on a GPU of that capability."""
    options = {name: kwargs[name] for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in kwargs}
    values = inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in kwargs.items() if k not in options}).arguments
    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    signature, constants, attributes = {}, {}, {}
    for i, (name, value) in enumerate(values.items()):
        specialised = not kernel.params[i].do_not_specialize
        if kernel.params[i].is_constexpr or (specialised and isinstance(value, int) and value == 1):
            signature[name], constants[(i,)] = "constexpr", value
            continue
        number = "i32" if isinstance(value, int) else "fp32"
        signature[name] = pointers[value.dtype] if torch.is_tensor(value) else number
        if specialised and (torch.is_tensor(value) or isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(cubin, folder):
    """Bytes of local memory of a thread, most of them spilled registers."""
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", folder / "kernel.cubin"]
    usage = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return max(map(int, re.findall(r"STACK:(\d+)", usage.stdout + usage.stderr)))


MOST_STACK = {"scan_backward_kernel": 320, "scan_kernel": 64}  # others none


# sixteen states take long to compile, so only once
@pytest.mark.parametrize("capability, dtype, N", [(80, torch.float32, 2), (90, torch.bfloat16, 16)])
def test_every_kernel_compiles_and_keeps_its_tiles_in_registers(monkeypatch, tmp_path, capability, dtype, N):
    for kernel, args, kwargs in launches(monkeypatch, b=1, side=16, I=192, N=N, R=6, dtype=dtype):
        name, code = kernel.fn.__name__, compiled(kernel, args, kwargs, capability)
        assert stack_bytes(code.asm["cubin"], tmp_path) <= MOST_STACK.get(name, 0)
        if name in ("scan_kernel", "ends_kernel", "hand_on_kernel"):
            # no exchange between threads: each has its channel's rows for itself
            assert "shfl" not in code.asm["ptx"] and "st.shared" not in code.asm["ptx"]


def test_it_says_why_it_can_not_run():
    assert "GPU" in triton_scan.why_not(torch.device("cpu"), torch.float32)
    assert "float64" in triton_scan.why_not(torch.device("cuda"), torch.float64)


def test_an_impossible_number_of_states_is_refused():
    with pytest.raises(ValueError, match="power of two"):
        triton_scan.forward(reference.make_inputs(1, 2, 2, 4, N=6))


if __name__ == "__main__":
    patch_language_once()
    torch.set_num_threads(1)
    print(json.dumps({case: errors(*arguments) for case, arguments in CASES.items()}))
