"""The result for one input: mask, measurements and pictures, and their files."""

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from PIL import Image

from inference.image_files import Picture
from inference.volume_inputs import Volume
from utils.files import write_atomically
from utils.plots import class_colours, draw_class_outlines, draw_labels, draw_outlines, encode_png
from utils.volume_plots import draw_volume


@dataclass
class Prediction:
    """The result for one input, in its own size."""

    mask: np.ndarray  # class numbers, uint8: (H, W), of volumes (S, H, W) in the orientation of training
    probabilities: np.ndarray | None  # float32 (C, H, W) or (C, S, H, W); C is 1 for a binary network
    class_names: list[str]  # of the classes 1, 2, ...
    source: Picture | Volume
    spacing: np.ndarray | None  # mm, in the order of the mask's axes; None if unknown
    colours: Sequence[str] = ()  # of the same classes, such as "#ff0000"; (): the default ones
    disagreement: np.ndarray | None = None  # float32, as the mask: see inference.ensemble.combine; None for one member

    @property
    def nbytes(self) -> int:
        """Size of its arrays in bytes."""
        values = self.source.slices if isinstance(self.source, Volume) else self.source.pixels
        arrays = (self.mask, self.probabilities, self.disagreement, values)
        return sum(array.nbytes for array in arrays if array is not None)

    def structures(self) -> list[dict[str, Any]]:
        """Return a row for each structure: pixels and their share; mm2 (images) or ml (volumes) if the spacing is
        known; the mean disagreement over all pixels if there are several members."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.class_names) + 1)
        size = None if self.spacing is None else float(np.prod(self.spacing))
        if isinstance(self.source, Volume):
            size = self.source.voxel_mm3  # axes may be sheared
        volume = self.mask.ndim == 3
        disagreement = {} if self.disagreement is None else {"disagreement": float(self.disagreement.mean())}
        return [
            {
                "structure": name,
                "class": c,
                "pixels": int(counts[c]),
                "share": float(counts[c] / self.mask.size),
                "area_mm2": "" if volume or size is None else float(counts[c] * size),
                "volume_ml": "" if not volume or size is None else float(counts[c] * size / 1000),
            }
            | disagreement
            for c, name in enumerate(self.class_names, start=1)
        ]

    def overlay(self, truth: np.ndarray | None = None) -> Image.Image:
        """Draw a PIL image: outlines for one class, colours for several; for a volume three planes above its slices.

        truth  class numbers (H, W) of an expert's mask of an image, to be outlined too, in green for one class"""
        if isinstance(self.source, Volume):
            colours = class_colours(len(self.class_names), self.colours)
            drawn = draw_volume(self.source.slices, self.mask, self.class_names, colours, spacing=self.spacing)
        elif len(self.class_names) == 1:
            drawn = draw_outlines(self.source.pixels, self.mask, truth)
        else:
            drawn = draw_labels(self.source.pixels, self.mask, colours=self.colours)
            if truth is not None:
                drawn = draw_class_outlines(drawn.transpose(2, 0, 1), truth, self.colours)
        return Image.fromarray(drawn)

    def save(
        self, folder: str | os.PathLike[str], name: str, overlay: bool = True, truth: np.ndarray | None = None
    ) -> None:
        """Write masks/NAME, overlays/NAME.png, for several members disagreement/NAME and, if they were asked for,
        probabilities/NAME, each atomically.

        Images become PNG files: masks hold 0 and 255, or class numbers with a palette; probabilities have 16 bits,
        65535 for 1; disagreement has 16 bits, 65535 for its maximum of 0.5. Overlays are PNG files; all else of volumes
        is NIfTI."""
        folder = Path(folder)
        exif = getattr(self.source, "exif", b"")
        if overlay:
            _write(folder / "overlays" / f"{name}.png", encode_png(np.asarray(self.overlay(truth)), exif=exif))
        if isinstance(self.source, Volume):
            for kind, values in (("probabilities", self.probabilities), ("disagreement", self.disagreement)):
                if values is not None:
                    nifti = self.source.to_nifti(values, np.float32)
                    nifti.set_data_dtype(np.uint16)  # scaled: exact to 1 / 65535
                    _write(folder / kind / f"{name}.nii.gz", _gzip(nifti))
            _write(folder / "masks" / f"{name}.nii.gz", _gzip(self.source.to_nifti(self.mask, np.uint8)))
            return
        if self.probabilities is not None:
            names = self.class_names if len(self.class_names) == 1 else ["background", *self.class_names]
            for structure, probability in zip(names, self.probabilities, strict=True):
                path = folder / "probabilities" / f"{name}_{structure.replace(' ', '_')}.png"
                _write(path, encode_png(_sixteen_bits(probability), exif=exif))
        if self.disagreement is not None:
            _write(folder / "disagreement" / f"{name}.png", encode_png(_sixteen_bits(2 * self.disagreement), exif=exif))
        binary = len(self.class_names) == 1
        palette = () if binary else [(0, 0, 0), *class_colours(len(self.class_names), self.colours)]
        _write(folder / "masks" / f"{name}.png", encode_png(255 * self.mask if binary else self.mask, palette, exif))


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Scale values 0..1 to 16-bit greys."""
    return (values.clip(0, 1) * 65535).round().astype(np.uint16)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)


def _gzip(nifti: Nifti1Image) -> bytes:
    return gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0)
