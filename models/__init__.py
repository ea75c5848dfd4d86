"""VM-UNet and its family as a library. Installed it is the package `vmunet`; the scripts of the repository import it
from this folder, as `models`. So it imports nothing else of the repository, and its own modules relatively.
"""

from .cpu_settings import tune_cpu
from .cross_scan import cross_selective_scan
from .family import NETWORKS, build_network, load
from .ultralight import UltraLightVMUNet
from .vmunet.pretrained import load_pretrained
from .vmunet.vmunet import VMUNet
from .vmunet.vmunetv2 import VMUNetV2
from .weights.reading import read_weights

__all__ = [
    "NETWORKS",
    "UltraLightVMUNet",
    "VMUNet",
    "VMUNetV2",
    "build_network",
    "cross_selective_scan",
    "load",
    "load_pretrained",
    "read_weights",
    "tune_cpu",
]
