"""Group the DICOM files of a folder into series."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from datasets.formats.dicom import DicomSlice, corners_of, read_slice, uneven
from datasets.formats.reader_process import read_apart
from utils.files import first_few

log = logging.getLogger("vmunet")

FEWEST_SLICES = 3  # slices whose distances can be compared


def find_series(files: Sequence[Path]) -> tuple[dict[str, tuple[str, ...]], list[tuple[Path, str]]]:
    """Group the DICOM files of a folder: ({series UID: files in the order of the slices}, [(other file, the reason)]).

    Some scanners and anonymisers give each slice a series UID of its own. Such slices are joined if study, frame of
    reference and geometry agree."""
    groups: list[list[DicomSlice]] = []
    excluded = []
    for path in files:
        try:
            found = read_apart([path], read_slice, path)
        except (ValueError, OSError) as error:
            found = str(error).removeprefix(f"{path} ")
        if isinstance(found, str):
            excluded.append((path, found))
        else:
            group = next((group for group in groups if belongs(found, group[0])), None)
            if group is None:
                groups.append([found])
            else:
                group.append(found)
    series: dict[str, tuple[str, ...]] = {}
    for group in join_single_slices(groups):
        unique: dict[tuple, DicomSlice] = {}
        for place, _, one in sorted((one.place(group[0]), one.path.name, one) for one in group):
            first = unique.setdefault((one.instance or one.path, place), one)
            if first is not one:
                excluded.append((one.path, f"is a copy of {first.path.name}, by its DICOM SOPInstanceUID"))
        ordered = list(unique.values())
        uid = ordered[0].series or "series"
        names = itertools.chain([uid], (f"{uid}_{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in series)  # the same UID for other sizes or directions
        series[name] = tuple(str(one.path) for one in ordered)
        if name != uid:
            text = "%s: the DICOM series %s holds slices of several modalities, sizes or directions: %d of them are %s"
            log.warning(text, ordered[0].path.parent, uid, len(ordered), name)
    return series, excluded


def belongs(one: DicomSlice, other: DicomSlice) -> bool:
    """Return whether two slices can belong to one volume, by their series, modality, size and directions."""
    same = one.series == other.series and one.modality == other.modality and one.shape == other.shape
    return same and one.is_parallel(other)


def join_single_slices(groups: list[list[DicomSlice]]) -> list[list[DicomSlice]]:
    """Join groups of one slice that fit together. A warning lists the groups that fit no other."""
    candidates: dict[tuple, list[DicomSlice]] = {}
    for group in groups:
        if len(group) == 1:
            one = group[0]
            spacing = tuple(round(mm, 4) for mm in one.spacing or ())
            directions = tuple(round(x, 2) + 0.0 for x in one.orientation or ())
            key = one.study, one.frame, one.modality, one.shape, directions, spacing
            candidates.setdefault(key, []).append(one)
    result = [group for group in groups if len(group) > 1]
    single = []
    for key, slices in candidates.items():
        first = slices[0]
        slices.sort(key=lambda one: one.place(first))
        corners = corners_of(slices)
        if len(slices) >= FEWEST_SLICES and key[1] and corners is not None and uneven(corners) is None:
            text = "%s: %d DICOM files with a series UID each are joined to one volume, as study and geometry fit"
            log.warning(text, slices[0].path.parent, len(slices))
            result.append(slices)
        else:
            single += slices
    if len(single) > 1:
        names = first_few(one.path for one in single)
        log.warning("%d DICOM files are each a series of one slice, predicted one by one: %s", len(single), names)
    return sorted([*result, *([one] for one in single)], key=lambda group: min(one.path for one in group))
