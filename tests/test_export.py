"""Exported networks: the same numbers at any size and batch, in a process without this repository."""

import dataclasses
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
from configs.build import build_model
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from export import NON_MODEL_FIELDS, TOLERANCE, ExportConfig, load
from inference.trained import load_trained
from models.cross_scan import reference
from models.cross_scan.export import exportable
from models.vmunet import VMUNet
from tests.tiny import TRAINING
from utils.runs import named_weights
from utils.runs.checkpoint import save_checkpoint
from utils.runs.named_weights import read_checkpoint

# one scan: every further one takes seconds to export
SMALL = TRAINING | dict(
    dataset="demo", image_size=64, depths=(1, 0, 0, 0), depths_decoder=(0, 0, 0, 0), scan_backend="torch"
)
SIZES = [(1, 64, 64), (3, 34, 64), (2, 33, 70), (1, 67, 35)]


ALONE = """
import sys, torch
file, images, extra = sys.argv[1], torch.load(sys.argv[2]), {"metadata.json": ""}
call = torch.export.load(file, extra_files=extra).module()
with torch.inference_mode():
    found = [call(batch) for batch in images]
metadata = extra["metadata.json"]
torch.save([found, metadata if isinstance(metadata, str) else metadata.decode()], sys.argv[3])
assert not {name.split(".")[0] for name in sys.modules} & {"models", "utils", "configs", "export"}
"""


@pytest.fixture(scope="module", params=["onnx", "torch"])
def exported(request, tmp_path_factory):
    """(format, file, checkpoint, network): that of torch.export is for slices of volumes."""
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)  # or pytest keeps every guard of every size
    folder = tmp_path_factory.mktemp("export")
    config = (SynapseConfig if request.param == "torch" else ISICConfig)(**SMALL)
    torch.manual_seed(0)
    network = build_model(config).eval()
    with torch.no_grad():
        network.vmunet.final_conv.weight *= 10  # probabilities far from one half
    checkpoint, file = folder / "best.pth", folder / "network"
    save_checkpoint(checkpoint, {"model": network.state_dict(), "epoch": 1, "config": dataclasses.asdict(config)})
    export.main(ExportConfig(checkpoint=str(checkpoint), format=request.param, output=str(file)))
    return request.param, file, checkpoint, network


def images_of(network, size, seed=1):
    batch, height, width = size
    channels, scale = (3, 255) if network.num_classes == 1 else (1, 1)
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed)) * scale


def test_the_scan_of_exports_is_the_scan():
    with torch.no_grad():
        for shape in ((2, 5, 7, 16), (1, 1, 3, 8), (1, 4, 1, 8)):
            inputs = reference.make_inputs(*shape, R=4, dtype=torch.float64)
            torch.testing.assert_close(exportable.scan(*inputs), reference.scan(*inputs))
        inputs = reference.make_inputs(1, 4, 3, 8)  # the steps themselves instead of their factors
        torch.testing.assert_close(exportable.scan(*inputs), reference.scan(*inputs))


@pytest.mark.slow
def test_any_size_and_batch_gives_the_same_probabilities_without_this_repository(exported, tmp_path):
    format, file, _, network = exported
    images = [images_of(network, size) for size in SIZES]
    with torch.inference_mode():
        expected = [network.predict(batch) for batch in images]
    if format == "onnx":  # ONNX Runtime knows no Python
        found = list(map(load(file.read_bytes(), format), images))
    else:
        torch.save(images, tmp_path / "images.pt")
        arguments = [file, tmp_path / "images.pt", tmp_path / "found.pt"]
        subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True, cwd=tmp_path, timeout=120)
        found, metadata = torch.load(tmp_path / "found.pt")
        metadata = json.loads(metadata)
        assert metadata["image_size"] == 64 and metadata["num_classes"] == network.num_classes
        assert network.num_classes == 9
        assert metadata["class_names"][:2] == ["background", "aorta"] and "-125..275" in metadata["preprocessing"]
    for probabilities, right in zip(found, expected, strict=True):
        assert right.std() > 0.01
        torch.testing.assert_close(probabilities, right, atol=TOLERANCE, rtol=0)


