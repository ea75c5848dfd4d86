"""The result for one input: its mask, measurements and pictures, and how they are saved."""

import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from inference.inputs import Picture, Volume
from utils.files import write_atomically
from utils.plots import class_colours, draw_labels, draw_outlines, make_montage


@dataclass
class Prediction:
    """The result for one input, in its own size."""

    mask: np.ndarray  # class numbers, uint8: (H, W), of volumes (S, H, W) in the orientation of training
    probabilities: np.ndarray | None  # float32 (C, H, W) or (C, S, H, W); C is 1 for a binary network
    class_names: list[str]  # of the classes 1, 2, ...
    source: Picture | Volume
    spacing: np.ndarray | None  # mm, in the order of the mask's axes; None if unknown

    def structures(self):
        """A row for each structure: pixels, their share; where the spacing is known mm2 (images) or ml (volumes)."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.class_names) + 1)
        size = None if self.spacing is None else float(np.prod(self.spacing))
        volume = self.mask.ndim == 3
        return [
            {
                "structure": name,
                "class": c,
                "pixels": int(counts[c]),
                "share": float(counts[c] / self.mask.size),
                "area_mm2": "" if volume or size is None else float(counts[c] * size),
                "volume_ml": "" if not volume or size is None else float(counts[c] * size / 1000),
            }
            for c, name in enumerate(self.class_names, start=1)
        ]

    def overlay(self):
        """A PIL image: the outlines of one class, the colours of several; of a volume a sheet of slices."""
        if isinstance(self.source, Volume):
            buffer = io.BytesIO()
            figure = make_montage(self.source.slices, self.mask, self.class_names, self.spacing)
            figure.savefig(buffer, format="png", dpi=100)
            return Image.open(buffer)
        draw = draw_outlines if len(self.class_names) == 1 else draw_labels
        return Image.fromarray(draw(self.source.pixels, self.mask))

    def save(self, folder, name, overlay=True):
        """Writes masks/NAME, overlays/NAME.png and, if they were asked for, probabilities/NAME, each in one step.

        Masks of images are PNG: 0 and 255, or class numbers with a palette. Those of volumes are NIfTI."""
        folder = Path(folder)
        exif = getattr(self.source, "exif", b"")
        if overlay:
            _write(folder / "overlays" / f"{name}.png", _png(self.overlay(), exif))
        if isinstance(self.source, Volume):
            if self.probabilities is not None:
                nifti = self.source.to_nifti(self.probabilities, np.float32)
                nifti.set_data_dtype(np.uint16)  # scaled: exact to 1 / 65535
                _write(folder / "probabilities" / f"{name}.nii.gz", _gzip(nifti))
            _write(folder / "masks" / f"{name}.nii.gz", _gzip(self.source.to_nifti(self.mask, np.uint8)))
            return
        if self.probabilities is not None:
            names = self.class_names if len(self.class_names) == 1 else ["background", *self.class_names]
            for structure, probability in zip(names, self.probabilities, strict=True):
                picture = Image.fromarray((probability * 65535).round().astype(np.uint16))
                _write(folder / "probabilities" / f"{name}_{structure.replace(' ', '_')}.png", _png(picture, exif))
        if len(self.class_names) == 1:
            picture = Image.fromarray(255 * self.mask)
        else:
            picture = Image.fromarray(self.mask).convert("P")
            picture.putpalette(np.array([(0, 0, 0), *class_colours(len(self.class_names))], dtype=np.uint8).tobytes())
        _write(folder / "masks" / f"{name}.png", _png(picture, exif))


def _write(path, content):
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)


def _png(picture, exif):
    buffer = io.BytesIO()
    picture.save(buffer, format="png", exif=exif)
    return buffer.getvalue()


def _gzip(nifti):
    return gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0)
