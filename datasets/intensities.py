"""Intensities of volumes: detect their kind and scale them to 0..1, by the same rule for all file formats."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

log = logging.getLogger("vmunet")

Window = tuple[float, float]  # values that become 0 and 1
HU_WINDOW = (-125, 275)  # Hounsfield units that become 0 and 1
AIR = -500  # Hounsfield units: lower values are air, and only CT has them
FEW_VALUES, SAMPLE = 64, 100_000  # most distinct values of a label map; voxels that are checked first
OVERSHOOT = 0.5  # how far scaled values may exceed 0..1: interpolation overshoots, by 0.2 in published files


def kind_of_values(values: np.ndarray) -> Literal["scaled", "hounsfield", "unknown"]:
    """Classify finite values: scaled to 0..1, Hounsfield units (air about -1000, soft tissue above 0), or neither.

    Whole numbers from 0 to 1 are probably a mask and count as unknown."""
    low, high = values.min(), values.max()
    if -OVERSHOOT <= low and high <= 1 + OVERSHOOT:
        return "scaled" if (values != np.rint(values)).any() else "unknown"
    return "hounsfield" if low < HU_WINDOW[0] and high > 0 else "unknown"


def without_nan(values: np.ndarray, what: object, fill: float | None = None) -> np.ndarray:
    """Replace NaN, which some scanners write outside the field of view, by `fill`, or by the lowest other value.

    Raises ValueError, naming `what`, if all values are NaN or one is infinite."""
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
    log.warning("%s: %.3g %% of the values are NaN, treated as outside the scan (%g)", what, 100 * missing.mean(), fill)
    return np.where(missing, values.dtype.type(fill), values)


def scale_hu(volume: np.ndarray, window: Window = HU_WINDOW) -> np.ndarray:
    """Clip Hounsfield units (or other values, with their own window) and scale them to 0..1, float32."""
    low, high = window
    scaled = np.array(volume, dtype=np.float32)  # one copy, for a large volume
    np.clip(scaled, low, high, out=scaled)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return scaled


def to_unit(values: np.ndarray, what: object, window: Window | None = None, hounsfield: bool = True) -> np.ndarray:
    """Scale the values of a volume as for training, float32: by `window` if one is given; unchanged if they are scaled
    already; by HU_WINDOW if `hounsfield` is allowed and found. NaN becomes 0.

    Raises ValueError that names `what` and --window for other values, and as `without_nan` does."""
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
    expected = "Hounsfield units (air about -1000, soft tissue above 0) or " if hounsfield else ""
    help = "Give the values that become 0 and 1 with --window LOW HIGH; in Hounsfield units these are -125 and 275"
    raise ValueError(f"{what} holds values from {low:g} to {high:g}; expected {expected}values scaled to 0..1. {help}")


def few_values(values: np.ndarray) -> int:
    """Return the number of distinct values if they are a few whole numbers, as in a label map; else 0."""
    step = max(1, round((values.size / SAMPLE) ** (1 / values.ndim)))
    for part in (values[(slice(None, None, step),) * values.ndim], values):
        found = np.unique(part)
        if len(found) > FEW_VALUES or found[0] < 0 or (found != np.rint(found)).any():
            return 0
    return len(found)


@dataclass(frozen=True)
class Scaling:
    """The values of a volume that become 0 and 1; values beyond are clipped."""

    kind: Literal["window", "percentiles"]  # low and high are values, or percentiles of the values of each volume
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.kind == "percentiles" and not 0 <= self.low < self.high <= 100):
            raise ValueError(f"{self.kind} {self.low:g} {self.high:g}: expected a lower and a higher number")

    def check_kind(self, values: np.ndarray, modality: str | None, what: object) -> None:
        """Raise ValueError for a scan of another modality than in training: a window means CT, percentiles any other.

        modality: of a DICOM series; for other files the values show whether they are CT"""
        if modality is not None:
            other = modality != "CT" if self.kind == "window" else modality in ("CT", "PT")
            found = f"modality {modality}"
        else:
            lowest = np.fmin.reduce(values, axis=None)  # that is no NaN
            other, found = self.kind == "percentiles" and lowest < AIR, f"values down to {lowest:g}, as in CT"
        if other:
            expected = "CT" if self.kind == "window" else "MR"
            advice = "--window LOW HIGH or --insist predicts it"
            raise ValueError(f"{what}: found {found}, expected {expected} as in training by {self.kind}; {advice}")

    def __call__(self, values: np.ndarray, what: object) -> np.ndarray:
        """Return float32; NaN becomes 0. Raises ValueError for values of another kind than the window's, for a constant
        volume, and as `without_nan` does. Warns about values that look like labels."""
        lowest_for_nan = without_nan(values, what)
        if self.kind == "window":
            if not lowest_for_nan.min() <= self.low < lowest_for_nan.max():
                found = f"{lowest_for_nan.min():g} to {lowest_for_nan.max():g}, expected some below and some within"
                raise ValueError(
                    f"{what} holds values from {found} the window {self.low:g} to {self.high:g} (--window)"
                )
            return scale_hu(lowest_for_nan, (self.low, self.high))
        low, high = (float(value) for value in np.nanpercentile(values, (self.low, self.high)))
        if low == high:
            raise ValueError(f"{what}: {self.low:g} to {self.high:g} % of its values are {low:g}, a constant")
        if few := few_values(lowest_for_nan):
            log.warning("%s holds %d whole numbers only, like a label map", what, few)
        return scale_hu(lowest_for_nan, (low, high))
