"""A mask of a DICOM series as a DICOM-SEG object, which viewers and archives of clinics lay over the series."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from inference.dicom import import_pydicom
from inference.prediction import Prediction
from inference.volumes import Volume
from utils.files import reading, write_atomically
from utils.plots import class_colours

# SNOMED CT codes of the structures that have one of their own; the others are anatomical structures with a label
CODES = {
    "aorta": ("15825003", "Aorta"),
    "gallbladder": ("28231008", "Gallbladder"),
    "left kidney": ("18639004", "Left kidney"),
    "right kidney": ("9846003", "Right kidney"),
    "liver": ("10200004", "Liver"),
    "pancreas": ("15776009", "Pancreas"),
    "spleen": ("78961009", "Spleen"),
    "stomach": ("69695003", "Stomach"),
}
ANATOMICAL_STRUCTURE = ("91723000", "Anatomical Structure")
# which every DICOM object of a patient must have, but may leave empty; anonymised files often lack them
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
SERIES_NUMBER = 100  # added to that of the images, as no other series of the study is likely to have it
LABEL_LENGTH = 64  # characters of a segment's label


def import_highdicom() -> ModuleType:
    """highdicom. Raises ValueError with the command that installs it."""
    try:
        import highdicom
        import highdicom.color
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--dicom-seg: found no module {error.name!r}, which it needs; pip install -r requirements-extra.txt"
        ) from error
    return highdicom


def save_dicom_seg(path: Path, result: Prediction, network: str) -> None:
    """Writes the mask of a DICOM series in one step: a segment for each class, a frame for each slice that holds one,
    each of which refers to its image.

    network: the first digits of its weights' SHA-256, as the version of the algorithm

    Raises ValueError for results of other files, and for series whose files lack what a DICOM-SEG object must say."""
    volume = result.source
    if not isinstance(volume, Volume) or not volume.files:
        raise ValueError(f"--dicom-seg: {path.stem} is no DICOM series, expected one to refer to")
    if volume.spacing is None:
        raise ValueError(f"--dicom-seg: {path.stem} does not say how large its voxels are")
    highdicom, pydicom = import_highdicom(), import_pydicom()
    images = []
    for file in volume.files:
        with reading(file):
            image = pydicom.dcmread(file, stop_before_pixels=True)
        for name in set(MAY_BE_EMPTY) - set(image.dir()):
            setattr(image, name, None)
        if not image.get("SliceThickness"):
            image.SliceThickness = float(np.linalg.norm(volume.affine[:3, 2]))  # a frame has the slices' distance
        images.append(image)
    several = {str(image.get("SeriesInstanceUID")) for image in images}
    if len(several) > 1:
        raise ValueError(f"--dicom-seg: {path.stem} is of {len(several)} series, expected one to refer to")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
            warnings.filterwarnings("ignore", "Encoding an empty segmentation")
            segmentation = highdicom.seg.Segmentation(
                source_images=images,
                pixel_array=np.ascontiguousarray(volume.as_stored(result.mask).transpose(2, 1, 0)),
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments(highdicom, result.class_names, result.colours, network),
                series_instance_uid=highdicom.UID(),
                series_number=int(images[0].get("SeriesNumber") or 0) + SERIES_NUMBER,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="VM-UNet",
                manufacturer_model_name="VM-UNet",
                software_versions=network,
                device_serial_number="none",
                content_label="SEGMENTATION",
                series_description="VM-UNet segmentation",
            )
    except (AttributeError, ValueError, TypeError) as error:  # what highdicom raises for headers it can't use
        raise ValueError(f"--dicom-seg: {path.stem} can't be referred to: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as buffer:
        segmentation.save_as(buffer)
        write_atomically(path, buffer.getvalue())


def segments(highdicom: ModuleType, class_names: Sequence[str], colours: Sequence[str], network: str) -> list[Any]:
    """The descriptions of the classes 1, 2, ..."""

    def code(value: str, meaning: str) -> Any:
        return highdicom.sr.CodedConcept(value, "SCT", meaning)

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="VM-UNet",
        version=network,
        family=highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:LABEL_LENGTH],
            segmented_property_category=code("123037004", "Anatomical Structure"),
            segmented_property_type=code(*CODES.get(name, ANATOMICAL_STRUCTURE)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=highdicom.UID(),
            tracking_id=name[:LABEL_LENGTH],
            display_color=highdicom.color.CIELabColor.from_rgb(*colour),
        )
        for number, (name, colour) in enumerate(
            zip(class_names, class_colours(len(class_names), colours), strict=True), start=1
        )
    ]
