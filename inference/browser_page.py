"""The content of app.py's page: the results of browser tabs, their measurements, pictures, downloads and files."""

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps

from datasets.array_checks import MAX_VALUES
from inference.inputs import Input, describe_error, search, unique_names
from inference.prediction import Prediction
from inference.prediction_options import PredictionOptions
from inference.predictor import Predictor
from inference.trained import describe
from inference.volume_inputs import Volume
from utils.files import MAX_PIXELS, REPOSITORY, first_few, write_rows
from utils.plots import PREDICTION, Colour, class_colours
from utils.runs.lock import HOLDER, LOCK
from utils.runs.named_weights import SHIPPED, find_checkpoint
from utils.volume_plots import draw_slice

TABS = 8  # browser tabs with results
LARGEST_SESSION = 2**32  # bytes of the results of all tabs, and of the files of the page
GONE = "The earlier results of this tab were removed by a restart or to make room for other tabs: drop the files again"
SAMPLES = tuple(sorted((REPOSITORY / "data/samples/images").glob("*.jpg")))
FOLDER = "vmunet-page-"  # prefix of the name of a server's folder
FLAGS = "|".join(f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(PredictionOptions))
ADVICE = re.compile(rf" ?\([^()]*({FLAGS})\b[^()]*\)|[;,][^;,(]*({FLAGS})\b.*")  # advice that only applies to commands
BYTES_PER_NUMBER = 8  # at most, in a file; limits uploads to the largest input that is read, uncompressed
SMALLEST_SIDE, LARGEST_SIDE = 768, 2048  # pixels of the longer side of a picture on the page
DISAGREEMENT = (255, 225, 25)  # a yellow that outlines and photographs of skin do not have
SERIES = "series"  # the name of the only DICOM series of an upload


@dataclass
class PageResult:
    """A file or DICOM series with its prediction."""

    name: str  # of its results, unique in the session
    file: str
    result: Prediction


@dataclass(eq=False)
class PageSession:
    """The uploads of one browser tab."""

    threshold: float  # for networks of one class
    pixel_size: float | None = None  # mm, of images
    disagreement: bool = False  # show it in the picture
    results: list[PageResult] = field(default_factory=list)
    rejections: list[str] = field(default_factory=list)  # a sentence for each file

    @property
    def nbytes(self) -> int:
        return sum(one.result.nbytes for one in self.results)

    def find(self, name: str | None) -> PageResult | None:
        """Return the result of this name, else the first; None if there is none."""
        return next((one for one in self.results if one.name == name), self.results[0] if self.results else None)

    def forget(self) -> None:
        """Remove the results, and tell the user."""
        self.results.clear()
        self.rejections = [GONE]

    def decide(self, threshold: float, pixel_size: float | None) -> None:
        """Update all masks and areas, without running the network again."""
        self.threshold, self.pixel_size = threshold, pixel_size
        for one in self.results:
            one.result = self.decided(one.result)

    def decided(self, result: Prediction) -> Prediction:
        """Apply the threshold to a prediction of one class, as `Predictor` does, and the pixel size to an image."""
        if len(result.class_names) == 1 and result.probabilities is not None:
            classes = (result.probabilities[0] >= np.float32(self.threshold)).astype(np.uint8)
            result = dataclasses.replace(result, classes=classes)
        if isinstance(result.source, Volume):
            return result
        mm = self.pixel_size
        return dataclasses.replace(result, spacing=np.full(2, mm) if mm and mm > 0 else None)


class PageSessions:
    """The sessions with results, the most recently used one last.

    Beyond TABS of them, or LARGEST_SESSION bytes, the oldest ones lose their results."""

    def __init__(self) -> None:
        self.sessions: list[PageSession] = []

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.sessions)

    def use(self, session: PageSession) -> None:
        self.remove(session)
        self.sessions.append(session)
        while len(self.sessions) > 1 and (len(self.sessions) > TABS or self.nbytes > LARGEST_SESSION):
            self.sessions.pop(0).forget()

    def remove(self, session: PageSession) -> None:
        self.sessions = [one for one in self.sessions if one is not session]


