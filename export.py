"""A trained network as a file that runs without this repository: ONNX, or an exported PyTorch program.

    python export.py results/<run> --format onnx        # ONNX Runtime and others
    python export.py isic17 --custom-op INCLUDE         # and the scan compiled for ONNX Runtime, see docs/library.md
    python export.py isic17 --format torch              # torch.export.load, .pt2
    python export.py results/<run> --format weights     # for this code, less than half of best.pth
    python export.py results/<run> --format hub         # a folder, as others load and share networks

The exported network maps `images`, float32 (batch, channels, height, width), to `probabilities` (batch, classes,
height, width), for any batch and any size from 33 x 33 on (sides are padded to multiples of 32 and cropped inside). The
file's metadata describe how to prepare images: input size, normalisation, classes, threshold. The scan consists of
standard operators and loops; nothing is unrolled, so the graph has one size for all image sizes.

Before the file is written, it is run at several sizes and batches, on the images of --images or on random ones, and
compared with this code; a difference above 1e-4 is an error. The last lines of the log compare the speed.

`weights` is for this code, which reads the file like a checkpoint: the weights, most of them rounded to 16 bits
(models/weights/packed.py), with the configuration and the scores of the run. The log shows what the rounding changes.

`hub` is the folder of `save_pretrained`: model.safetensors, config.json with the preprocessing, and a model card with
what is known of the training and its scores. predict.py, `VMUNet.from_pretrained` and `Predictor` read it.
"""

from utils.start import run_process

import dataclasses
import io
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import timeit
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
import torch.fx.experimental._config as shape_config
import torch.nn.functional as F
import tyro
from torch import nn
from torch.export import Dim

from configs.options import MachineOptions, RunOptions, VolumeDataOptions, fields_of
from datasets.transforms import normalizer
from inference.image_files import read_picture
from inference.inputs import find_inputs
from inference.trained import TrainedNetwork, describe, load_trained
from models.cross_scan.export import DOMAIN, SOURCE, VERSION, exportable
from models.family import load as load_network
from models.hub import WEIGHTS
from models.network import STRIDE, SegmentationNetwork
from models.weights.packed import pack_weights, read_packed_weights
from utils.files import RESULTS, read_json, write_atomically
from utils.optional import optional
from utils.runs.command_line import run
from utils.runs.named_weights import BEST, SHIPPED, find_checkpoint

log = logging.getLogger("vmunet")

Format = Literal["onnx", "torch", "weights", "hub"]
Predict = Callable[[torch.Tensor], torch.Tensor]  # images to probabilities
DURATION = {"onnx": "about a minute", "torch": "a few minutes"}
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "weights": ".h5", "hub": "_hub"}
TOLERANCE = 1e-4  # of probabilities; of rounded weights none, because it depends on the weights
LARGEST = 8192  # side of an image that torch.export must be told
AXES = {0: "batch", 2: "height", 3: "width"}  # of images and probabilities that are free
TIMED_RUNS = 3
COMPILER_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")
# they log at every Split that no constant is folded there, and at every empty list that its type is assumed
VERBOSE_LOGGERS = ("onnxscript", "torch._export.serde.serialize")
PICTURE = re.compile(r"!\[[^]]*\]\(([\w.-]+)\)")  # of a card, beside it
ABOUT = ("title", "data", "run", "licence", "use", "checkpoint_sha256", "initial_weights")  # facts of the card
# fields of a config that are not stored with packed weights
NON_MODEL_FIELDS = fields_of(MachineOptions, RunOptions, VolumeDataOptions) - {"dataset"} | {"load_ckpt_path"}


@dataclass(kw_only=True)
class ExportConfig:
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """a checkpoint, a run's folder, or isic17, which comes with this code"""
    format: Format = "onnx"  # onnx: ONNX Runtime and others; torch: PyTorch; weights: this code; hub: a folder to share
    output: str | None = None  # file or folder to write; none: beside the checkpoint, of isic17 in results/
    images: tuple[str, ...] = ()  # image files or folders to compare the outputs on
    custom_op: str | None = None  # folder of onnxruntime_c_api.h: compile the scan, too, beside the file
    kind: Literal["images", "volumes"] | None = None  # what a checkpoint without a stored configuration is for
    image_size: int | None = None  # side of the network's input; none: from the checkpoint
    debug: bool = False  # show the traceback of errors


