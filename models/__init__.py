"""VM-UNet and its family as a library. Installed it is the package `vmunet`; the scripts of the repository import it
from this folder, as `models`. So it imports nothing else of the repository, and its own modules relatively.

A name is imported when it is first used: neither `import vmunet` nor the command `vmunet --help` waits for PyTorch.
"""

from typing import TYPE_CHECKING

from .first_use import at_first_use

if TYPE_CHECKING:
    from .cpu_settings import tune_cpu as tune_cpu
    from .cross_scan import cross_selective_scan as cross_selective_scan
    from .family import NETWORKS as NETWORKS
    from .family import build_network as build_network
    from .family import load as load
    from .ultralight import UltraLightVMUNet as UltraLightVMUNet
    from .vmunet.pretrained import load_pretrained as load_pretrained
    from .vmunet.vmunet import VMUNet as VMUNet
    from .vmunet.vmunetv2 import VMUNetV2 as VMUNetV2
    from .weights.reading import read_weights as read_weights

MODULES = {
    "NETWORKS": ".family",
    "UltraLightVMUNet": ".ultralight",
    "VMUNet": ".vmunet.vmunet",
    "VMUNetV2": ".vmunet.vmunetv2",
    "build_network": ".family",
    "cross_selective_scan": ".cross_scan",
    "load": ".family",
    "load_pretrained": ".vmunet.pretrained",
    "onnx": ".onnx",
    "read_weights": ".weights.reading",
    "tune_cpu": ".cpu_settings",
}
__all__ = [*MODULES]
if __name__ == "vmunet":  # the installed package holds the rest of the repository too (setup.py)
    MODULES["Predictor"] = ".inference"

__getattr__ = at_first_use(__name__, MODULES, {"Predictor": "pip install 'vmunet[predict]'"})


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