def remove_oldest(folder: Path) -> None:
    """Remove the oldest uploads and downloads of a server until the others have at most LARGEST_SESSION bytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, HOLDER)]
    kept = 0
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        kept += path.stat().st_size
        if kept > LARGEST_SESSION:
            path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the folders of killed servers beside `folder`: those of the same user whose lock no process holds."""
    for path in folder.parent.glob(f"{FOLDER}*"):
        if path.is_symlink() or not (path / LOCK).is_file() or path.stat().st_uid != folder.stat().st_uid:
            continue
        with contextlib.suppress(OSError), FileLock(path / LOCK, timeout=0, fallback_to_soft=False):
            shutil.rmtree(path, ignore_errors=True)


def largest_upload(predictor: Predictor) -> int:
    """Return the size in bytes of the largest file that `Predictor` would read."""
    volumes = predictor.volumes or predictor.options.insist
    return BYTES_PER_NUMBER * (MAX_VALUES if volumes else MAX_PIXELS)


def purpose(predictor: Predictor) -> str:
    """Return one sentence on what the page does."""
    found = "skin lesions" if predictor.config.dataset.startswith("isic") else first_few(predictor.class_names)
    what = "a volume" if predictor.volumes else "a photograph, or click a sample,"
    return f"Drop {what} to see where a neural network finds {found}, to measure them and to download the masks."


def about(predictor: Predictor, names: Sequence[str]) -> str:
    """Describe the network in one line: what it is, its training data, and what it is not."""
    network = describe(predictor.config)
    kind = "volumes" if predictor.volumes else "images"
    shipped = [SHIPPED[name] for name in names if name in SHIPPED]
    card = f" Accuracy and known failures: pretrained_weights/{Path(shipped[0]).stem}.md." if shipped else ""
    return (
        f"Not a medical device: for research and teaching. Network {' + '.join(Path(n).name for n in names)}: "
        f"{network['network']}, trained on {kind} of the data set {network['dataset']}, not tested on others.{card} "
        "Files that you drop here stay on this computer."
    )


def trust(names: Sequence[str]) -> tuple[str, Path | None]:
    """Return a sentence on the calibration of the network, and a picture of it if there is one."""
    files = [find_checkpoint(name) for name in names if name in SHIPPED]
    picture = files[0].with_name(f"{files[0].stem}_calibration.png") if len(names) == len(files) == 1 else None
    if picture is None or not picture.is_file():
        return "Calibration has not been measured here. python -m inference.calibration compares with experts.", None
    text = "Reliability: of the pixels with a probability, the share that experts marked. On the diagonal a probability"
    return f"{text} is a frequency. Below it the network is too sure.", picture


