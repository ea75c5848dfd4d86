"""The result for one input: mask, measurements and pictures, and their files."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.masks import MaskValue
from datasets.nifti import nibabel
from inference.image_files import Picture
from inference.volume_inputs import Volume
from utils.files import write_atomically
from utils.plots import Colour, class_colours, draw_class_outlines, draw_labels, draw_outlines, encode_png
from utils.volume_plots import draw_volume


@dataclass
class Prediction:
    """The result for one input, in its own size."""

    classes: np.ndarray  # class numbers, uint8: (H, W), of volumes (S, H, W) in the orientation of training
    probabilities: np.ndarray | None  # float32 (C, H, W) or (C, S, H, W); C is 1 for a binary network
    class_names: list[str]  # of the classes 1, 2, ...
    source: Picture | Volume
    spacing: np.ndarray | None  # mm, in the order of the axes; None if unknown
    colours: Sequence[str] = ()  # of the same classes, such as "#ff0000"; (): the default ones
    disagreement: np.ndarray | None = None  # float32, as `classes`: see inference.ensemble.combine; None for one member
    mask_values: Sequence[MaskValue] = ()  # of the classes 0, 1, ..., see inference.trained.mask_values

    @property
    def labels(self) -> list[int]:
        """The numbers of the classes 0, 1, ... in the mask. A mask with colours holds class numbers and a palette."""
        numbers = [value for value in self.mask_values if isinstance(value, int)]
        return numbers or list(range(len(self.class_names) + 1))

    @cached_property
    def mask(self) -> np.ndarray:
        """The labels that the network was trained on, in the shape of `classes`: uint8, uint16 or uint32."""
        labels = np.array(self.labels)
        if (labels == np.arange(len(labels))).all():
            return self.classes
        return labels.astype(np.min_scalar_type(labels.max()))[self.classes]

    @property
    def nbytes(self) -> int:
        """Size of its arrays in bytes."""
        values = self.source.slices if isinstance(self.source, Volume) else self.source.pixels
        arrays = (self.classes, self.probabilities, self.disagreement, values)
        return sum(array.nbytes for array in arrays if array is not None)

    def structures(self) -> list[dict[str, Any]]:
        """Return a row for each structure: its label in the mask as `class`; pixels and their share; mm2 (images) or ml
        (volumes) if the spacing is known; the mean disagreement over all pixels if there are several members."""
        parts = (np.bincount(part.ravel(), minlength=len(self.labels)) for part in self.classes)  # in int64
        counts = np.sum(list(parts), axis=0)
        size = None if self.spacing is None else float(np.prod(self.spacing))
        if isinstance(self.source, Volume):
            size = self.source.voxel_mm3  # axes may be sheared
        volume = self.classes.ndim == 3
        disagreement = {} if self.disagreement is None else {"disagreement": float(self.disagreement.mean())}
        return [
            {
                "structure": name,
                "class": self.labels[c],
                "pixels": int(counts[c]),
                "share": float(counts[c] / self.classes.size),
                "area_mm2": "" if volume or size is None else float(counts[c] * size),
                "volume_ml": "" if not volume or size is None else float(counts[c] * size / 1000),
            }
            | disagreement
            for c, name in enumerate(self.class_names, start=1)
        ]

    def overlay(self, truth: np.ndarray | None = None) -> Image.Image:
        """Draw a PIL image: outlines for one class, colours for several; for a volume three planes above its slices.

        truth  class numbers of an expert's mask, in the shape of `classes`, to be outlined too; for an image with
            one class in green"""
        if isinstance(self.source, Volume):
            colours = class_colours(len(self.class_names), self.colours)
            names = zip(self.labels[1:], self.class_names, strict=True)
            legend = [f"{label}: {name}" for label, name in names] if self.mask_values else self.class_names
            drawn = draw_volume(self.source.slices, self.classes, legend, colours, truth, self.spacing)
        elif len(self.class_names) == 1:
            drawn = draw_outlines(self.source.pixels, self.classes, truth)
        else:
            drawn = draw_labels(self.source.pixels, self.classes, colours=self.colours)
            if truth is not None:
                drawn = draw_class_outlines(drawn.transpose(2, 0, 1), truth, self.colours)
        return Image.fromarray(drawn)

    def save(
        self, folder: str | os.PathLike[str], name: str, overlay: bool = True, truth: np.ndarray | None = None
    ) -> None:
        """Write masks/NAME, overlays/NAME.png, with several members disagreement/NAME and, if requested,
        probabilities/NAME, each atomically.

        Images become PNG files: masks hold 0 and 255, greys of `mask_values`, or class numbers with a palette;
        probabilities have 16 bits, 65535 for 1; disagreement has 16 bits, 65535 for its maximum of 0.5. Overlays are
        PNG files; all else of volumes is NIfTI, and its masks name the labels in an extension of the header."""
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
            nifti = self.source.to_nifti(self.mask, self.mask.dtype)
            names = dict(zip(self.labels[1:], self.class_names, strict=True))
            nifti.header.extensions.append(
                nibabel.nifti1.Nifti1Extension("comment", json.dumps({"labels": names}).encode())
            )
            _write(folder / "masks" / f"{name}.nii.gz", _gzip(nifti))
            return
        if self.probabilities is not None:
            names = self.class_names if len(self.class_names) == 1 else ["background", *self.class_names]
            for structure, probability in zip(names, self.probabilities, strict=True):
                path = folder / "probabilities" / f"{name}_{structure.replace(' ', '_')}.png"
                _write(path, encode_png(_sixteen_bits(probability), exif=exif))
        if self.disagreement is not None:
            _write(folder / "disagreement" / f"{name}.png", encode_png(_sixteen_bits(2 * self.disagreement), exif=exif))
        binary, palette = len(self.class_names) == 1, list[Colour]()
        if not binary and self.mask is self.classes:  # class numbers are too dark to be told apart as greys
            colours = (value for value in self.mask_values if isinstance(value, tuple))
            defaults = [(0, 0, 0), *class_colours(len(self.class_names), self.colours)]
            palette = [(r, g, b) for r, g, b in colours] or defaults
        _write(folder / "masks" / f"{name}.png", encode_png(255 * self.mask if binary else self.mask, palette, exif))


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Scale values 0..1 to 16-bit greys."""
    return (values.clip(0, 1) * 65535).round().astype(np.uint16)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)


def _gzip(nifti: nibabel.Nifti1Image) -> bytes:
    return gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0)
