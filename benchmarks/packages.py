"""The numbers of docs/packages.md: packages of the original against what replaced them here, on real data.

    OMP_NUM_THREADS=1 python -m benchmarks.packages VOLUME PHOTO [--output FILE]

VOLUME is a case of data/Synapse/test_vol_h5, PHOTO an image of ISIC. Needs requirements-dev.txt (medpy, torchvision),
and for the last table scikit-learn, which nothing else here uses. Times are milliseconds of one core, medians of runs
that take turns."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import models.torchvision_compat  # noqa: F401  isort: skip (before torchvision)

import h5py
import numpy as np
import torch
import torchvision.transforms.functional as TF
from medpy.metric import binary
from scipy.ndimage import gaussian_filter, zoom

from benchmarks import common
from configs.config_setting_synapse import ORGANS
from datasets.isic import read_image
from datasets.transforms import ISICTransform, minmax, resize, rotate, rotation_map
from utils.metrics import confusion_counts
from utils.volume import hd95, zoom_cubic, zoom_nearest

ROUNDS = 7
TURN = 0.1  # seconds of a turn; a function is called at least once
SIZE = 224
ANGLE = 123.456  # degrees


class Always:
    """Stands for a random.Random whose draws are all 0: both flips and the rotation happen."""

    def random(self) -> float:
        return 0.0


def compare(what: str, package: Callable, ours: Callable) -> dict[str, str | float]:
    """A row of a table: the time that a package's function takes and ours, and whether their results agree."""
    functions, times = {"package": package, "ours": ours}, {"package": [], "ours": []}
    for number in range(1 + ROUNDS):  # the first round warms up
        for name, function in functions.items():
            began, calls = time.process_time(), 0
            while calls == 0 or time.process_time() - began < TURN:
                function()
                calls += 1
            if number > 0:
                times[name].append(1e3 * (time.process_time() - began) / calls)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["package"] / medians["ours"]
    return {"what": what, **medians, "ratio": ratio, "result": difference(package(), ours())}


def difference(a, b) -> str:
    """How far apart two results are: numbers, arrays, tensors, or tuples of tensors."""
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    distance = max(np.abs(np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64)).max() for x, y in pairs)
    return "equal" if distance == 0 else f"within {distance:.0e}"


def smoothed(mask: np.ndarray) -> np.ndarray:
    """A prediction of a mask as a network might make it, a little smoother."""
    return gaussian_filter(mask.astype(np.float32), 1.5) > 0.4


def compare_hd95(labels: np.ndarray) -> Iterator[dict]:
    """medpy's hd95 against ours, for each organ."""
    for number, organ in enumerate(ORGANS, 1):
        label = labels == number
        if label.any():
            pred = smoothed(label)
            yield compare(organ, partial(binary.hd95, pred, label), partial(hd95, pred, label))


def compare_zooms(image: np.ndarray, labels: np.ndarray) -> Iterator[dict]:
    """scipy's zoom of one slice after the other, as in the original, against ours."""
    factors = [SIZE / side for side in image.shape[1:]]

    def zoom_slices(slices, order):
        return np.stack([zoom(one, factors, order=order) for one in slices])

    size = (SIZE, SIZE)
    yield compare("image, cubic", partial(zoom_slices, image, order=3), partial(zoom_cubic, image, size))
    yield compare("labels, nearest", partial(zoom_slices, labels, order=0), partial(zoom_nearest, labels, size))


def compare_transforms(photo: torch.Tensor) -> Iterator[dict]:
    """torchvision's transforms, chained as in the original, against ours."""
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

    yield compare(
        "rotate, one angle for the run", partial(TF.rotate, stretched, ANGLE), partial(rotate, stretched, ANGLE)
    )
    yield compare("rotate, an angle for each image", partial(TF.rotate, stretched, ANGLE), rotate_anew)
    yield compare(
        "resize", partial(TF.resize, stretched, [SIZE, SIZE], antialias=False), partial(resize, stretched, SIZE)
    )
    yield compare("stretch, flip twice, rotate, resize", chain, partial(transform, photo, mask, Always()))


def compare_counts(labels: np.ndarray) -> Iterator[dict]:
    """scikit-learn's confusion matrix of all pixels together, as in the original, against ours."""
    try:
        from sklearn.metrics import confusion_matrix
    except ModuleNotFoundError:
        return
    true = labels > 0
    pred = smoothed(true)

    def with_sklearn():
        (tn, fp), (fn, tp) = confusion_matrix(true.ravel(), pred.ravel())
        return [tp, fp, fn, tn]

    ours = partial(confusion_counts, torch.from_numpy(pred)[None], torch.from_numpy(true)[None])
    yield compare(f"{true.size / 1e6:.1f} M pixels", with_sklearn, ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results", "benchmarks", "packages.json"))
    options = parser.parse_args()
    with h5py.File(options.volume) as file:
        image, labels = file["image"][:], file["label"][:].astype(np.uint8)
    photo = read_image(options.photo)
    report = common.Report(options.output, common.environment(fast_matmuls=False))
    voxels = " x ".join(map(str, image.shape))
    for title, rows in {
        f"medpy: HD95 of organs in {voxels} voxels": compare_hd95(labels),
        f"scipy: zoom of {voxels} voxels to slices of {SIZE} x {SIZE}": compare_zooms(image, labels),
        f"torchvision: a photograph of {photo.shape[1]} x {photo.shape[2]} to {SIZE} x {SIZE}": compare_transforms(
            photo
        ),
        "scikit-learn: confusion matrix": compare_counts(labels),
    }.items():
        if rows := list(rows):
            report.table(title, rows)


if __name__ == "__main__":
    main()
