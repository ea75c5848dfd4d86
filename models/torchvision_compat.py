"""Imports torchvision, also beside a PyTorch that its compiled extension does not fit.

The registry's Linux torchvision is built for CUDA. Beside a CPU-only PyTorch its extension cannot be loaded, so the
operators nms and qnms are never defined; torchvision describes their output shapes all the same and its import dies
with "operator torchvision::nms does not exist". Declaring the two operators is enough: the transforms, all that is
used here, need no compiled code. Where torchvision imports as it is, nothing is declared.

Import this module before torchvision, and before anything that imports torchvision, such as timm.
"""

import sys

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare_operators() -> torch.library.Library:
    """Declares the operators that torchvision's extension would define; the caller keeps the result alive."""
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library


try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::nms does not exist" not in str(error):
        raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # sub-modules left over from the failed import would not be attached to the new one
    _library = declare_operators()
    import torchvision  # noqa: F401