class Exported(nn.Module):
    """The module to export: `SegmentationNetwork.predict` without its checks, which exporters can't trace.

    channels: of the images; 1 if the network was trained on grey slices."""

    def __init__(self, network: SegmentationNetwork, channels: int):
        super().__init__()
        self.network = network
        self.repeat = network.input_channels // channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        H, W = images.shape[2:]
        images = images.repeat(1, self.repeat, 1, 1) if self.repeat > 1 else images
        rows, columns = (H + STRIDE - 1) // STRIDE * STRIDE, (W + STRIDE - 1) // STRIDE * STRIDE
        logits = self.network.logits(F.pad(images, (0, columns - W, 0, rows - H)))[:, :, :H, :W]
        return logits.sigmoid() if self.network.num_classes == 1 else logits.softmax(1)


def main(config: ExportConfig) -> None:
    log.setLevel(logging.INFO)
    output = output_of(config)
    if output.exists():
        raise ValueError(f"--output {output}: found such a path, expected none; remove it or name another")
    library = output.with_suffix(".so")
    if config.custom_op is not None and config.format != "onnx":
        raise ValueError(f"--custom-op: found --format {config.format}, expected onnx")
    if config.custom_op is not None and library.exists():
        raise ValueError(f"--custom-op: found the file {library}, expected none; remove it or name another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=output.parent).close()  # the export may take minutes
    except OSError as error:
        found = f"found {output.parent}, which can't be written ({error.strerror})"
        raise OSError(f"--output {output}: {found}; expected another folder") from error
    if config.format == "onnx":  # before anything is loaded
        for module in ("onnx", "onnxscript", "onnxruntime"):
            optional(module, "--format onnx")
    if config.custom_op is not None:
        compile_operator(Path(config.custom_op), library)
    trained = load_trained(config.checkpoint, config.kind, image_size=config.image_size)
    network = trained.network
    of_volumes = trained.config.of_volumes
    channels = 2 * trained.config.context + 1 if of_volumes else trained.config.input_channels
    if config.format == "hub":
        save_folder(trained, output)
        return
    batches = list(sample_batches(config.images, trained.config, channels))
    with torch.inference_mode():
        expected = [network.predict(images) for images in batches]  # before the network is changed
    if config.format == "weights":
        values = dataclasses.asdict(trained.config)
        stored = {name: value for name, value in values.items() if name not in NON_MODEL_FIELDS}
        content = pack_weights(network.state_dict(), stored, about(trained))
        weights, _, _ = read_packed_weights(content, "the packed weights")
        network.load_state_dict(weights)
        differences(network.predict, batches, expected)
    else:
        ours = seconds(network.predict, batches[0])
        metadata = describe(trained.config)
        metadata |= {"checkpoint_sha256": trained.checkpoint.sha256, "pytorch": torch.__version__}
        log.info("exporting to %s, %s", config.format, DURATION[config.format])
        content = export(network, channels, config.format, metadata)
        call = load(content, config.format)
        errors = differences(call, batches, expected)
        if config.custom_op is not None:
            fast = load(content, config.format, library)
            errors += differences(fast, batches, expected)
        if not all(error <= TOLERANCE for error in errors):  # nor if one is NaN
            if config.custom_op is not None:
                library.unlink()
            what = f"--format {config.format}: differs by {max(errors):.1e} from this code"
            raise ValueError(f"{what}, expected at most {TOLERANCE:.0e}; nothing is written")
        theirs, what = seconds(call, batches[0]), f"{by(batches[0].shape)}, {torch.get_num_threads()} threads"
        log.info("on the CPU (%s): %s %.3f s, this code %.3f s", what, config.format, theirs, ours)
        if config.custom_op is not None:
            log.info("with %s: %.3f s", library, seconds(fast, batches[0]))
    write_atomically(output, content)
    log.info("%s, %.1f MB", output, len(content) / 1e6)


def output_of(config: ExportConfig) -> Path:
    """Return the file to write: --output, or a file beside the checkpoint, for a shipped network in results/."""
    if config.output:
        return Path(config.output)
    if config.checkpoint in SHIPPED:
        return RESULTS / (config.checkpoint + ENDINGS[config.format])
    path = find_checkpoint(config.checkpoint)
    return path.with_name(path.stem + ENDINGS[config.format])


def by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def about(trained: TrainedNetwork) -> dict[str, Any]:
    """Return what readers of a packed file need to know: how images are prepared, where the weights come from, how they
    scored. Facts of a packed file that is packed again are kept."""
    checkpoint, facts = trained.checkpoint, {"checkpoint_sha256": trained.checkpoint.sha256}
    initial = checkpoint.config.get("load_ckpt_path")
    if isinstance(initial, str):
        facts["initial_weights"] = PurePosixPath(initial.replace("\\", "/")).name
    metrics = checkpoint.path.parents[1] / "metrics.json"
    if checkpoint.path.parts[-2:] == BEST.parts and metrics.is_file():
        facts["metrics"] = read_json(metrics)
    return facts | checkpoint.about | describe(trained.config)


def save_folder(trained: TrainedNetwork, folder: Path) -> None:
    """Write the folder of `save_pretrained` with what is known of the network in its card."""
    network = trained.network.prepared_as(dataclasses.asdict(trained.config))
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as place:
        part = Path(place, "hub")
        text = record(trained)
        network.save_pretrained(part, model_card_kwargs={"record": text})
        for name in PICTURE.findall(text):
            shutil.copyfile(trained.checkpoint.path.with_name(name), part / name)
        weights = load_network(part / WEIGHTS[0]).state_dict()
        if not all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items()):
            raise ValueError("--format hub: found other weights than the network's in the folder; nothing is written")
        part.rename(folder)
    log.info("%s: %s", folder, ", ".join(sorted(path.name for path in folder.iterdir())))


