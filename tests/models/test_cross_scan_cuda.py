"""The CUDA kernels: compiled for two GPUs. `benchmarks/gpu.py --check` runs them on one, against double precision."""

import re
import subprocess

import pytest
import torch

from models.cross_scan import cross_selective_scan, cuda_scan, reference, triton_scan

if cuda_scan.IMPORT_ERROR is not None or triton_scan.IMPORT_ERROR is not None:
    pytest.skip(f"needs {cuda_scan.IMPORT_ERROR or triton_scan.IMPORT_ERROR}", allow_module_level=True)

import triton  # noqa: E402

MOST_STACK = {"scan_kernel": 64, "scan_saving_kernel": 64, "scan_backward_kernel": 128}  # bytes of a thread
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # bytes that the blocks of a multiprocessor share


def usage(code, folder):
    """(registers, bytes of local memory of a thread) of each kernel."""
    (folder / "kernels.cubin").write_bytes(code)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", folder / "kernels.cubin"]
    text = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", text.stdout + text.stderr)
    return {name: (int(registers), int(stack)) for name, registers, stack in found}


@pytest.mark.parametrize(
    "dtype, rank, warps, capability",
    [
        (torch.bfloat16, 6, 2, 90),
        (torch.bfloat16, 48, 4, 90),
        (torch.float32, 12, 1, 80),
        (torch.float16, 24, 2, 80),
    ],
)
def test_every_kernel_compiles_and_keeps_its_tiles_in_registers(tmp_path, dtype, rank, warps, capability):
    found = usage(cuda_scan.compile_source(dtype, rank, warps, capability), tmp_path)
    assert set(found) == set(MOST_STACK)
    for name, (registers, stack) in found.items():
        assert stack <= MOST_STACK[name], (name, stack)
        assert registers * 32 * warps <= 65536 / (8 / warps)  # at least eight warps at a time


def problem(I, N, R, b=1, side=4, dtype=torch.bfloat16):
    """What a call's launches know, without a GPU: the sizes."""
    p = object.__new__(cuda_scan.Problem)
    p.b, p.I, p.N, p.R, p.L, p.tiles = b, I, N, R, side * side, -(-side * side // triton_scan.T)
    p.x = torch.empty(0, dtype=dtype)
    return p


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_networks_stages_fit_and_share_a_multiprocessor(stage, dtype):
    p = problem(I=192 << stage, N=16, R=6 << stage, b=32, side=64 >> stage, dtype=dtype)
    assert p._fits()
    for capability in SHARED_MEMORY:
        assert 2 * (p._shared(backwards=True) + 1024) <= SHARED_MEMORY[capability]


def test_other_shapes_are_left_to_triton():
    assert not problem(I=192, N=8, R=6)._fits()
    assert not problem(I=40, N=16, R=3)._fits()
    assert not problem(I=64, N=16, R=0)._fits()
    assert not problem(I=192, N=16, R=6, b=4096, side=256)._fits()  # offsets of more than 32 bits


def test_a_source_that_does_not_compile_says_why(tmp_path, monkeypatch):
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void kernel() { nonsense; }")
    monkeypatch.setattr(cuda_scan, "SOURCE", broken)
    with pytest.raises(RuntimeError, match='broken.cu could not be compiled for sm_90.*"nonsense" is undefined'):
        cuda_scan.compile_source(torch.float32, 6, 2, 90)


def test_it_says_why_it_can_not_run():
    assert "GPU" in cuda_scan.why_not(torch.device("cpu"), torch.float32)
    with pytest.raises(RuntimeError, match="'cuda' can't be used: it needs an NVIDIA GPU"):
        cross_selective_scan(*reference.make_inputs(1, 2, 2, 32, R=2), backend="cuda")