def add_uploads(
    session: PageSession,
    predictor: Predictor,
    uploads: Iterable[Path],
    folder: Path,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> list[PageResult]:
    """Predict uploaded files, which may form DICOM series, and return the results that were added to the session.

    A file that can't be used adds a sentence to `rejections`. `folder` holds links to the files meanwhile."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        together = Path(temporary).resolve() / SERIES
        missing = _link_together(uploads, together)
        session.rejections += [f"{name} was removed before it was predicted; drop it again" for name in missing]

        def without_folder(text: str) -> str:
            """Remove this process's folder from a message to the user."""
            return text.replace(f"{together}{os.sep}", "").replace(f"{together.parent}{os.sep}", "")

        def report(item: Input, error: Exception) -> None:
            session.rejections.append(without_folder(describe_error(item, error)))

        found = search([together])
        session.rejections += [without_folder(f"{one.path} {one.reason}") for one in found.exclusions]
        names = dict(zip(found.inputs, unique_names(found.inputs), strict=True))
        before, total = len(session.results), len(found.inputs)
        progress(0, total)
        for number, (item, result) in enumerate(predictor.predict_all(found.inputs, report), 1):
            size = session.nbytes + result.nbytes
            if size > LARGEST_SESSION:
                text = f"found {size} bytes of results on this page, expected at most {LARGEST_SESSION}; start over"
                report(item, ValueError(text))
            else:
                used = {one.name.casefold() for one in session.results}
                more = (f"{names[item]}_{number}" for number in itertools.count(2))
                name = next(one for one in itertools.chain([names[item]], more) if one.casefold() not in used)
                file = without_folder(str(item.path))
                file += f" ({name})" if any(one.file == file for one in session.results) else ""
                session.results.append(PageResult(name, file, session.decided(result)))
            progress(number, total)
    return session.results[before:]


def _link_together(uploads: Iterable[Path], folder: Path) -> list[str]:
    """Link files into one folder; a file whose name is taken goes into a subfolder. Return the missing files."""
    folder.mkdir()
    missing = []
    for path in uploads:
        if not path.is_file():
            missing.append(path.name)
            continue
        places = itertools.chain([folder], (folder / str(number) for number in itertools.count(2)))
        place = next(one for one in places if not one.is_file() and not (one / path.name).exists())
        place.mkdir(exist_ok=True)
        try:
            os.link(path, place / path.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, place / path.name)
    return missing


def colours_of(result: Prediction) -> list[Colour]:
    """Return the colours of the classes 1, 2, ... in `draw`."""
    if len(result.class_names) == 1 and not isinstance(result.source, Volume):
        return [PREDICTION]
    return class_colours(len(result.class_names), result.colours)


def draw(result: Prediction, number: int = 0, disagreement: bool = False) -> Image.Image:
    """Draw an image, with its EXIF orientation applied, or one slice of a volume.

    disagreement  add that of several networks: opaque where half of them say yes, half no"""
    shown = result.disagreement if disagreement else None
    if isinstance(result.source, Volume):
        volume = result.source.slices, result.classes, number
        picture = Image.fromarray(draw_slice(*volume, colours_of(result), result.spacing, SMALLEST_SIDE))
        return picture if shown is None else _cover(picture, shown[number])
    picture = result.overlay()
    if shown is not None:
        picture = _cover(picture, shown)
    picture.getexif().load(result.source.exif)
    picture = ImageOps.exif_transpose(picture)
    side = min(max(SMALLEST_SIDE, *picture.size), LARGEST_SIDE)
    return ImageOps.contain(picture, (side, side))


def _cover(picture: Image.Image, disagreement: np.ndarray) -> Image.Image:
    opacity = Image.fromarray((255 * (2 * disagreement).clip(0, 1)).astype(np.uint8)).resize(picture.size)
    return Image.composite(Image.new("RGB", picture.size, DISAGREEMENT), picture, opacity)


def slices_of(result: Prediction) -> int:
    """Return the number of slices; 0 for an image."""
    return len(result.mask) if isinstance(result.source, Volume) else 0


def middle_slice(result: Prediction) -> int:
    """Return the number of the slice with the most foreground; the middle one if there is none."""
    found = np.count_nonzero(result.mask, axis=(1, 2))
    return int(found.argmax()) if found.any() else len(found) // 2


def measurements(results: Sequence[PageResult]) -> list[dict[str, str]]:
    """Return a row of formatted values for each structure, without empty columns."""
    rows = []
    for one in results:
        for row in one.result.structures():
            area, volume = row["area_mm2"], row["volume_ml"]
            values = {"file": one.file, "structure": row["structure"], "pixels": "", "voxels": ""}
            values["voxels" if slices_of(one.result) else "pixels"] = f"{row['pixels']:,}"
            values["share"] = f"{row['share']:.2%}"
            values["mm²"] = f"{area:,.2f}" if area != "" else ""
            values["mm³"] = f"{1000 * volume:,.0f}" if volume != "" else ""
            values["ml"] = f"{volume:,.2f}" if volume != "" else ""
            values["disagreement"] = f"{row['disagreement']:.4f}" if "disagreement" in row else ""
            rows.append(values)
    filled = {column for row in rows for column, text in row.items() if text}
    return [{column: text for column, text in row.items() if column in filled} for row in rows]


def save_masks(results: Sequence[PageResult], folder: Path, probabilities: bool = False) -> Path:
    """Write masks as predict.py does, and return the file to download: NAME_mask with its ending or, for more than one
    file, a zip archive of the folders of predict.py and structures.csv."""
    archive = folder / "masks"
    archive.mkdir(parents=True)
    for one in results:
        result = one.result if probabilities else dataclasses.replace(one.result, probabilities=None)
        result.save(archive, one.name, overlay=False)
    files = [path for path in archive.rglob("*") if path.is_file()]
    if len(files) == 1:
        name = results[0].name
        return files[0].rename(folder / f"{name}_mask{files[0].name.removeprefix(name)}")
    rows = [{"name": one.name, "input": one.file, **row} for one in results for row in one.result.structures()]
    write_rows(archive / "structures.csv", rows)
    return Path(shutil.make_archive(str(archive), "zip", archive))
