"""The raw volumes of the BTCV challenge as training reads them: OUT/{train_npz,test_vol_h5,lists}, TransUNet's layout.

    python -m datasets.prepare_synapse --source RawData.zip --out data/Synapse

The source is the official archive, or a folder, with img/imgXXXX.nii.gz and label/labelXXXX.nii.gz; imgXXXX becomes
caseXXXX. What is done to a volume:

  orientation   slices from foot to head, rows from front to back, columns from the patient's right to the left; axes
                are swapped and reversed as the affine says, nothing is resampled
  intensities   Hounsfield units clipped to [-125, 275] and scaled to 0..1, float32; what is scaled already stays;
                others by --window; NaN, which lies outside the field of view, becomes 0
  labels        the eight organs of the paper become 1..8 (datasets/synapse.py), the other five background
  geometry      h5 attributes: `spacing` (3,), mm between slices, rows and columns; `affine` (4, 4), from (column, row,
                slice) to the scanner's mm; `orientation`, the directions in which these three indices grow

Which cases are for training and which for testing follows the published lists (datasets/splits/synapse: 2211 slices of
18 cases, 12 volumes), or the train.txt and test_vol.txt in --lists; val_vol.txt too, if it is there. Beside them
lists/list_Synapse_holdout keeps three of the published training cases for `train_synapse.py --protocol holdout`.
OUT/cases.csv says what each case was made of. To complete a run that was stopped or killed, repeat the command.
"""

import gzip
import io
import itertools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from tqdm import tqdm

from configs.config_setting_synapse import ORGANS
from datasets.downloads import Download, by_name, find_downloads, zip_members
from datasets.intensities import HU_WINDOW, Window, to_unit
from datasets.nifti import mm_of_unit, own_orientation, says_orientation, tilt, to_slices
from datasets.prepared import claim_folder, sha256
from datasets.synapse import HOLDOUT_LISTS, ORIENTATION, case_of_slice, read_list
from datasets.volume_files import Case, slice_files, volume_file, write_slices, write_volume
from utils.files import read_rows, reading, some, write_atomically, write_rows
from utils.runs.command_line import run_command

# BTCV's label 1, 2, ...; those that Synapse does not have become background
BTCV_ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "oesophagus",
    "liver",
    "stomach",
    "aorta",
    "vena cava",
    "portal vein",
    "pancreas",
    "right adrenal",
    "left adrenal",
)
CLASS_OF_LABEL = np.array([0] + [ORGANS.index(o) + 1 if o in ORGANS else 0 for o in BTCV_ORGANS], dtype=np.float32)
PUBLISHED_LISTS = Path(__file__).parent / "splits" / "synapse"
HOLDOUT_CASES = ("case0005", "case0009", "case0026")  # three of the 18, drawn once: random.Random(42).sample
IMAGE, LABEL = r"img(\d{4})\.nii(?:\.gz)?", r"label(\d{4})\.nii(?:\.gz)?"
OBLIQUE = 1.0  # degrees that an axis may be off the patient's
GZIP = b"\x1f\x8b"  # how its files begin
LIMIT = 2**31  # bytes of an unpacked volume: four times the largest of the challenge as 64-bit numbers
LISTS = ("train.txt", "test_vol.txt", "val_vol.txt", "all.lst")


@dataclass(kw_only=True)
class PrepareSynapse:
    source: str  # RawData.zip, or a folder with it or with img and label
    out: str = "data/Synapse"  # folder to write
    lists: str | None = None  # folder with train.txt and test_vol.txt; none: the published lists
    window: Window | None = None  # of volumes that are not in Hounsfield units: values in the place of -125 and 275
    debug: bool = False  # show the traceback of errors


class Volumes(NamedTuple):
    """The two files of a case."""

    image: Download
    label: Download


