"""The cross-scan: a selective scan of a map in four directions, summed (SS2D, section 3.2 of the VM-UNet paper).

`reference.py` defines it; the other modules compute it faster, and `tests/models` compares them with it.
"""

from typing import TYPE_CHECKING

from ..first_use import at_first_use

if TYPE_CHECKING:
    from .scan import cross_selective_scan, gated_cross_scan

__all__ = ["cross_selective_scan", "gated_cross_scan"]
__getattr__ = at_first_use(__name__, dict.fromkeys(__all__, ".scan"))
