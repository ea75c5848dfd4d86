"""Inputs of prediction: image files, volumes (see volume_inputs.py), and folders of them.

Every file of a folder is an input, part of one, or excluded with a reason (`search`)."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets.formats.dicom import PHOTOGRAPH
from datasets.formats.reader_process import READER
from datasets.image_reading import EXTENSIONS, OTHER_PICTURES, is_superpixels
from datasets.volume_sources import LABEL_WORDS, is_label, without_words
from inference.formats.dicom_series import find_series

log = logging.getLogger("vmunet")

FORMATS = {"nifti": (".nii.gz", ".nii"), "h5": (".npy.h5", ".h5", ".hdf5"), "itk": (".mha", ".mhd", ".nrrd")}
VOLUME_ENDINGS = {ending: format for format, endings in FORMATS.items() for ending in endings}
OTHER_VOLUMES = (".hdr", ".img", ".mgz", ".mgh", ".mnc", ".nhdr", ".npy", ".npz", ".mat", ".dcm", ".ima", ".rec")
UNSUPPORTED = (*OTHER_PICTURES, *OTHER_VOLUMES)
KNOWN = ", ".join((*EXTENSIONS, *VOLUME_ENDINGS))
PICTURE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # first bytes of such files

ABOUT = "prediction.json"  # in a folder of results
RESULTS = ("masks", "overlays", "probabilities", "disagreement", "dicom_seg")  # folders beside it
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "imagestr", "imagests"}
MASK_FOLDERS = re.compile(f"({LABEL_WORDS})(tr|ts)?", re.IGNORECASE)
LABEL_MAP = "is a mask or label map by its name"
VOXEL_FILES = (".raw", ".zraw")  # files of voxels, which a MetaImage header beside them names


@dataclass(frozen=True)
class Input:
    """One image or volume: a file, or the files of a DICOM series."""

    path: Path  # the file, or the folder of a series; with the series' name if the folder holds several
    format: str  # image, photograph (in DICOM), nifti, h5, itk, dicom
    files: tuple[str, ...] = ()  # of a DICOM series, in the order of its slices

    @property
    def is_volume(self) -> bool:
        return self.format not in ("image", "photograph")

    @property
    def stem(self) -> str:
        """The name of the file without its ending, or of the series."""
        if self.format == "dicom" and not self.path.is_file():
            return self.path.name
        return self.path.name[: len(self.path.name) - len(_volume_ending(self.path) or self.path.suffix)]


class Exclusion(NamedTuple):
    """A file or folder that is not an input."""

    path: Path
    reason: str
    mistake: bool = True  # it was named or looks like an input; False: a rule ignores such files


def describe_error(item: Input, error: Exception) -> str:
    """Return the message of an error, with the input's path."""
    text = str(error) or type(error).__name__
    return text if str(item.path) in text else f"{item.path}: {text}"


class SearchResult(NamedTuple):
    """Inputs, and what is not an input."""

    inputs: list[Input]
    exclusions: list[Exclusion]

    @property
    def mistakes(self) -> list[Exclusion]:
        return [one for one in self.exclusions if one.mistake]


def _volume_ending(path: Path) -> str:
    return next((ending for ending in VOLUME_ENDINGS if path.name.lower().endswith(ending)), "")


def find_inputs(paths: Iterable[str | os.PathLike[str]], insist: bool = False) -> list[Input]:
    """Find the inputs in files and folders, in order and each once; folders are searched recursively.

    Raises FileNotFoundError, and ValueError for a file of an unknown kind or a folder without inputs."""
    paths = [Path(path) for path in paths]
    result = search(paths, insist=insist)
    for one in result.mistakes:
        if one.path in paths:
            raise (ValueError if os.path.lexists(one.path) else FileNotFoundError)(f"{one.path} {one.reason}")
        log.warning("left out: %s %s", one.path, one.reason)
    return result.inputs


def search(
    paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None, insist: bool = False
) -> SearchResult:
    """Find all inputs in files and folders, in order and each once, and list everything else with the reason.

    Folders are searched recursively, except for hidden files, superpixels of ISIC, label maps, masks beside images, and
    results of prediction. A file given directly is left out if its name marks it as a label map, unless `insist`.
    `output` is the folder of the results to come."""
    results, visited = None if output is None else Path(output).resolve(), set[Path]()
    inputs: dict[tuple[Path, tuple[str, ...]], Input] = {}
    exclusions = []
    for path in map(Path, paths):
        for entry in _entries_of_named(path, results, visited, insist):
            if isinstance(entry, Exclusion):
                exclusions.append(entry)
            else:
                inputs.setdefault((Path(os.path.abspath(entry.path)), entry.files), entry)
    if any(item.is_volume for item in inputs.values()):
        READER.start()  # it is ready when the network is
    return SearchResult(list(inputs.values()), exclusions)


def _entries_of_named(path: Path, output: Path | None, visited: set[Path], insist: bool) -> Iterator[Input | Exclusion]:
    """Entries for a file or folder of the command line; each folder is searched once."""
    try:
        if path.is_dir():
            searched = path.resolve() in visited
            entries = list(_entries_of_folder(path, output, visited))
            yield from entries
            if not searched and not any(isinstance(entry, Input) or entry.mistake for entry in entries):
                yield Exclusion(path, f"holds no input; expected {KNOWN} or DICOM files")
        elif path.is_file() and is_label_map(path) and not insist:
            yield Exclusion(path, f"{LABEL_MAP}, expected an image; --insist predicts it")
        elif path.is_file():
            yield from _entries_of_files(path.parent, [path], named=True)
        else:
            yield _absent(path)
    except OSError as error:
        yield _unreadable(path, error)