def prepare(options: PrepareSynapse) -> tuple[int, int]:
    """Writes the folder; returns (number of slices, number of volumes)."""
    lists = Path(options.lists or PUBLISHED_LISTS)
    slices = slices_of_cases(read_list(lists, "train.txt"), lists / "train.txt")
    names = ["test_vol.txt"] + ["val_vol.txt"] * (lists / "val_vol.txt").is_file()
    whole = {case for name in names for case in read_list(lists, name)}
    if lists == PUBLISHED_LISTS:
        whole |= set(HOLDOUT_CASES)
    listed = sorted(slices.keys() | whole)
    volumes = find_volumes(options.source, listed)
    missing = [case for case in listed if case not in volumes]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(listed)} cases of {lists} are not in {options.source}: {some(missing)}; "
            "expected all of them (--lists FOLDER for other lists)"
        )

    out = claim_folder(options.out, record_of(lists, options.window))
    rows = {row["case"]: row for row in read_rows(out / "cases.csv")}
    for case in tqdm(listed, "cases", unit=" cases", disable=None):
        image, label = (file.read() for file in volumes[case])
        digests = {f"{kind}_sha256": sha256(content) for kind, content in (("image", image), ("label", label))}
        targets = [*slice_files(out, case, slices.get(case, ())), *[volume_file(out, case)] * (case in whole)]
        done = digests.items() <= rows.get(case, {}).items() and all(target.is_file() for target in targets)
        if not done:
            origins = volumes[case].image.origin, volumes[case].label.origin
            prepared, original = read_case(image, label, *origins, options.window)
            write_case(prepared, out, case, slices.get(case, []), case in whole, origins[0])
            rows[case] = describe(prepared, case, original) | digests
            write_rows(out / "cases.csv", [rows[name] for name in sorted(rows)])
    copy_lists(lists, out / "lists" / "list_Synapse")
    if lists == PUBLISHED_LISTS:
        write_holdout_lists(out / "lists" / HOLDOUT_LISTS)
    return sum(map(len, slices.values())), len(whole)


# ---- lists


def slices_of_cases(names: Iterable[str], path: Path) -> dict[str, list[int]]:
    """{case: [slice numbers]} of names such as case0005_slice000."""
    cases: dict[str, list[int]] = {}
    for name in names:
        match = re.fullmatch(r"(case\d{4})_slice(\d{3})", name)
        if match is None:
            raise ValueError(f"{path} holds {name!r}; expected names such as case0005_slice000")
        cases.setdefault(match[1], []).append(int(match[2]))
    return cases


def copy_lists(source: Path, target: Path) -> None:
    """Copies the lists that are in `source` to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for name in LISTS:
        if (source / name).is_file():
            write_atomically(target / name, (source / name).read_bytes())


def write_holdout_lists(target: Path) -> None:
    """The published lists with the slices of HOLDOUT_CASES moved from train.txt to volumes in val_vol.txt."""
    copy_lists(PUBLISHED_LISTS, target)
    train = [name for name in read_list(PUBLISHED_LISTS, "train.txt") if case_of_slice(name) not in HOLDOUT_CASES]
    for name, lines in (("train.txt", train), ("val_vol.txt", HOLDOUT_CASES)):
        write_atomically(target / name, "".join(f"{line}\n" for line in lines).encode())


# ---- raw volumes


def find_volumes(source: str | Path, listed: Collection[str]) -> dict[str, Volumes]:
    """{case: Volumes} of a zip archive, or of a folder that holds one, or img and label, or RawData/Training with them.

    Raises FileNotFoundError if there are none, ValueError if a listed case has only an image or only a label. Cases
    that are not listed, such as the challenge's test cases, are left out.
    """
    source = Path(source)
    places = [source, source / "Training", source / "RawData" / "Training"]
    archives = [path for path in (source, source / "RawData.zip") if path.is_file()]
    if archives:
        members = zip_members(archives[0])
        images, labels = (by_name(members, pattern, archives[0]) for pattern in (IMAGE, LABEL))
    else:
        found = next((place for place in places if (place / "img").is_dir()), source)
        images, labels = find_downloads(found, "img", IMAGE), find_downloads(found, "label", LABEL)
    if not images:
        raise FileNotFoundError(f"{source} holds no img/imgXXXX.nii.gz; expected RawData.zip or folders img and label")
    images = {re.sub(IMAGE, r"case\1", name): file for name, file in images.items()}
    labels = {re.sub(LABEL, r"case\1", name): file for name, file in (labels or {}).items()}
    alone = sorted((images.keys() ^ labels.keys()) & set(listed))
    if alone:
        names = [(images.get(case) or labels[case]).name for case in alone]
        raise ValueError(f"{len(alone)} volumes of {source} have an image or a label, not both: {some(names)}")
    return {case: Volumes(images[case], labels[case]) for case in sorted(images.keys() & labels.keys())}


def read_case(
    image_content: bytes, label_content: bytes, image_origin: str, label_origin: str, window: Window | None = None
) -> tuple[Case, str]:
    """The Case of two NIfTI files, and the orientation of their axes, such as LAS.

    Raises ValueError that names the file and what is wrong with it."""
    image, intensities = parse_nifti(image_content, image_origin)
    label, labels = parse_nifti(label_content, label_origin)
    if image.shape != label.shape:
        raise ValueError(f"{image_origin} has the shape {image.shape} but {label_origin} {label.shape}")
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in image.shape))]).T
    apart = np.linalg.norm((image.affine - label.affine)[:3] @ corners, axis=0).max()
    if apart > voxel_sizes(image.affine).min() / 2:
        raise ValueError(f"{image_origin} and {label_origin} are up to {apart:.1f} mm apart, by their affines")
    known = np.isin(labels, np.arange(len(CLASS_OF_LABEL)))
    if not known.all():
        found = some(f"{value:g}" for value in np.unique(labels[~known]))
        raise ValueError(f"{label_origin} holds the label {found}; expected 0..{len(BTCV_ORGANS)}, as BTCV")
    volume, spacing = to_slices(to_unit(intensities, image_origin, window), image.affine, ORIENTATION)
    turned, _ = to_slices(labels, image.affine, ORIENTATION)
    to_training = ornt_transform(io_orientation(image.affine), axcodes2ornt(ORIENTATION))
    case = Case(
        image=np.ascontiguousarray(volume),
        label=CLASS_OF_LABEL[turned.astype(np.uint8)],
        spacing=spacing,
        affine=image.as_reoriented(to_training).affine,
        orientation=ORIENTATION,
    )
    return case, own_orientation(image.affine)


def parse_nifti(content: bytes, origin: str) -> tuple[nibabel.Nifti1Image, np.ndarray]:
    """(image, its values float32) of the bytes of a .nii or .nii.gz file with three axes along the patient's."""
    with reading(origin):
        try:
            if content[:2] == GZIP:
                with gzip.open(io.BytesIO(content)) as file:
                    content = file.read(LIMIT + 1)
            if len(content) > LIMIT:
                raise ValueError(f"it is larger than {LIMIT >> 20} MB when it is unpacked")
            image = nibabel.Nifti1Image.from_bytes(content)
            values = np.asarray(image.dataobj, dtype=np.float32)
        except (ImageFileError, HeaderDataError, WrapStructError) as error:
            raise ValueError(f"it is no NIfTI file ({error})") from error
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"{origin} has the shape {values.shape}; expected three dimensions")
    if not says_orientation(image.header):
        raise ValueError(f"{origin} does not say how the patient lies: its sform_code and qform_code are 0")
    axes = image.affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or not lengths.all() or np.isnan(io_orientation(image.affine)).any():
        raise ValueError(f"{origin} has an affine that is no orientation: {axes.tolist()}")
    if tilt(image.affine) > OBLIQUE:
        raise ValueError(
            f"{origin} is oblique: an axis is {tilt(image.affine):.1f} degrees off the patient's, expected at most "
            f"{OBLIQUE:g}; resample it along the patient's axes first"
        )
    mm = mm_of_unit(image.header)
    if mm != 1:
        image = nibabel.Nifti1Image(image.dataobj, np.diag([mm, mm, mm, 1]) @ image.affine)
    return image, values


