"""The numbers of docs/packages.md: packages of the original and their replacements here, on real data.

    OMP_NUM_THREADS=1 python -m benchmarks.packages VOLUME PHOTO [--output FILE]

VOLUME is a case of data/Synapse/test_vol_h5, PHOTO an image of ISIC. Needs requirements-dev.txt (medpy, torchvision),
and scikit-learn for the last table. Times are milliseconds of one core, medians of runs that take turns."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import models.torchvision_compat  # noqa: F401  isort: skip (before torchvision)

import h5py
import numpy as np
import torch
import torchvision.transforms.functional as TF
from medpy.metric import binary
from scipy.ndimage import gaussian_filter, zoom

from benchmarks import common
from datasets.image_reading import read_image
from datasets.synapse import ORGANS
from datasets.transforms import ISICTransform, minmax, resize, rotate, rotation_map
from utils.metrics import confusion_counts_per_image
from utils.volume import hd95, zoom_cubic, zoom_nearest

ROUNDS = 7
SIZE = 224
ANGLE = 123.456  # degrees


ALWAYS = SimpleNamespace(random=lambda: 0.0)  # in place of a random.Random: both flips and the rotation happen


def compare(what: str, package: Callable, ours: Callable) -> dict[str, str | float]:
    """Return a row of a table: the times of a package's function and of ours, and whether their results agree."""
    times = common.medians({"package": package, "ours": ours}, ROUNDS, time.process_time)
    a, b = package(), ours()
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    distance = max(np.abs(np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64)).max() for x, y in pairs)
    result = "equal" if distance == 0 else f"within {distance:.0e}"
    return {"what": what, **times, "ratio": times["package"] / times["ours"], "result": result}


def smooth(mask: np.ndarray) -> np.ndarray:
    """Return a plausible prediction of a mask, a little smoother."""
    return gaussian_filter(mask.astype(np.float32), 1.5) > 0.4


def compare_hd95(labels: np.ndarray) -> Iterator[dict]:
    """Compare medpy's hd95 with ours, for each organ."""
    for number, organ in enumerate(ORGANS, 1):
        label = labels == number
        if label.any():
            pred = smooth(label)
            yield compare(organ, partial(binary.hd95, pred, label), partial(hd95, pred, label))


def compare_zooms(image: np.ndarray, labels: np.ndarray) -> Iterator[dict]:
    """Compare scipy's zoom slice by slice, as in the original, with ours."""
    factors = [SIZE / side for side in image.shape[1:]]

    def zoom_slices(slices, order):
        return np.stack([zoom(image, factors, order=order) for image in slices])

    size = (SIZE, SIZE)
    yield compare("image, cubic", partial(zoom_slices, image, order=3), partial(zoom_cubic, image, size))
    yield compare("labels, nearest", partial(zoom_slices, labels, order=0), partial(zoom_nearest, labels, size))


def compare_transforms(photo: torch.Tensor) -> Iterator[dict]:
    """Compare torchvision's transforms, chained as in the original, with ours."""
    mask = photo[:1] // 128 * 255
    stretched, transform = minmax(photo), ISICTransform(SIZE, angle=ANGLE)

    def rotate_anew():
        rotation_map.cache_clear()
        return rotate(stretched, ANGLE)

    def chain():
        image, target = minmax(photo), mask.double() / 255
        image, target = TF.hflip(image), TF.hflip(target)
        image, target = TF.vflip(image), TF.vflip(target)
        image, target = TF.rotate(image, ANGLE), TF.rotate(target, ANGLE)
        image, target = (TF.resize(tensor, [SIZE, SIZE], antialias=False) for tensor in (image, target))
        return image.float(), target.float()

    theirs = partial(TF.rotate, stretched, ANGLE)
    yield compare("rotate, one angle for the run", theirs, partial(rotate, stretched, ANGLE))
    yield compare("rotate, an angle for each image", theirs, rotate_anew)
    theirs = partial(TF.resize, stretched, [SIZE, SIZE], antialias=False)
    yield compare("resize", theirs, partial(resize, stretched, SIZE))
    yield compare("stretch, flip twice, rotate, resize", chain, partial(transform, photo, mask, ALWAYS))


def compare_counts(labels: np.ndarray) -> Iterator[dict]:
    """Compare scikit-learn's confusion matrix of all pixels, as in the original, with ours."""
    try:
        from sklearn.metrics import confusion_matrix
    except ModuleNotFoundError:
        return
    true = labels > 0
    pred = smooth(true)
    order = [3, 1, 2, 0]  # of tp, fp, fn, tn in a flat confusion matrix

    def theirs():
        return confusion_matrix(true.ravel(), pred.ravel()).ravel()[order]

    ours = partial(confusion_counts_per_image, torch.from_numpy(pred)[None], torch.from_numpy(true)[None])
    yield compare(f"{true.size / 1e6:.1f} M pixels", theirs, ours)


def main() -> None:
    report = common.start(__doc__, "packages", "volume", "photo", tune=False)
    with h5py.File(report.options.volume) as file:
        image, labels = file["image"][:], file["label"][:].astype(np.uint8)
    photo = read_image(report.options.photo)
    voxels, pixels = (" x ".join(map(str, shape)) for shape in (image.shape, photo.shape[1:]))
    for title, rows in {
        f"medpy: HD95 of organs in {voxels} voxels": compare_hd95(labels),
        f"scipy: zoom of {voxels} voxels to slices of {SIZE} x {SIZE}": compare_zooms(image, labels),
        f"torchvision: a photograph of {pixels} to {SIZE} x {SIZE}": compare_transforms(photo),
        "scikit-learn: confusion matrix": compare_counts(labels),
    }.items():
        report.table(title, list(rows))


if __name__ == "__main__":
    main()
