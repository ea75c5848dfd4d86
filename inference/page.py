"""What the page of app.py keeps of a browser tab and shows of it: predictions, areas, pictures, files to download."""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from datasets.files import MAX_VALUES
from inference.inputs import Input, search, unique_names
from inference.prediction import Prediction
from inference.predictor import Predictor
from inference.trained import describe
from inference.volumes import Volume
from utils.files import MAX_PIXELS, write_rows
from utils.plots import PREDICTION, Colour, class_colours
from utils.runs.shipped import SHIPPED
from utils.volume_plots import draw_slice

LARGEST_KEPT = 2**32  # bytes of the results of one tab
LARGEST_NUMBER = 8  # bytes of a number in a file: the largest input that is read, uncompressed, bounds an upload
SMALLEST_SIDE, LARGEST_SIDE = 768, 2048  # pixels of the longer side of a picture on the page
SERIES = "series"  # how the only DICOM series of an upload is called


@dataclass
class Kept:
    """A file, or a DICOM series, and its prediction."""

    name: str  # of its results, no other has it
    file: str
    result: Prediction


@dataclass
class Session:
    """What one browser tab has uploaded."""

    threshold: float  # of networks of one class
    pixel_size: float | None = None  # mm, of images
    kept: list[Kept] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # a sentence for each file

    @property
    def nbytes(self) -> int:
        return sum(one.result.nbytes for one in self.kept)

    def find(self, name: str | None) -> Kept | None:
        """The file of this name, else the first; None if there is none."""
        return next((one for one in self.kept if one.name == name), self.kept[0] if self.kept else None)

    def emptied(self) -> "Session":
        """One without files."""
        return Session(self.threshold, self.pixel_size)

    def decide(self, threshold: float, pixel_size: float | None) -> None:
        """Makes all masks and areas anew; the network is not asked again."""
        self.threshold, self.pixel_size = threshold, pixel_size
        for one in self.kept:
            one.result = at_pixel_size(at_threshold(one.result, self.threshold), pixel_size)


def largest_upload(predictor: Predictor) -> int:
    """Bytes of the largest file that `Predictor` would read."""
    volumes = predictor.volumes or predictor.options.insist
    return LARGEST_NUMBER * (MAX_VALUES if volumes else MAX_PIXELS)


def about(predictor: Predictor, names: Sequence[str]) -> str:
    """One line: what the network is, what it was trained on, and what it is not."""
    network = describe(predictor.config)
    kind = "volumes" if predictor.volumes else "images"
    shipped = [SHIPPED[name] for name in names if name in SHIPPED]
    card = f" How well it does and where it fails: pretrained_weights/{Path(shipped[0]).stem}.md." if shipped else ""
    return (
        f"Not a medical device: for research and teaching. Network {' + '.join(Path(n).name for n in names)}: "
        f"{network['network']}, trained on {kind} of the data set {network['dataset']}; of any others it knows nothing."
        f"{card} What you drop here stays on this computer."
    )


# ---- prediction


