"""Write the mask of a DICOM series as a DICOM-SEG object, which viewers and PACS overlay on the series."""

import io
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from inference.prediction import Prediction
from inference.volume_inputs import Volume
from utils.files import reading, write_atomically
from utils.optional import optional
from utils.plots import class_colours

NEEDED_BY = "--dicom-seg"
# SNOMED CT codes of structures; all others are "anatomical structures" with a label
CODES = {
    "aorta": ("15825003", "SCT", "Aorta"),
    "gallbladder": ("28231008", "SCT", "Gallbladder"),
    "left kidney": ("18639004", "SCT", "Left kidney"),
    "right kidney": ("9846003", "SCT", "Right kidney"),
    "liver": ("10200004", "SCT", "Liver"),
    "pancreas": ("15776009", "SCT", "Pancreas"),
    "spleen": ("78961009", "SCT", "Spleen"),
    "stomach": ("69695003", "SCT", "Stomach"),
}
ANATOMICAL_STRUCTURE = ("91723000", "SCT", "Anatomical Structure")
# attributes that every DICOM object of a patient must have, but may leave empty; anonymised files often lack them
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
SERIES_NUMBER = 100  # added to that of the images; no other series of the study is likely to have the result
LABEL_LENGTH = 64  # characters of a segment's label


def save_dicom_seg(path: Path, result: Prediction, network: str) -> None:
    """Write the mask of a DICOM series atomically: a segment for each class, and for each of its non-empty slices a
    frame that refers to the image.

    network: first digits of the weights' SHA-256, written as the version of the algorithm

    Raises ValueError for results of other formats, and for series without the attributes that DICOM-SEG requires."""
    volume = result.source
    if not isinstance(volume, Volume) or not volume.files:
        raise ValueError(f"{NEEDED_BY}: {path.stem} is no DICOM series, expected one to refer to")
    if volume.spacing is None:
        raise ValueError(f"{NEEDED_BY}: {path.stem}: found no voxel size, expected PixelSpacing and slice positions")
    highdicom, pydicom = optional("highdicom", NEEDED_BY), optional("pydicom", NEEDED_BY)
    images = []
    for file in volume.files:
        with reading(file):
            image = pydicom.dcmread(file, stop_before_pixels=True)
        for keyword in REQUIRED:
            value = str(image.get(keyword) or "")
            if not re.fullmatch(r"[0-9.]+", value):
                tag = pydicom.tag.Tag(keyword)
                raise ValueError(f"{NEEDED_BY}: {file}: {tag} {keyword}: found {value!r}, expected a UID")
        for name in set(MAY_BE_EMPTY) - set(image.dir()):
            setattr(image, name, None)
        if not image.get("SliceThickness"):
            image.SliceThickness = float(np.linalg.norm(volume.affine[:3, 2]))  # the distance between slices
        images.append(image)
    several = {str(image.get("SeriesInstanceUID")) for image in images}
    if len(several) > 1:
        raise ValueError(f"{NEEDED_BY}: {path.stem} is of {len(several)} series, expected one to refer to")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
            warnings.filterwarnings("ignore", "Encoding an empty segmentation")
            segmentation = highdicom.seg.Segmentation(
                source_images=images,
                pixel_array=np.ascontiguousarray(volume.as_stored(result.classes).transpose(2, 1, 0)),
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments(highdicom, result, network),
                series_instance_uid=highdicom.UID(),
                series_number=max(0, int(images[0].get("SeriesNumber") or 0)) + SERIES_NUMBER,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="VM-UNet",
                manufacturer_model_name="VM-UNet",
                software_versions=network,
                device_serial_number="none",
                specific_character_set="ISO_IR 192",  # UTF-8 covers all other character sets
                content_label="SEGMENTATION",
                series_description="VM-UNet segmentation",
            )
    except Exception as error:  # highdicom raises many kinds of errors for bad headers
        raise ValueError(f"{NEEDED_BY}: {path.stem} can't be referred to: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as buffer:
        segmentation.save_as(buffer)
        write_atomically(path, buffer.getvalue())


def segments(highdicom: ModuleType, result: Prediction, network: str) -> list[Any]:
    """Describe the classes as segments 1, 2, ..., as DICOM numbers them, with their label in the description."""
    code, colours = highdicom.sr.CodedConcept, class_colours(len(result.class_names), result.colours)
    family = code("123109", "DCM", "Artificial Intelligence")
    algorithm = highdicom.AlgorithmIdentificationSequence(name="VM-UNet", version=network, family=family)
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:LABEL_LENGTH],
            segmented_property_category=code("123037004", "SCT", "Anatomical Structure"),
            segmented_property_type=code(*CODES.get(name, ANATOMICAL_STRUCTURE)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=highdicom.UID(),
            tracking_id=name[:LABEL_LENGTH],
            display_color=highdicom.color.CIELabColor.from_rgb(*colour),
        )
        for number, (name, colour) in enumerate(zip(result.class_names, colours, strict=True), start=1)
    ]
    for description, label in zip(descriptions, result.labels[1:], strict=True):
        description.SegmentDescription = f"label {label}"
    return descriptions
