"""Every reader of files against altered files: it reads them or raises OSError or ValueError, soon.

    pip install atheris                                        # Linux
    python tests/fuzz_readers.py png -atheris_runs=100000      # one of READERS; further flags are libFuzzer's

test_untrusted.py does the same with fewer inputs."""

import gzip
import importlib.util
import io
import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py  # noqa: E402
import nibabel  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from configs.config_setting import ISICConfig  # noqa: E402
from configs.resolve import resolve  # noqa: E402
from datasets.downloads import zip_members  # noqa: E402
from datasets.image_reading import read_image  # noqa: E402
from datasets.masks import read_mask  # noqa: E402
from datasets.synapse import SynapseSlices, SynapseVolumes, read_list  # noqa: E402
from datasets.transforms import RandomGenerator  # noqa: E402
from datasets.volume_sources import read_arrays  # noqa: E402
from inference.inputs import search  # noqa: E402
from inference.volume_inputs import read_volume  # noqa: E402
from models.weights.packed import pack_weights  # noqa: E402
from utils.files import read_rows  # noqa: E402
from utils.runs.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from utils.runs.named_weights import read_checkpoint  # noqa: E402

PIXELS = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
LABELS = (PIXELS[..., 0] > 99).astype(np.float32)


def picture(kind, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def masks():
    file = io.BytesIO()
    Image.fromarray(255 * LABELS.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def npz(array=LABELS, **more):
    file = io.BytesIO()
    np.savez_compressed(file, image=array, label=array, **more)
    return file.getvalue()


def h5(**more):
    file = io.BytesIO()
    with h5py.File(file, "w") as arrays:
        for name in ("image", "label"):
            arrays.create_dataset(name, data=LABELS[None], compression="gzip")
        arrays.attrs["spacing"] = (3.0, 1.0, 1.0)
        arrays.attrs.update(more)
    return file.getvalue()


def nifti():
    image = nibabel.Nifti1Image(PIXELS.astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def dicom(number=0, compressed=False):
    """A CT slice."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.{number}"
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.9"
    file.Modality, file.InstanceNumber, file.PhotometricInterpretation = "CT", number + 1, "MONOCHROME2"
    file.ImagePositionPatient, file.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.RescaleSlope, file.RescaleIntercept = [0.8, 0.7], 1, -1024
    file.Rows, file.Columns, file.SamplesPerPixel, file.PixelRepresentation = 9, 7, 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelData = PIXELS[..., 0].astype("<u2").tobytes()
    if compressed:
        file.compress(pydicom.uid.RLELossless, encoding_plugin="pydicom")
    stored = io.BytesIO()
    file.save_as(stored, enforce_file_format=True)
    return stored.getvalue()


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("Set/a.png", masks())
        members.writestr("Set/b.txt", "text")
    return file.getvalue()


def checkpoint(save=torch.save):
    path = Path(tempfile.mkdtemp(), "c.pth")
    state = {"model": {"weight": torch.ones(3, 2)}, "epoch": 1}
    save(path, state) if save is save_checkpoint else save(state, path)
    return path.read_bytes()


def as_listed(kind):
    """A reader of one slice or volume, with a list that names it."""

    def read(path):
        (path.parent / "train.txt").write_text(path.name.split(".")[0])
        if kind is SynapseSlices:
            return SynapseSlices(path.parent, path.parent, RandomGenerator(8))[0]
        return SynapseVolumes(path.parent, path.parent, list_name="train.txt")[0]

    return read


def as_input(path):
    """The reader of predict.py's volumes. A DICOM file is a slice of a series."""
    if path.suffix == ".dcm":
        for number in (1, 2):
            (path.parent / f"{number}.dcm").write_bytes(dicom(number))
    found = search([path.parent if path.suffix == ".dcm" else path])
    if found.exclusions or not found.inputs:
        raise ValueError(f"left out: {found.exclusions}")
    for item in found.inputs:
        read_volume(item)


def members(path):
    return [member.read_bytes() for member in zip_members(path)]


def stored_config(path):
    return resolve(ISICConfig(resume=str(path.parent)))


READERS = {  # name of the file, a good one, what reads it
    "png": ("a.png", picture("PNG"), read_image),
    "jpeg": ("a.jpg", picture("JPEG"), read_image),
    "bmp": ("a.bmp", picture("BMP"), read_image),
    "webp": ("a.webp", picture("WEBP", lossless=True), read_image),
    "tiff": ("a.tif", picture("TIFF", compression="tiff_lzw"), read_image),
    "mask": ("a.png", masks(), read_mask),
    "npz": ("case0001_slice000.npz", npz(), as_listed(SynapseSlices)),
    "h5": ("case0001.npy.h5", h5(), as_listed(SynapseVolumes)),
    "list": ("train.txt", b"case0001_slice000\ncase0002_slice000\n", lambda path: read_list(path.parent, path.name)),
    "checkpoint": ("latest.pth", checkpoint(save_checkpoint), load_checkpoint),
    "weights": ("best.pth", checkpoint(), read_checkpoint),
    "packed": ("best.h5", pack_weights({"weight": torch.ones(30, 20), "bias": torch.ones(1)}, {}, {}), read_checkpoint),
    "config": ("config.json", json.dumps(vars(ISICConfig())).encode(), stored_config),
    "rows": ("metrics.csv", b"epoch,loss\n1,0.5\n", read_rows),
    "zip": ("a.zip", archive(), members),
    "nifti": ("a.nii", nifti(), as_input),
    "nifti_gz": ("a.nii.gz", gzip.compress(nifti(), mtime=0), as_input),
    "volume_h5": ("a.h5", h5(affine=np.diag([1.0, 1.0, 3.0, 1.0])), as_input),
    "volume_npz": ("a.npz", npz(LABELS[None], spacing=np.array([3.0, 1.0, 1.0])), read_arrays),
}
if importlib.util.find_spec("pydicom"):
    READERS["dicom"] = "a.dcm", dicom(), as_input
    READERS["dicom_rle"] = "a.dcm", dicom(compressed=True), as_input


def altered(content, rng):
    """A few changes to a good file: bytes and runs of bytes replaced, doubled or cut."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(content) + 1)
        length = rng.choice((1, 1, 2, 4, rng.randint(0, 64)))
        kind = rng.randrange(4)
        if kind == 0:
            content[place : place + length] = rng.randbytes(length)
        elif kind == 1:
            content[place : place + length] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif kind == 2:
            del content[place : place + rng.choice((length, len(content)))]
        else:
            content[place:place] = content[place : place + length]
    return bytes(content)


def feed(name, content, folder):
    """Whether the reader took these bytes; whatever it raises but OSError and ValueError goes on."""
    file, _, read = READERS[name]
    path = Path(folder, file)
    path.write_bytes(content)
    try:
        read(path)
    except (OSError, ValueError):
        return False
    return True


def main():
    import atheris

    name = sys.argv.pop(1)
    folder, good, counts = tempfile.mkdtemp(), READERS[name][1], [0, 0]

    def one(data):
        # half of the inputs are libFuzzer's own, half are changes to a good file that it steers
        content = data if len(data) % 2 else altered(good, random.Random(data))
        counts[feed(name, content, folder)] += 1
        if sum(counts) % 10000 == 0:
            print(f"{name}: {sum(counts)} inputs, {counts[1]} of them read", flush=True)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