def test_the_graph_holds_standard_operators_and_does_not_grow(exported):
    format, file, _, _ = exported
    if format != "onnx":
        pytest.skip("a question about ONNX")
    import onnx

    model = onnx.load_from_string(file.read_bytes())
    functions = {function.name for function in model.functions}
    for graph in (model.graph, *model.functions):
        assert all(node.domain == "" or node.op_type in functions for node in graph.node)
    assert (
        functions == {"Backwards", "Sequences", "SoftPlus", "Recurrence", "CrossScan"} and len(model.graph.node) < 500
    )
    image, probabilities = model.graph.input[0], model.graph.output[0]
    assert (image.name, probabilities.name) == ("images", "probabilities")
    for value in (image, probabilities):
        free = [dimension.dim_param for dimension in value.type.tensor_type.shape.dim]
        assert free == ["batch", "", "height", "width"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["image_size"] == "64" and metadata["normalization"] == "minmax"
    assert json.loads(metadata["class_names"]) == ["foreground"] and metadata["threshold"] == "0.5"


@pytest.mark.slow
def test_openvino_opens_the_file_once_its_functions_are_inlined(exported):
    format, file, _, network = exported
    openvino = pytest.importorskip("openvino")
    if format != "onnx":
        pytest.skip("a question about ONNX")
    import onnx.inliner

    inlined = onnx.inliner.inline_local_functions(onnx.load_from_string(file.read_bytes())).SerializeToString()
    call = openvino.compile_model(openvino.Core().read_model(inlined), "CPU")
    for size in SIZES:
        images = images_of(network, size)
        with torch.inference_mode():
            expected = network.predict(images).numpy()
        assert abs(call(images.numpy())[0] - expected).max() < 1e-3  # on photographs, with isic17, 3e-4


def test_the_operator_needs_a_header_a_compiler_and_onnx(exported, tmp_path, monkeypatch):
    format, _, checkpoint, _ = exported
    config = ExportConfig(
        checkpoint=str(checkpoint), format=format, output=str(tmp_path / "new.onnx"), custom_op=str(tmp_path)
    )
    if format != "onnx":
        with pytest.raises(ValueError, match=f"--custom-op: found --format {format}, expected onnx"):
            export.main(config)
        return
    with pytest.raises(ValueError, match=f"--custom-op {tmp_path}: found no onnxruntime_c_api.h"):
        export.main(config)
    (tmp_path / "onnxruntime_c_api.h").write_text("#error not this one")
    with pytest.raises(ValueError, match="(?s)--custom-op: c.* ended with status .*not this one"):
        export.main(config)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="--custom-op: found no compiler 'no-such-compiler'"):
        export.main(config)
    (tmp_path / "new.so").touch()
    with pytest.raises(ValueError, match=f"--custom-op: found the file {tmp_path}/new.so, expected none"):
        export.main(config)


def test_files_are_not_overwritten(exported):
    format, file, checkpoint, _ = exported
    with pytest.raises(ValueError, match="--output .*network: found"):
        export.main(ExportConfig(checkpoint=str(checkpoint), format=format, output=str(file)))


def test_a_file_that_computes_something_else_is_not_written(exported, tmp_path, monkeypatch):
    format, _, checkpoint, _ = exported
    if format != "torch":
        pytest.skip("the same for all formats")
    monkeypatch.setattr(export.Exported, "forward", lambda self, images: images.sigmoid())
    with pytest.raises(ValueError, match=f"--format {format}: .*{TOLERANCE:.0e}"):
        export.main(ExportConfig(checkpoint=str(checkpoint), format=format, output=str(tmp_path / "wrong")))
    assert not (tmp_path / "wrong").exists()


# ---- packed weights


@pytest.fixture
def trained(tmp_path):
    """The folder of a run with values of its machine, and its network."""
    config = ISICConfig(**SMALL, data_path="/home/someone/data", work_dir="/home/someone/runs", threshold=0.4)
    torch.manual_seed(0)
    network = build_model(config).eval()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    state = {"model": network.state_dict(), "epoch": 7, "config": dataclasses.asdict(config)}
    for name in ("best.pth", "latest.pth"):
        save_checkpoint(tmp_path / "run/checkpoints" / name, state)
    (tmp_path / "run/metrics.json").write_text('{"dsc": 0.9, "split": "val"}')
    return tmp_path / "run", network