def record(trained: TrainedNetwork) -> str:
    """Return what is known of a network's training and scores, in Markdown: stored facts, and the text of a card
    beside its file, such as vmunet_isic17.md, without its title."""
    facts, config = about(trained), trained.config
    scores = facts.pop("metrics", {})
    lines = [f"- {name}: {facts[name]}" for name in ABOUT if name in facts]
    lines += [f"- {name}: {getattr(config, name)}" for name in ("dataset", "recipe", "epochs", "seed", "protocol")]
    lines += [f"- test, {name}: {value:.4f}" for name, value in scores.items() if isinstance(value, float)]
    card = trained.checkpoint.path.with_suffix(".md")
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return "\n".join(["## Training and scores", "", *lines, *text.splitlines()[1:]])


def export(network: SegmentationNetwork, channels: int, format: Format, metadata: dict[str, Any]) -> bytes:
    """Return the file of a network in the format onnx or torch. Its scan, if it has one, is replaced."""
    for module in network.modules():
        if hasattr(module, "scan_backend"):
            module.scan_backend = "exportable"
    write = to_onnx if format == "onnx" else to_torch
    with torch.no_grad():
        return write(Exported(network.eval().float().cpu(), channels).eval(), channels, metadata)


def to_onnx(model: Exported, channels: int, metadata: dict[str, Any]) -> bytes:
    onnx = optional("onnx", "--format onnx")
    from models.cross_scan.export import onnx_scan  # which imports onnxscript

    program = exported_program(model, channels, exportable.using(scan=onnx_scan.scan))
    with without_known_warnings():
        names: dict[str, Any] = dict(input_names=["images"], output_names=["probabilities"])
        names |= dict(dynamic_shapes={"images": AXES})
        exported = torch.onnx.export(program, **names, opset_version=onnx_scan.OPSET, verbose=False)
    assert exported is not None  # with dynamo, the default
    proto = exported.model_proto
    for axis, name in AXES.items():  # which the exporter describes by a formula, as it pads and crops
        proto.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name
    called = any(node.domain == DOMAIN for node in proto.graph.node)  # not by a baseline
    proto.functions.extend(onnx_scan.functions() if called else [])
    if called and all(entry.domain != DOMAIN for entry in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def to_torch(model: Exported, channels: int, metadata: dict[str, Any]) -> bytes:
    program, buffer = exported_program(model, channels, exportable.using(loop=exportable.graph_loop)), io.BytesIO()
    with without_known_warnings():
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


def exported_program(model: Exported, channels: int, scan: AbstractContextManager) -> torch.export.ExportedProgram:
    """Return torch.export's program with free batch, height and width; `scan` replaces parts of the scan.

    Sizes are treated as unknown even where the example would decide ("backed_size_oblivious"): otherwise what it
    happens to be, such as more than one image, becomes a condition on all inputs."""
    height, width = (Dim(name, min=STRIDE + 1, max=LARGEST) for name in ("height", "width"))
    shapes = {"images": {0: Dim("batch"), 2: height, 3: width}}
    example = torch.rand(3, channels, 70, 100)
    oblivious = shape_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]  # it is made at runtime
    with without_known_warnings(), scan, oblivious:
        program = torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)
    # One condition remains, that a batch has several images: PyTorch chooses a convolution's implementation by it, also
    # without oneDNN. One image goes through the same operators; the comparison with this code includes it.
    program._guards_code = [guard for guard in program._guards_code if "size()[0] > 1" not in guard]
    return program


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Within the block, ignore the warnings of PyTorch's exporters that say nothing about the result."""
    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # PyTorch's own code, deep inside torch.export
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        yield


