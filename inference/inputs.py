"""What a trained network can be given: image files, volumes (see volumes.py), and folders of them.

Nothing vanishes: every file of a folder is an input, part of one, or left out with a reason (`search`)."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets.files import EXTENSIONS, MASK_SUFFIX, OTHER_PICTURES, is_superpixels
from inference.dicom import find_series

log = logging.getLogger("vmunet")

FORMATS = {"nifti": (".nii.gz", ".nii"), "h5": (".npy.h5", ".h5", ".hdf5"), "itk": (".mha", ".mhd", ".nrrd")}
VOLUME_ENDINGS = {ending: format for format, endings in FORMATS.items() for ending in endings}
DATA_OF_MHD = (".raw", ".zraw")  # the values of a .mhd file of the same name
OTHER_VOLUMES = (".hdr", ".img", ".mgz", ".mgh", ".mnc", ".nhdr", ".npy", ".npz", ".mat", ".dcm", ".ima", ".rec")
PICTURE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # with which such files begin

ABOUT = "prediction.json"  # lies in a folder of results
RESULTS = ("masks", "overlays", "probabilities", "disagreement", "dicom_seg")  # beside it
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "imagestr", "imagests"}
MASK_FOLDERS = {"masks", "mask", "labels", "label", "labelstr", "labelsts", "annotations", "groundtruth"}


@dataclass(frozen=True)
class Input:
    """One image or volume: a file, or the files of a DICOM series."""

    path: Path  # the file; of a series the folder, and its name if there are several in the folder
    format: str  # image, nifti, h5, itk, dicom
    files: tuple[str, ...] = ()  # of a DICOM series, in the order of its slices

    @property
    def is_volume(self) -> bool:
        return self.format != "image"

    @property
    def stem(self) -> str:
        """The name of the file without its ending, or of the series."""
        return without_ending(self.path) if self.format != "dicom" or self.path.is_file() else self.path.name


class LeftOut(NamedTuple):
    """A file or folder that is no input."""

    path: Path
    reason: str
    mistake: bool = True  # it looks like an input or was named; not: a rule says that such files are none


class Found(NamedTuple):
    """What `search` found."""

    inputs: list[Input]
    left_out: list[LeftOut]

    @property
    def mistakes(self) -> list[LeftOut]:
        return [one for one in self.left_out if one.mistake]


def without_ending(path: Path) -> str:
    """A file's name without .nii.gz, .npy.h5 or its last suffix."""
    ending = next((e for e in VOLUME_ENDINGS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def find_inputs(paths: Iterable[str | os.PathLike[str]]) -> list[Input]:
    """The inputs that files and folders stand for, in order and each once; folders are searched with all below them.

    Raises FileNotFoundError, ValueError for a file of an unknown kind and a folder without any of a known one."""
    paths = [Path(path) for path in paths]
    found = search(paths)
    for one in found.mistakes:
        if one.path in paths:
            there = os.path.lexists(one.path)
            raise (ValueError if there else FileNotFoundError)(f"{one.path} {one.reason}")
        log.warning("left out: %s %s", one.path, one.reason)
    return found.inputs


def search(paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None) -> Found:
    """All inputs that files and folders stand for, in order and each once, and what is left out with the reasons.

    Folders are searched with all below them, without hidden files, superpixels of ISIC, masks beside images, and
    results of prediction; `output` is where the results of this one will lie."""
    search = _Search(None if output is None else Path(output).resolve())
    for path in map(Path, paths):
        search.add(path)
    return Found(list(search.found.values()), search.left_out)


class _Search:
    def __init__(self, output: Path | None):
        self.output = output
        self.found: dict[tuple[Path, tuple[str, ...]], Input] = {}
        self.left_out: list[LeftOut] = []
        self.visited: set[Path] = set()  # folders

    def add(self, path: Path) -> None:
        """A file or folder that was named."""
        try:
            if path.is_dir():
                before = len(self.found), len(self.left_out)
                new = self._add_folder(path)
                if new and len(self.found) == before[0] and not any(o.mistake for o in self.left_out[before[1] :]):
                    self._leave_out(path, f"holds no input; expected {known()} or DICOM files")
            elif path.is_file():
                self._add_files(path.parent, [path], named=True)
            elif path.is_symlink():
                self._leave_out(path, "is a link to nothing")
            else:
                exists = os.path.lexists(path)
                self._leave_out(path, "is no file" if exists else "was not found: there is no such file or folder")
        except OSError as error:
            self._leave_out(path, f"can't be opened: {error.strerror}")

    def _leave_out(self, path: Path, reason: str, mistake: bool = True) -> None:
        self.left_out.append(LeftOut(path, reason, mistake))

    def _add_input(self, item: Input) -> None:
        self.found.setdefault((item.path.resolve(), item.files), item)

    def _add_folder(self, folder: Path) -> bool:
        """Adds what a folder holds; False if that was done before."""
        here = folder.resolve()
        if here in self.visited:
            return False
        self.visited.add(here)
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self._leave_out(folder, f"can't be opened: {error.strerror}")
            return True
        files, folders = [], []
        for path in entries:
            if path.name.startswith("."):
                self._leave_out(path, "is hidden", mistake=False)
            elif path.is_dir():
                folders.append(path)
            elif path.is_file():
                files.append(path)
            else:
                self._leave_out(path, "is a link to nothing" if path.is_symlink() else "is no file")
        self._add_files(folder, files)
        results = here == self.output or (folder / ABOUT).is_file()
        images = any(path.name.lower() in IMAGE_FOLDERS for path in folders)
        for path in folders:
            if results and path.name in RESULTS:
                self._leave_out(path, "holds results of predict.py", mistake=False)
            elif images and path.name.lower() in MASK_FOLDERS:
                self._leave_out(path, "holds masks, as it lies beside images", mistake=False)
            elif not self._add_folder(path):
                self._leave_out(path, "leads to a folder that is searched already", mistake=False)
        return True

    def _add_files(self, folder: Path, files: Sequence[Path], named: bool = False) -> None:
        """Adds the files among these, which lie in one folder, that are inputs; `named`: one that was named itself."""
        stems = {path.stem for path in files if path.suffix.lower() in EXTENSIONS}
        headers = {path.stem for path in files if path.suffix.lower() == ".mhd"}
        dicom = []
        for path in files:
            try:
                kind = format_of(path)
            except OSError as error:
                self._leave_out(path, f"can't be opened: {error.strerror}")
                continue
            if kind == "image" and is_superpixels(path):
                self._leave_out(path, "holds superpixels of ISIC", mistake=False)
            elif kind == "image" and path.stem.endswith(MASK_SUFFIX) and path.stem.removesuffix(MASK_SUFFIX) in stems:
                self._leave_out(path, "is the mask of an image beside it", mistake=False)
            elif kind == "dicom":
                dicom.append(path)
            elif kind is not None:
                self._add_input(Input(path, kind))
            elif path.suffix.lower() in DATA_OF_MHD and path.stem in headers:
                self._leave_out(path, "is read with its .mhd file", mistake=False)
            else:
                mistake = named or _looks_like_an_input(path)
                reason = f"is of an unknown kind; expected {known()} or DICOM" if mistake else "is no image or volume"
                self._leave_out(path, reason, mistake)
        if named:
            for path in dicom:
                self._add_input(Input(path, "dicom", (str(path),)))
        elif dicom:
            try:
                self._add_series(folder, dicom)
            except Exception as error:  # a library that can't be imported, or stumbles over a file
                for path in dicom:
                    self._leave_out(path, f"can't be sorted into DICOM series: {error}")

    def _add_series(self, folder: Path, files: Sequence[Path]) -> None:
        """Adds the series among the DICOM files of a folder."""
        series, left_out = find_series(files)
        for one in series:
            self._add_input(Input(folder / one.uid if len(series) > 1 else folder, "dicom", tuple(one.files)))
        for path, reason in left_out:
            self._leave_out(path, reason)


def known() -> str:
    """The endings of the files that can be read."""
    return ", ".join((*EXTENSIONS, *VOLUME_ENDINGS))


def format_of(path: Path) -> str | None:
    """`Input.format` of a file, None if it is of an unknown kind."""
    ending = next((e for e in VOLUME_ENDINGS if path.name.lower().endswith(e)), None)
    if ending:
        return VOLUME_ENDINGS[ending]
    if path.suffix.lower() in EXTENSIONS:
        return "image"
    return "dicom" if _beginning(path)[128:] == b"DICM" else None


def _looks_like_an_input(path: Path) -> bool:
    """Whether a file of an unknown kind may have been meant: a picture or volume of a kind that is not read."""
    known_elsewhere = path.name.lower().endswith((*OTHER_PICTURES, *OTHER_VOLUMES))
    return known_elsewhere or _beginning(path).startswith(PICTURE_SIGNATURES)


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(132)


def unique_names(inputs: Sequence[Input]) -> list[str]:
    """A name for the outputs of each input: its stem; where several share one (also if only the case differs), as much
    of the path as tells them apart."""
    names, depth = [i.stem for i in inputs], 0
    while True:
        groups: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            groups.setdefault(name.casefold(), []).append(number)
        shared = [number for group in groups.values() if len(group) > 1 for number in group]
        if not shared:
            return names
        depth += 1
        for number in shared:
            parts = inputs[number].path.resolve().parts[-depth:]
            deepest = depth > len(inputs[number].path.resolve().parts)
            names[number] = "_".join((*parts, str(number)) if deepest else parts).strip("/\\")
