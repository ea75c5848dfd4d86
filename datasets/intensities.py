"""One rule for the intensities of volumes, whatever file they come from: what they are, and how they become 0..1."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

log = logging.getLogger("vmunet")

Window = tuple[float, float]  # values that become 0 and 1
HU_WINDOW = (-125, 275)  # Hounsfield units that become 0 and 1
OVERSHOOT = 0.5  # how far scaled values may lie beyond 0..1; interpolation overshoots, published files by 0.2


def kind_of_values(values: np.ndarray) -> Literal["scaled", "hounsfield", "unknown"]:
    """What finite values are: scaled to 0..1, Hounsfield units (air is about -1000, soft tissue above 0), or neither.

    Whole numbers from 0 to 1 are a mask, and unknown."""
    low, high = values.min(), values.max()
    if -OVERSHOOT <= low and high <= 1 + OVERSHOOT:
        return "scaled" if (values != np.rint(values)).any() else "unknown"
    return "hounsfield" if low < HU_WINDOW[0] and high > 0 else "unknown"


def without_nan(values: np.ndarray, what: object, fill: float | None = None) -> np.ndarray:
    """Values with NaN, which some scanners write outside the field of view, as `fill`, or as the lowest of the others.

    Raises ValueError, naming `what`, if all are NaN or one is infinite."""
    if values.dtype.kind != "f":
        return values
    missing = np.isnan(values)
    if missing.all():
        raise ValueError(f"{what} holds NaN everywhere, expected values of a scan")
    if np.isinf(values).any():
        raise ValueError(f"{what} holds infinite values, expected values of a scan")
    if not missing.any():
        return values
    fill = float(values[~missing].min()) if fill is None else fill
    log.warning("%s: %.3g %% of the values are NaN, taken as outside the scan (%g)", what, 100 * missing.mean(), fill)
    return np.where(missing, values.dtype.type(fill), values)


def scale_hu(volume: np.ndarray, window: Window = HU_WINDOW) -> np.ndarray:
    """Hounsfield units (or other values, with their own window) clipped and scaled to 0..1, float32."""
    low, high = window
    return (np.clip(np.asarray(volume, dtype=np.float32), low, high) - np.float32(low)) / np.float32(high - low)


def to_unit(values: np.ndarray, what: object, window: Window | None = None, hounsfield: bool = True) -> np.ndarray:
    """Values of a volume as training has them, float32: by the `window` if one is given; as they are if they are scaled
    already; by HU_WINDOW if `hounsfield` units can be meant and are found. NaN becomes 0.

    Raises ValueError that names `what` and --window for other values, and see `without_nan`."""
    finite = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if finite.size == 0 or window is not None:
        low, high = window or HU_WINDOW
        return scale_hu(without_nan(values, what, low), (low, high))
    kind, low, high = kind_of_values(finite), float(finite.min()), float(finite.max())
    if kind == "scaled":
        return np.ascontiguousarray(without_nan(values, what, 0), dtype=np.float32)
    if kind == "hounsfield" and hounsfield:
        log.info("%s: Hounsfield units %g to %g clipped to %g..%g and scaled to 0..1", what, low, high, *HU_WINDOW)
        return scale_hu(without_nan(values, what, HU_WINDOW[0]))
    expected = "values scaled to 0..1"
    if hounsfield:
        expected = f"Hounsfield units (air about -1000, soft tissue above 0) or {expected}"
    raise ValueError(
        f"{what} holds values from {low:g} to {high:g}; expected {expected}. Say with --window LOW HIGH which values "
        "become 0 and 1; in Hounsfield units these are -125 and 275"
    )


@dataclass(frozen=True)
class Scaling:
    """Which values of a volume become 0 and 1; what lies beyond is clipped."""

    kind: Literal["window", "percentiles"]  # low and high are values, or percentiles of the values of each volume
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.kind == "percentiles" and not 0 <= self.low < self.high <= 100):
            raise ValueError(f"{self.kind} {self.low:g} {self.high:g}: expected a lower and a higher number")

    def __call__(self, values: np.ndarray, what: object) -> np.ndarray:
        """float32 in the shape of `values`; NaN becomes 0. Raises ValueError, naming `what`, for constant volumes, and
        see `without_nan`."""
        if self.kind == "window":
            return scale_hu(without_nan(values, what, self.low), (self.low, self.high))
        lowest_for_nan = without_nan(values, what)
        low, high = (float(value) for value in np.nanpercentile(values, (self.low, self.high)))
        if low == high:
            raise ValueError(f"{what}: {self.low:g} to {self.high:g} % of its values are {low:g}, a constant")
        return scale_hu(lowest_for_nan, (low, high))
