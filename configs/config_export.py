"""How to export a trained network. Reading it needs no PyTorch."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

Format = Literal["onnx", "torchscript", "torch", "weights"]


@dataclass(kw_only=True)
class ExportConfig:
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """a checkpoint, a run's folder, or isic17, which comes with this code"""
    format: Format = "onnx"  # onnx: ONNX Runtime and others; torchscript, torch: PyTorch; weights: this code
    output: str | None = None  # file to write; none: beside the checkpoint, with its name
    images: tuple[str, ...] = ()  # image files or folders to compare the outputs on
    kind: Literal["images", "volumes"] | None = None  # what a checkpoint without a stored configuration is for
    image_size: int | None = None  # side of the network's input; none: from the checkpoint
    debug: bool = False  # show the traceback of errors
