"""The CUDA kernels compiled for two GPUs, and their launches. What they compute: `test_cuda_kernels.py`."""

import re
import subprocess

import pytest
import torch

from models.cross_scan import cross_selective_scan, gpu_problem, reference
from models.cross_scan.cuda import cuda_scan
from models.cross_scan.triton import triton_scan
from models.kernels import conv_silu, layer_norm, nvrtc, sum_parts

if nvrtc.IMPORT_ERROR is not None or triton_scan.IMPORT_ERROR is not None:
    pytest.skip(f"needs {nvrtc.IMPORT_ERROR or triton_scan.IMPORT_ERROR}", allow_module_level=True)

import triton  # noqa: E402

SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # bytes that the blocks of a multiprocessor share


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VMUNET_CACHE", str(tmp_path / "cache"))
    nvrtc.compile_ahead.cache_clear()


def usage(code, folder):
    """(registers, bytes of local memory of a thread) of each kernel."""
    (folder / "kernels.cubin").write_bytes(code)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", folder / "kernels.cubin"]
    text = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", text.stdout + text.stderr)
    return {name: (int(registers), int(stack)) for name, registers, stack in found}


@pytest.mark.parametrize(
    "dtype, rank, backwards, capability",
    [
        (torch.bfloat16, 6, True, 90),
        (torch.bfloat16, 48, True, 90),
        (torch.float32, 12, False, 80),
        (torch.float16, 24, True, 80),
    ],
)
def test_the_scans_compile_and_keep_their_tiles_in_registers(tmp_path, dtype, rank, backwards, capability):
    defines = cuda_scan.defines_of_scan(dtype, rank, backwards)
    found = usage(nvrtc.compile_source(cuda_scan.SCAN.source, defines, capability), tmp_path)
    assert set(found) == set(cuda_scan.SCAN.names)
    warps = cuda_scan.warps_of_scan(rank, backwards)
    for name, (registers, stack) in found.items():
        assert stack <= (128 if "backward" in name else 64), (name, stack)
        assert registers * 32 * warps <= 65536 / (8 / warps)  # at least eight warps at a time


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("dtype, capability", [(torch.bfloat16, 90), (torch.float32, 80)])
def test_what_surrounds_the_scan_compiles(tmp_path, stage, dtype, capability):
    defines = cuda_scan.defines_around(dtype, 6 << stage, 192 << stage)
    found = usage(nvrtc.compile_source(cuda_scan.AROUND.source, defines, capability), tmp_path)
    assert set(found) == set(cuda_scan.AROUND.names)
    assert all(stack <= 64 for _, stack in found.values())


@pytest.mark.parametrize("channels, x, y", [(24, "bf16", "bf16"), (96, "float", "bf16"), (1536, "float", "float")])
def test_layer_norm_compiles(tmp_path, channels, x, y):
    code = nvrtc.compile_source(layer_norm.KERNELS.source, (("C", channels), ("X", x), ("Y", y)), 80)
    assert set(usage(code, tmp_path)) == set(layer_norm.KERNELS.names)


@pytest.mark.parametrize("element", ["float", "bf16", "fp16"])
def test_the_convolution_compiles_and_keeps_its_window_in_registers(tmp_path, element):
    found = usage(nvrtc.compile_source(conv_silu.KERNELS.source, (("ELEMENT", element),), 90), tmp_path)
    assert set(found) == set(conv_silu.KERNELS.names)
    assert all(stack == 0 for _, stack in found.values())


@pytest.mark.parametrize("trains", [True, False])
def test_a_prediction_has_no_kernels_of_gradients_compiled(trains):
    programs = cuda_scan.programs(192, 6, torch.bfloat16, trains)
    scans = [defines for source, defines in programs if source == cuda_scan.SCAN.source]
    assert scans == [cuda_scan.defines_of_scan(torch.bfloat16, 6, b) for b in (True, False) if trains or not b]
    others = [source for source, _ in programs if source != cuda_scan.SCAN.source]
    assert others == [cuda_scan.AROUND.source] + [sum_parts.KERNELS.source] * trains


def inputs_of(I, N, R, b=1, side=4, dtype=torch.bfloat16):
    """Inputs of a shape, without memory."""
    small = reference.make_inputs(1, 1, 1, I, N, R)
    return small._replace(x=small.x.to(dtype).expand(b, side, side, I))


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_networks_stages_fit_and_share_a_multiprocessor(stage, dtype):
    R = 6 << stage
    assert cuda_scan.fits(inputs_of(I=192 << stage, N=16, R=R, b=32, side=64 >> stage, dtype=dtype))
    for most in SHARED_MEMORY.values():
        assert 2 * (cuda_scan.shared_bytes(dtype, R, backwards=True) + 1024) <= most
    if dtype == torch.bfloat16 and stage == 0:  # at batch 32 an H100 has six blocks for each of its multiprocessors
        assert 6 * (cuda_scan.shared_bytes(dtype, R, backwards=True) + 1024) <= 228 << 10