def test_packed_weights_hold_what_is_known_of_the_network_and_nothing_of_the_machine(trained, caplog):
    run, network = trained
    with caplog.at_level(logging.INFO, "vmunet"):
        export.main(ExportConfig(checkpoint=str(run), format="weights"))
    file = run / "checkpoints/best.h5"  # beside the checkpoint
    again, config, checkpoint = load_trained(file)
    assert b"someone" not in file.read_bytes() and not NON_MODEL_FIELDS & checkpoint.config.keys()
    assert (config.threshold, config.image_size, config.dims, config.num_workers) == (0.4, 64, SMALL["dims"], -1)
    about = checkpoint.about
    assert about["class_names"] == ["foreground"] and about["normalization"] == "minmax" and about["threshold"] == 0.4
    assert about["metrics"] == {"dsc": 0.9, "split": "val"} and about["epoch"] == 7
    assert about["initial_weights"] == "none"
    assert about["checkpoint_sha256"] == read_checkpoint(run).sha256
    logged = re.findall(r"(\d+ x 3 x \d+ x \d+): .* (\d\.\de-\d+)", caplog.text)
    assert [size for size, _ in logged] == ["1 x 3 x 64 x 64", "3 x 3 x 64 x 64", "2 x 3 x 77 x 57"]
    (images,) = [batch for batch in export.sample_batches((), config, 3) if len(batch) == 3]
    with torch.inference_mode():
        difference = (again.predict(images) - network.predict(images)).abs().max().item()
    assert f"{difference:.1e}" == logged[1][1] and 0 < difference < 1e-2


def test_weights_packed_again_are_the_same_file(trained, tmp_path):
    run, _ = trained
    for source, output in ((run, "a.h5"), (tmp_path / "a.h5", "b.h5")):
        export.main(ExportConfig(checkpoint=str(source), format="weights", output=str(tmp_path / output)))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_hub_folder_is_the_network_its_preprocessing_and_a_card_with_its_scores(trained, tmp_path):
    run, network = trained
    (run / "checkpoints/best.md").write_text("# Tiny\n\n![picture](a.png)\nIt fails on hair.\n")
    (run / "checkpoints/a.png").write_bytes(b"a picture")
    export.main(ExportConfig(checkpoint=str(run), format="hub", output=str(tmp_path / "tiny")))
    again, config, _ = load_trained(tmp_path / "tiny")
    assert (config.threshold, config.image_size, config.normalization) == (0.4, 64, "minmax")
    loaded = VMUNet.from_pretrained(tmp_path / "tiny")
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor) and torch.equal(loaded.state_dict()[name], tensor)
    files = {path.name: path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "a.png"}
    card = files["README.md"].decode()
    assert "- test, dsc: 0.9000" in card and "![picture](a.png)\nIt fails on hair." in card
    assert not any(b"someone" in content for content in files.values())
    with pytest.raises(ValueError, match="--output .*tiny: found"):
        export.main(ExportConfig(checkpoint=str(run), format="hub", output=str(tmp_path / "tiny")))


def test_scores_are_those_of_the_best_checkpoint_only(trained):
    """metrics.json is about best.pth."""
    export.main(ExportConfig(checkpoint=str(trained[0] / "checkpoints/latest.pth"), format="weights"))
    assert "metrics" not in read_checkpoint(trained[0] / "checkpoints/latest.h5").about


def test_exports_of_a_shipped_network_go_to_the_results(trained, tmp_path, monkeypatch):
    export.main(ExportConfig(checkpoint=str(trained[0]), format="weights", output=str(tmp_path / "vmunet_tiny.h5")))
    monkeypatch.setattr(named_weights, "FOLDER", tmp_path)
    monkeypatch.setitem(named_weights.SHIPPED, "tiny", "vmunet_tiny.h5")
    monkeypatch.setattr(export, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    export.main(ExportConfig(checkpoint="tiny", format="weights"))
    assert (tmp_path / "results/tiny.h5").read_bytes() == (tmp_path / "vmunet_tiny.h5").read_bytes()
    with pytest.raises(ValueError, match="--output .*results/tiny.h5: found"):
        export.main(ExportConfig(checkpoint="tiny", format="weights"))


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="a folder that not even root can write to")
def test_a_folder_that_can_not_be_written_is_named_before_the_work(trained):
    with pytest.raises(OSError, match="--output /proc/x.onnx: found /proc, which can't be written"):
        export.main(ExportConfig(checkpoint=str(trained[0]), output="/proc/x.onnx"))