def _entries_of_folder(folder: Path, output: Path | None, visited: set[Path]) -> Iterator[Input | Exclusion]:
    """Yield the entries of a folder and of its subfolders at any depth."""
    waiting = [folder]
    while waiting:
        entries = list(_entries_beside(waiting.pop(), output, visited))
        yield from (entry for entry in entries if not isinstance(entry, Path))
        waiting += [entry for entry in reversed(entries) if isinstance(entry, Path)]


def _entries_beside(folder: Path, output: Path | None, visited: set[Path]) -> Iterator[Input | Exclusion | Path]:
    """Yield the entries of the files in a folder, and the subfolders that remain to be searched."""
    if folder.resolve() in visited:
        yield Exclusion(folder, "leads to a folder that is searched already", mistake=False)
        return
    visited.add(folder.resolve())
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        yield _unreadable(folder, error)
        return
    files, folders = [], []
    for path in paths:
        if path.name.startswith("."):
            yield Exclusion(path, "is hidden", mistake=False)
        elif path.is_dir():
            folders.append(path)
        elif path.is_file():
            files.append(path)
        else:
            yield _absent(path)
    entries = list(_entries_of_files(folder, files))
    yield from entries
    results = folder.resolve() == output or (folder / ABOUT).is_file()
    images = any(path.name.lower() in IMAGE_FOLDERS for path in folders)
    images = images or any(isinstance(entry, Input) for entry in entries)
    for path in folders:
        if results and path.name in RESULTS:
            yield Exclusion(path, "holds results of predict.py", mistake=False)
        elif images and MASK_FOLDERS.fullmatch(path.name):
            yield Exclusion(path, "holds masks, as it lies beside images", mistake=False)
        else:
            yield path


def _absent(path: Path) -> Exclusion:
    if path.exists():
        return Exclusion(path, "is no regular file")
    return Exclusion(path, "is a link to nothing" if path.is_symlink() else "was not found: there is no such file")


def _unreadable(path: Path, error: OSError) -> Exclusion:
    return Exclusion(path, f"can't be opened: {error.strerror}")


def _entries_of_files(folder: Path, files: Sequence[Path], named: bool = False) -> Iterator[Input | Exclusion]:
    """Entries for files of one folder; `named`: for one file of the command line."""
    headers = {path.stem for path in files if path.suffix.lower() == ".mhd"}
    dicom = []
    for path in files:
        try:
            kind = format_of(path)
        except OSError as error:
            yield _unreadable(path, error)
            continue
        if kind == "image" and is_superpixels(path):
            yield Exclusion(path, "holds superpixels of ISIC", mistake=False)
        elif is_label_map(path) and not named:
            yield Exclusion(path, LABEL_MAP, mistake=False)
        elif kind == "dicom":
            dicom.append(path)
        elif kind is not None:
            yield Input(path, kind)
        elif path.suffix.lower() in VOXEL_FILES and path.stem in headers:
            yield Exclusion(path, "holds the voxels of a MetaImage beside it", mistake=False)
        elif re.match(rb"\x08\0.\0", _beginning(path), re.DOTALL):  # the first group of a data set
            yield Exclusion(
                path, "is DICOM without preamble; expected 128 bytes and DICM first, as DCMTK's dcmconv writes"
            )
        elif named or path.name.lower().endswith(UNSUPPORTED) or _beginning(path).startswith(PICTURE_SIGNATURES):
            yield Exclusion(path, f"is of an unknown kind; expected {KNOWN} or DICOM")
        else:
            yield Exclusion(path, "is no image or volume", mistake=False)
    series, excluded = find_series(dicom)
    for uid, slices in series.items():
        yield Input(files[0] if named else folder / uid if len(series) > 1 else folder, "dicom", slices)
    for path, reason in excluded:
        yield Input(path, "photograph") if reason == PHOTOGRAPH else Exclusion(path, reason)


def is_label_map(path: Path) -> bool:
    """Return whether the name of a volume marks it as labels, or a picture is the mask of an image beside it."""
    if not is_label(path) or _volume_ending(path):
        return is_label(path)
    stem = without_words(path, LABEL_WORDS)
    beside = path.parent.glob(f"{glob.escape(stem)}.*") if stem != path.stem else ()
    return any(one.stem == stem and {one.suffix.lower(), path.suffix.lower()} <= {*EXTENSIONS} for one in beside)


def format_of(path: Path) -> str | None:
    """Return the `Input.format` of a file, None for an unknown kind."""
    ending = _volume_ending(path)
    if ending:
        return VOLUME_ENDINGS[ending]
    if path.suffix.lower() in EXTENSIONS:
        return "image"
    return "dicom" if _beginning(path)[128:] == b"DICM" else None


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(132)


def unique_names(inputs: Sequence[Input]) -> list[str]:
    """Return a name for the results of each input: its stem, or where several share one (ignoring case), as much of the
    path as tells them apart."""
    names, depth = [item.stem for item in inputs], 0
    while True:
        counts = Counter(name.casefold() for name in names)
        shared = [number for number, name in enumerate(names) if counts[name.casefold()] > 1]
        if not shared:
            return names
        depth += 1
        for number in shared:
            parts = inputs[number].path.resolve().parts
            number_of_input = (str(number),) if depth > len(parts) else ()
            names[number] = "_".join((*parts[-depth:], *number_of_input)).strip("/\\")