# ---- files


def record_of(lists: Path, window: Window | None = None) -> dict:
    """What the folder is made of."""
    content = b"".join((lists / name).read_bytes() for name in LISTS if (lists / name).is_file())
    return {"dataset": "synapse", "lists_sha256": sha256(content), "hu_window": list(window or HU_WINDOW)}


def write_case(case: Case, out: Path, name: str, slices: list[int], whole: bool, origin: str) -> None:
    """Writes slices of a case and, if it is wanted, the `whole` volume.

    slices: the numbers that train.txt lists. Raises ValueError, which names `origin`, if the case has fewer."""
    last = max(slices, default=-1)
    if last >= len(case.image):
        raise ValueError(f"{origin} has {len(case.image)} slices, but train.txt names slice {last:03d} of {name}")
    if slices and len(slices) < len(case.image):
        print(f"note: {name} has {len(case.image)} slices, of which train.txt names {len(slices)}")
    if slices:
        write_slices(case, slice_files(out, name, slices), slices)
    if whole:
        write_volume(case, volume_file(out, name))


def describe(case: Case, name: str, original: str) -> dict:
    """The row of cases.csv, without the hashes of its sources; `original` is the orientation of the file's axes."""
    assert case.spacing is not None
    slices, rows, columns = case.image.shape
    organs = [organ for number, organ in enumerate(ORGANS, 1) if (case.label == number).any()]
    spacing = dict(zip(("slice_mm", "row_mm", "column_mm"), (round(float(mm), 6) for mm in case.spacing), strict=True))
    sizes = {"slices": slices, "rows": rows, "columns": columns}
    return {"case": name, **sizes, **spacing, "orientation_of_file": original, "organs": "; ".join(organs)}


def main(options: PrepareSynapse) -> None:
    slices, volumes = prepare(options)
    print(f"{options.out}: {slices} slices to train on, {volumes} whole volumes; arrays run {ORIENTATION}")


if __name__ == "__main__":
    run_command(main, PrepareSynapse)