def add_uploads(
    session: Session,
    predictor: Predictor,
    uploads: Iterable[Path],
    folder: Path,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> list[Kept]:
    """Predicts uploaded files, which may belong together as the slices of a DICOM series do. Returns what was added to
    the session; a file that can't be used costs only itself and leaves its sentence in `left_out`. `folder` takes links
    to them meanwhile."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        together = Path(temporary).resolve() / SERIES
        _lay_together(uploads, together)

        def own(text: str) -> str:
            """A message without the folder of this process, which says nothing to who uploaded the file."""
            return text.replace(f"{together}{os.sep}", "").replace(f"{together.parent}{os.sep}", "")

        def report(item: Input, error: Exception) -> None:
            text = str(error) or type(error).__name__
            session.left_out.append(own(text if str(item.path) in text else f"{item.path}: {text}"))

        found = search([together])
        session.left_out += [own(f"{one.path} {one.reason}") for one in found.left_out]
        names = dict(zip(found.inputs, unique_names(found.inputs), strict=True))
        added = list[Kept]()
        total, size = len(found.inputs), session.nbytes
        progress(0, total)
        for number, (item, result) in enumerate(predictor.predict_all(found.inputs, report), 1):
            size += result.nbytes
            if size > LARGEST_KEPT:
                report(
                    item, ValueError(f"found {size} bytes of results on this page, expected {LARGEST_KEPT}; start over")
                )
                size -= result.nbytes
            else:
                result = at_pixel_size(at_threshold(result, session.threshold), session.pixel_size)
                name = _free_name(names[item], [one.name for one in session.kept + added])
                added.append(Kept(name, own(str(item.path)), result))
            progress(number, total)
    session.kept += added
    return added


def _lay_together(uploads: Iterable[Path], folder: Path) -> None:
    """Links files into one folder, those of a name that is taken into another below it."""
    folder.mkdir()
    for path in uploads:
        place, number = folder, 1
        while (place / path.name).exists():
            number += 1
            place = folder / str(number)
        place.mkdir(exist_ok=True)
        try:
            os.link(path, place / path.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, place / path.name)


def _free_name(name: str, taken: Sequence[str]) -> str:
    used = {other.casefold() for other in taken}
    candidates = [name, *(f"{name}_{number}" for number in range(2, len(used) + 2))]
    return next(one for one in candidates if one.casefold() not in used)


def at_threshold(result: Prediction, threshold: float) -> Prediction:
    """A prediction of one class at another threshold, decided as `Predictor` does; one of several classes as it is."""
    if len(result.class_names) > 1 or result.probabilities is None:
        return result
    mask = (result.probabilities[0] >= np.float32(threshold)).astype(np.uint8)
    return dataclasses.replace(result, mask=mask)


def at_pixel_size(result: Prediction, mm: float | None) -> Prediction:
    """The prediction of an image whose pixels are squares of `mm`, None: unknown; that of a volume as it is."""
    if isinstance(result.source, Volume):
        return result
    return dataclasses.replace(result, spacing=np.full(2, mm) if mm and mm > 0 else None)


# ---- what is shown


def colours_of(result: Prediction) -> list[Colour]:
    """The colours of the classes 1, 2, ... in `draw`."""
    if len(result.class_names) == 1 and not isinstance(result.source, Volume):
        return [PREDICTION]
    return class_colours(len(result.class_names), result.colours)


def draw(result: Prediction, number: int = 0) -> Image.Image:
    """The picture of an image, turned as viewers turn it, or of one slice of a volume."""
    if isinstance(result.source, Volume):
        colours = colours_of(result)
        pixels = draw_slice(result.source.slices, result.mask, number, colours, result.spacing, SMALLEST_SIDE)
        return Image.fromarray(pixels)
    picture = result.overlay()
    picture.getexif().load(result.source.exif)
    picture = ImageOps.exif_transpose(picture)
    side = min(max(SMALLEST_SIDE, *picture.size), LARGEST_SIDE)
    return ImageOps.contain(picture, (side, side))


def slices_of(result: Prediction) -> int:
    """How many there are; 0 of an image."""
    return len(result.mask) if isinstance(result.source, Volume) else 0


def middle_slice(result: Prediction) -> int:
    """The slice with the most of what was found; the middle one if nothing was."""
    found = np.count_nonzero(result.mask, axis=(1, 2))
    return int(found.argmax()) if found.any() else len(found) // 2


def measurements(kept: Sequence[Kept]) -> list[dict[str, str]]:
    """Rows as a person reads them, a structure each; columns that no row has a value for are left out."""
    rows = []
    for one in kept:
        for row in one.result.structures():
            of_volume = isinstance(one.result.source, Volume)
            area, volume = row["area_mm2"], row["volume_ml"]
            rows.append(
                {
                    "file": one.file,
                    "structure": row["structure"],
                    "pixels": "" if of_volume else f"{row['pixels']:,}",
                    "voxels": f"{row['pixels']:,}" if of_volume else "",
                    "share": f"{row['share']:.2%}",
                    "mm²": f"{area:,.2f}" if area != "" else "",
                    "mm³": f"{1000 * volume:,.0f}" if volume != "" else "",
                    "ml": f"{volume:,.2f}" if volume != "" else "",
                    "disagreement": f"{row['disagreement']:.4f}" if "disagreement" in row else "",
                }
            )
    columns = [column for column in (rows[0] if rows else ()) if any(row[column] for row in rows)]
    return [{column: row[column] for column in columns} for row in rows]


# ---- download


def save_masks(kept: Sequence[Kept], folder: Path, probabilities: bool = False) -> Path:
    """Writes masks as predict.py does. Returns the file to download: NAME_mask with its ending or, where there is more
    than one mask, a zip file of the folders of predict.py and structures.csv."""
    results = folder / "masks"
    results.mkdir(parents=True)
    for one in kept:
        result = one.result if probabilities else dataclasses.replace(one.result, probabilities=None)
        result.save(results, one.name, overlay=False)
    files = [path for path in results.rglob("*") if path.is_file()]
    if len(files) == 1:
        name = kept[0].name
        return files[0].rename(folder / f"{name}_mask{files[0].name.removeprefix(name)}")
    rows = [{"name": one.name, "input": one.file, **row} for one in kept for row in one.result.structures()]
    write_rows(results / "structures.csv", rows)
    return Path(shutil.make_archive(str(folder / "masks"), "zip", results))