def differences(call: Predict, batches: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    """Return and log the largest difference of the probabilities of each batch."""
    errors = []
    with torch.inference_mode():
        for images, probabilities in zip(batches, expected, strict=True):
            errors.append((call(images) - probabilities).abs().max().item())
            log.info("%s: largest difference from this code %.1e", by(images.shape), errors[-1])
    return errors


def compile_operator(include: Path, library: Path) -> None:
    """Compile the scan (models/onnx/cross_scan.cc) for this machine's processor as a library of ONNX Runtime.

    include: the folder of its header"""
    if not (include / "onnxruntime_c_api.h").is_file():
        where = "the folder include/ of a release of ONNX Runtime for C and C++; pip installs none"
        raise ValueError(f"--custom-op {include}: found no onnxruntime_c_api.h, expected {where}")
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "library.so")
        command = [compiler, *COMPILER_FLAGS, f"-I{include}", str(SOURCE), "-o", str(built)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise ValueError(f"--custom-op: found no compiler {compiler!r} ({error}), expected GCC or Clang") from error
        if done.returncode != 0:
            raise ValueError(f"--custom-op: {compiler} ended with status {done.returncode}, expected 0:\n{done.stderr}")
        write_atomically(library, built.read_bytes())


def load(content: bytes, format: Format, library: Path | None = None) -> Predict:
    """Return the exported network as a function of images, from the bytes of its file; library: of the scan."""
    if format == "onnx":
        runtime = optional("onnxruntime", "--format onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        if library is not None:
            options.register_custom_ops_library(str(library.resolve()))
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with without_known_warnings():
        return torch.export.load(io.BytesIO(content)).module()


def sample_batches(paths: Sequence[str], config: Any, channels: int) -> Iterator[torch.Tensor]:
    """Yield batches, of several numbers and sizes of images, as the network gets them: of files, or random ones."""
    size, generator = config.image_size, torch.Generator().manual_seed(0)
    if paths and config.of_volumes:
        raise ValueError("--images: found a value, but the network is for volumes")
    pictures = [read_picture(item).pixels for item in find_inputs(paths)[:3]] if paths else []
    for batch, (height, width) in ((1, (size, size)), (3, (size, size)), (2, (size + 13, max(40, size - 7)))):
        if not pictures:
            yield torch.rand(batch, channels, height, width, generator=generator) * (1 if config.of_volumes else 255)
            continue
        normalize = normalizer(config.normalization, config.input_channels)
        chosen = [normalize(pictures[i % len(pictures)]) for i in range(batch)]
        yield torch.stack([F.interpolate(p[None], (height, width), mode="bilinear")[0].float() for p in chosen])


def seconds(call: Predict, images: torch.Tensor) -> float:
    """Return the duration of the shortest of a few runs, after one to warm up."""
    return min(timeit.repeat(lambda: call(images), number=1, repeat=1 + TIMED_RUNS)[1:])


def command() -> None:
    run(main, ExportConfig)


if __name__ == "__main__":
    run_process(command)
