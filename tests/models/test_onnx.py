"""Exported scans in ONNX Runtime: both operators compute the definition, also without PyTorch, or say what is wrong."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export import compile_operator
from models import onnx
from models.cross_scan import reference
from models.cross_scan.export import DOMAIN, NAME, VERSION
from tests.tiny import ROOT

NAMES = ["x", "dt", "B", "C", "A", "D", "dt_bias", "dt_weight"]
CASES = [(1, 1, 1, 16, 16, 1), (2, 11, 3, 48, 16, 5), (3, 7, 5, 21, 5, 3), (1, 4, 9, 8, 18, 17)]  # b, H, W, I, N, R
NO_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import numpy
from models import onnx
feed = dict(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], onnx.session(sys.argv[1], 2).run(None, feed)[0])
"""


def case(b, H, W, I, N, R):
    """Inputs by name, and the result in double precision."""
    inputs = reference.make_inputs(b, H, W, I, N=N, R=R)
    with torch.no_grad():
        expected = reference.scan(*(tensor.double() for tensor in inputs)).numpy()
    return {name: tensor.contiguous().numpy() for name, tensor in zip(NAMES, inputs, strict=True)}, expected


def check(found, expected):
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 5e-7 * np.linalg.norm(expected)


def write_model(path, version=VERSION, node=NAME, functions=True):
    """Write an ONNX model of one scan."""
    proto = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from models.cross_scan.export.onnx_scan import functions as scan_functions

    values = [proto.helper.make_tensor_value_info(name, 1, None) for name in [*NAMES, "y"]]
    nodes = [proto.helper.make_node(node, NAMES[: 8 if functions else 1], ["y"], domain=DOMAIN if functions else "")]
    graph = proto.helper.make_graph(nodes, "scan", values[:8], values[8:])
    opsets = [proto.helper.make_opsetid("", 18), proto.helper.make_opsetid(DOMAIN, version)]
    used = scan_functions() if functions else []
    proto.save(proto.helper.make_model(graph, functions=used, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def packages():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxruntime_extensions")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("sizes", CASES)
def test_the_scan_without_pytorch(sizes, threads, monkeypatch):
    monkeypatch.setattr(onnx, "_threads", threads)
    inputs, expected = case(*sizes)
    check(onnx.cross_scan(**inputs), expected)


@pytest.fixture(scope="module", params=["-march=native", "-O2"], ids=["this processor", "any processor"])
def compiled(request, tmp_path_factory):
    """The kernel of the C++ operator as a Python function."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("kernel")
    source, library = folder / "kernel.cc", folder / "kernel.so"
    run = 'extern "C" void run(Call* call) { for (int i = 0; i < call->tasks(); ++i) run_task(call, i); }'
    source.write_text(f'#include "cross_scan.h"\n{run}\n')
    flags = ["-std=c++17", "-O3", request.param, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, f"-I{ROOT}/models/onnx", source, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).run

    def scan(**inputs):
        arrays = [inputs[name] for name in NAMES]
        y = np.full_like(inputs["x"], np.nan)
        sizes = (*y.shape, inputs["A"].shape[-1], inputs["dt_weight"].shape[-1])
        function((ctypes.c_int64 * 15)(*(array.ctypes.data for array in [*arrays, y]), *sizes))  # a struct Call
        return y

    return scan


@pytest.mark.parametrize("sizes", CASES)
def test_the_scan_in_cpp(compiled, sizes):
    inputs, expected = case(*sizes)
    check(compiled(**inputs), expected)
    inputs["dt_bias"] += 60  # decays far below the smallest float
    expected = reference.scan(*(torch.from_numpy(inputs[name]).double() for name in NAMES)).numpy()
    check(compiled(**inputs), expected)
    inputs["dt"][0, 0, 0, 0, 0] = np.nan
    assert np.isnan(compiled(**inputs)[0, 0, 0]).all()


def test_the_compiled_operator_in_onnx_runtime(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    if "ORT_INCLUDE" not in os.environ:
        pytest.skip("needs $ORT_INCLUDE, the folder of onnxruntime_c_api.h")
    compile_operator(Path(os.environ["ORT_INCLUDE"]), tmp_path / "scan.so")
    options = runtime.SessionOptions()
    options.register_custom_ops_library(str(tmp_path / "scan.so"))
    session = runtime.InferenceSession(write_model(tmp_path / "scan.onnx"), options)
    for sizes in CASES:
        inputs, expected = case(*sizes)
        check(session.run(None, inputs)[0], expected)
    with pytest.raises(
        Exception, match="vmunet::CrossScan, input B: found 1 x 4 x 9 x 4 x 15, expected 1 x 4 x 9 x 4 x 18"
    ):
        session.run(None, inputs | {"B": inputs["B"][..., :15]})  # so it is the operator that runs
    later = runtime.InferenceSession(write_model(tmp_path / "later.onnx", version=VERSION + 1), options)
    check(later.run(None, inputs)[0], expected)  # by its own function


def test_a_session_runs_the_operator_without_pytorch(packages, tmp_path):
    file = write_model(tmp_path / "scan.onnx")
    inputs, expected = case(2, 5, 7, 32, 16, 4)
    np.savez(tmp_path / "inputs.npz", **inputs)
    arguments = [file, tmp_path / "inputs.npz", tmp_path / "y.npy"]
    subprocess.run([sys.executable, "-c", NO_TORCH, *map(str, arguments)], check=True, cwd=ROOT, timeout=120)
    check(np.load(tmp_path / "y.npy"), expected)


def test_the_operator_takes_the_place_of_the_function(packages, tmp_path, monkeypatch):
    session = onnx.session(write_model(tmp_path / "scan.onnx"), threads=2)
    inputs, _ = case(1, 2, 3, 16, 16, 2)
    monkeypatch.setattr(onnx, "cross_scan", lambda x, *others: x + 1)
    assert np.array_equal(session.run(None, inputs)[0], inputs["x"] + 1)


def test_wrong_shapes_are_errors():
    inputs, _ = case(1, 2, 3, 16, 16, 2)
    with pytest.raises(Exception, match=r"input B: found shape \(1, 2, 3, 4, 15\), expected \(1, 2, 3, 4, 16\)"):
        onnx.cross_scan(**inputs | {"B": inputs["B"][..., :15]})


def test_files_that_do_not_fit_are_errors(packages, tmp_path):
    with pytest.raises(ValueError, match=rf"old.onnx: found version 2 of vmunet::CrossScan, expected {VERSION}"):
        onnx.session(write_model(tmp_path / "old.onnx", version=2))
    with pytest.raises(ValueError, match="relu.onnx: found no function vmunet::CrossScan"):
        onnx.session(write_model(tmp_path / "relu.onnx", node="Relu", functions=False))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="text.onnx: found something else, expected an ONNX model"):
        onnx.session(tmp_path / "text.onnx")


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime_extensions"])
def test_a_missing_package_is_an_error(packages, tmp_path, monkeypatch, package):
    file = write_model(tmp_path / "scan.onnx")
    onnx._library.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"found no module '{package}', expected it; pip install"):
        onnx.session(file)


def test_the_versions_of_the_operators_agree():
    assert f"VERSION = {VERSION};" in (ROOT / "models/onnx/cross_scan.cc").read_text()