def test_other_shapes_are_left_to_triton():
    assert not cuda_scan.fits(inputs_of(I=192, N=8, R=6))
    assert not cuda_scan.fits(inputs_of(I=40, N=16, R=3))
    assert not cuda_scan.fits(reference.make_inputs(1, 2, 2, 64, 16))  # without a low rank
    assert not cuda_scan.fits(inputs_of(I=192, N=16, R=6, b=4096, side=256))  # offsets of more than 32 bits


@pytest.mark.parametrize(
    "b, I, side, chunk",
    [(1, 192, 64, 96), (1, 384, 32, 48), (2, 768, 16, 48), (10, 192, 64, 832), (32, 192, 64, 4096)],
)
def test_the_steps_are_cut_where_few_warps_would_run(b, I, side, chunk):
    """Into chunks of whole tiles that give twice `enough_warps`."""
    p = gpu_problem.GPUProblem(inputs_of(I, 16, 6, b, side))
    assert p.chunk == chunk and chunk % gpu_problem.T == 0
    assert b * 4 * I // 32 >= 512 or b * 4 * I // 32 * p.chunks >= 512


def test_python_and_kernels_agree_on_their_numbers():
    """Sizes that both files name."""
    scan, around = (kernels.source.read_text(encoding="utf-8") for kernels in (cuda_scan.SCAN, cuda_scan.AROUND))
    assert f"constexpr int T = {gpu_problem.T};" in scan and f"constexpr int N = {cuda_scan.STATES};" in scan
    assert f"T = {gpu_problem.T}, N = {cuda_scan.STATES}, LANES = {gpu_problem.WARP};" in around
    assert f"PACK_THREADS = {cuda_scan.PACK_THREADS}, PACK_TILES = {cuda_scan.PACK_TILES};" in around
    assert f"SUM_THREADS = {cuda_scan.SUM_THREADS}, SUM_WIDTH = {cuda_scan.SUM_WIDTH};" in around
    of_parts = sum_parts.KERNELS.source.read_text(encoding="utf-8")
    assert f"COLUMNS = {sum_parts.COLUMNS}, GROUPS = {sum_parts.THREADS // sum_parts.COLUMNS};" in of_parts
    assert "return channels <= 384 ? 8 : channels <= 768 ? 4 : 2;" in nvrtc.HEADERS[0].read_text(encoding="utf-8")
    assert [nvrtc.warps_of_block(channels) for channels in (24, 384, 768, 1536)] == [8, 8, 4, 2]
    convolution = conv_silu.KERNELS.source.read_text(encoding="utf-8")
    assert f"WARPS = {conv_silu.WARPS}, LANES = 32, CHANNELS = 2 * LANES;" in convolution


def test_what_was_compiled_is_kept(tmp_path, monkeypatch):
    defines = (("ELEMENT", "float"),)
    code = nvrtc.compile_source(conv_silu.KERNELS.source, defines, 90)
    nvrtc.compile_ahead.cache_clear()
    monkeypatch.setattr(nvrtc.nvrtc, "nvrtcCompileProgram", None)  # in another process, say
    assert nvrtc.compile_source(conv_silu.KERNELS.source, defines, 90) == code
    with pytest.raises(TypeError):
        nvrtc.compile_source(conv_silu.KERNELS.source, (("ELEMENT", "bf16"),), 90)


@pytest.mark.parametrize("damage", [lambda code: b"", lambda code: code[:-100], lambda code: b"x" + code[1:]])
def test_damaged_compiled_code_is_compiled_anew(damage, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("VMUNET_CACHE", str(tmp_path))
    found = []
    for _ in range(3):
        nvrtc.compile_ahead.cache_clear()
        found.append(nvrtc.compile_source(conv_silu.KERNELS.source, (("ELEMENT", "float"),), 90))
        (kept,) = tmp_path.rglob("*.sealed")
        if len(found) == 1:
            kept.write_bytes(damage(kept.read_bytes()))
    assert found[0] and found[1:] == found[:1] * 2
    (record,) = caplog.records
    assert record.levelname == "WARNING" and str(kept.parent) in record.getMessage()


def test_a_cache_that_can_not_be_written_costs_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VMUNET_CACHE", str(tmp_path / "file"))
    assert nvrtc.compile_source(conv_silu.KERNELS.source, (("ELEMENT", "float"),), 90)


def test_a_source_that_does_not_compile_says_why(tmp_path):
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void kernel() { nonsense; }")
    with pytest.raises(RuntimeError, match='broken.cu .*sm_90.*"nonsense" is undefined'):
        nvrtc.compile_source(broken, (), 90)


def test_it_says_why_it_can_not_run():
    assert "GPU" in cuda_scan.why_not(torch.device("cpu"), torch.float32)
    with pytest.raises(RuntimeError, match="'cuda' .*GPU"):
        cross_selective_scan(*reference.make_inputs(1, 2, 2, 32, R=2), backend="cuda")
