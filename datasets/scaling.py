"""From the intensities of a volume to 0..1."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from datasets.files import check_finite


@dataclass(frozen=True)
class Scaling:
    """Values that become 0 and 1; what lies beyond is clipped."""

    kind: Literal["window", "percentiles"]  # low and high are values, or percentiles of the values of each volume
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.kind == "percentiles" and not 0 <= self.low < self.high <= 100):
            raise ValueError(f"{self.kind} {self.low:g} {self.high:g}: expected a lower and a higher number")

    def __call__(self, volume: np.ndarray, what: str) -> np.ndarray:
        """float32 in the volume's shape. Raises ValueError, naming `what`, for NaN and for constant volumes."""
        values = check_finite(np.asarray(volume, dtype=np.float32), what)
        low, high = self.low, self.high
        if self.kind == "percentiles":
            low, high = (float(value) for value in np.percentile(values, (low, high)))
            if low == high:
                raise ValueError(
                    f"{what}: {self.low:g} and {self.high:g} % of its values are at most {low:g}, a constant"
                )
        return (np.clip(values, low, high) - np.float32(low)) / np.float32(high - low)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
