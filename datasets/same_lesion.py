"""Find photographs in data folders that may show the same lesion, for a person to confirm.

    python -m datasets.same_lesion data/mine
    python -m datasets.same_lesion data/isic17 data/isic18

A folder holds {train,val,test}/images, images, or the photographs themselves. The output folder gets same_lesion.csv, a
row for each pair of photographs with local features that match (also turned, scaled, mirrored, in other colours), and
contact sheets of the pairs. All pairs are candidates: rulers, hair, ink and frames match too, and some views of a
lesion are missed. Look at each, delete the rows that are wrong, and copy the file into data/mine: folds then keep the
photographs of a lesion together (datasets/folds.py).

Method: RootSIFT (Arandjelovic and Zisserman 2012) of all photographs and of their mirror images. Each of the strongest
features votes for the images with the most similar ones; where a pair has enough votes, RANSAC counts the matches that
agree on one affine map.
"""

import utils.start

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from tqdm import tqdm

from datasets.check.contact_sheet import Cell, save_sheet
from datasets.image_reading import read_image
from datasets.isic import list_images
from datasets.lesions import SAME_LESION
from utils.files import RESULTS, first_few, write_rows
from utils.machine.device import available_cpus
from utils.optional import optional
from utils.runs.command_line import run

SIDE = 256  # pixels of the longer side in which features are detected
FEATURES, VOTING = 400, 64  # strongest features of an image: for matches, for votes
COMPONENTS = 64  # principal components of the voting features, which hold 98 % of their squares
CONTRAST = 0.01  # of a feature, a quarter of SIFT's default: skin is smooth
NEIGHBOURS, VOTES = 2, 4  # images that a feature votes for; votes of a pair that is verified
RATIO = 0.85  # of the distances of a match to the nearest and the second nearest feature of the other image (Lowe 2004)
TOLERANCE = 4.0  # pixels between a feature and the map of its match
MATCHES = 8  # fewest on one map: different lesions without a ruler reach 5
STRETCH = 2.0  # largest ratio of a map's two scales: photographs were resized to squares
ROWS = 400  # features whose similarities are computed at once
ON_A_SHEET = 48  # pairs


@dataclass(kw_only=True)
class FindSameLesion:
    folders: Annotated[tuple[str, ...], tyro.conf.Positional]  # with photographs
    output: str | None = None  # folder for the pairs; none: results/same_lesion_<name of the first folder>
    debug: bool = False  # show the traceback of errors


class Features(NamedTuple):
    """Local features of an image, the strongest first."""

    places: np.ndarray  # (n, 2) x and y in pixels, float32
    descriptors: np.ndarray  # (n, 128) of length 1, float32


class Candidate(NamedTuple):
    """Two photographs that may show the same lesion."""

    first: str
    second: str
    matches: int  # features that agree on one map
    mirrored: bool


def find_images(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Return {stem: path} of the photographs in data folders. The first file counts if several have one stem; a line
    says so."""
    if not folders:
        raise ValueError("datasets.same_lesion: found no folder, expected one or more with photographs")
    found: dict[str, list[Path]] = {}
    for folder in map(Path, folders):
        inside = [folder / part / "images" for part in ("train", "val", "test", "")]
        images = [list_images(place) for place in inside if place.is_dir()] or [list_images(folder)]
        if not any(images):
            raise FileNotFoundError(f"{folder} holds no images, expected photographs (data/README.md)")
        for stem, paths in (item for listed in images for item in listed.items()):
            found.setdefault(stem, []).extend(paths)
    several = sorted(stem for stem, paths in found.items() if len({path.resolve() for path in paths}) > 1)
    if several:
        print(f"note: {len(several)} names belong to several files, of which the first is read: {first_few(several)}")
    return {stem: paths[0] for stem, paths in sorted(found.items())}


def find_candidates(paths: dict[str, Path]) -> list[Candidate]:
    """Return the Candidates among {stem: path}, those with most matches first."""
    cv2 = optional("cv2", "datasets.same_lesion")
    stems, found = list(paths), {}
    with ThreadPoolExecutor(available_cpus()) as pool:
        tasks = pool.map(partial(detect, cv2), paths.values())
        images = list(tqdm(tasks, "features", len(paths), unit=" images", disable=None))
        for mirrored in (False, True):
            others = [mirror(features) for features in images] if mirrored else images
            pairs = vote(images, others)
            tasks = pool.map(partial(count_matches, cv2), (images[i] for i, _ in pairs), (others[j] for _, j in pairs))
            for (i, j), matches in zip(pairs, tqdm(tasks, "matches", len(pairs), disable=None), strict=True):
                if matches >= MATCHES and ((i, j) not in found or matches > found[i, j].matches):
                    found[i, j] = Candidate(stems[i], stems[j], matches, mirrored)
    return sorted(found.values(), key=lambda pair: (-pair.matches, pair))


def detect(cv2: ModuleType, path: Path) -> Features:
    """Return the Features of an image file."""
    grey = cv2.cvtColor(read_image(path).permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
    scale = SIDE / max(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    points, descriptors = cv2.SIFT_create(FEATURES, contrastThreshold=CONTRAST).detectAndCompute(grey, None)
    if not points:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    order = np.argsort([-point.response for point in points], kind="stable")[:FEATURES]
    places = np.array([points[k].pt for k in order], np.float32)
    return Features(places, np.sqrt(descriptors[order] / descriptors[order].sum(1, keepdims=True)))


def mirror(features: Features) -> Features:
    """Return the Features of the mirror image: 4 x 4 cells from one side to the other, 8 directions backwards."""
    cells = features.descriptors.reshape(-1, 4, 4, 8)[:, ::-1, :, -np.arange(8)]
    return Features(features.places * np.array([-1, 1], np.float32), cells.reshape(-1, 128))


def vote(images: Sequence[Features], others: Sequence[Features]) -> list[tuple[int, int]]:
    """Return the pairs i < j of image i and other j with at least VOTES votes."""
    queries, bank = torch.zeros(2, len(images), VOTING, 128)  # a missing feature is similar to none
    for row, other_row, image, other in zip(queries, bank, images, others, strict=True):
        for target, features in ((row, image), (other_row, other)):
            target[: len(features.descriptors)] = torch.from_numpy(features.descriptors[:VOTING])
    axes = torch.linalg.eigh(torch.einsum("ifd,ife->de", queries, queries)).eigenvectors[:, -COMPONENTS:]
    queries, bank = queries @ axes, (bank @ axes).flatten(0, 1)
    votes = torch.zeros(len(images), len(images))
    step = max(1, ROWS // VOTING)
    for start in tqdm(range(0, len(images), step), "votes", unit=" blocks", disable=None):
        block = queries[start : start + step].flatten(0, 1)
        best = (block @ bank.T).unflatten(1, (len(images), VOTING)).amax(2).unflatten(0, (-1, VOTING))
        for i, similar in enumerate(best, start):  # (VOTING, images)
            similar[:, i] = 0
            values, nearest = similar.topk(min(NEIGHBOURS, len(images)))
            votes[i].index_add_(0, nearest.flatten(), (values > 0).float().flatten())
    enough = (votes + votes.T).triu(1) >= VOTES
    return [(int(i), int(j)) for i, j in enough.nonzero()]


def count_matches(cv2: ModuleType, first: Features, second: Features) -> int:
    """Return how many features of two images match on one affine map that is no reflection."""
    if min(len(first.places), len(second.places)) < 3:
        return 0
    similar = first.descriptors @ second.descriptors.T
    nearest = similar.argmax(1)
    mutual = similar.argmax(0)[nearest] == np.arange(len(nearest))
    second_best, best = np.sqrt(np.maximum(2 - 2 * np.partition(similar, -2, 1)[:, -2:], 0)).T  # distances
    kept = mutual & (best <= RATIO * second_best)
    if kept.sum() < MATCHES:
        return 0
    places = first.places[kept], second.places[nearest[kept]]
    map_, inliers = cv2.estimateAffine2D(
        *places, method=cv2.USAC_MAGSAC, ransacReprojThreshold=TOLERANCE, maxIters=2000
    )
    if map_ is None or np.linalg.det(map_[:, :2]) <= 0 or np.linalg.cond(map_[:, :2]) > STRETCH:
        return 0
    return len(np.unique(places[1][inliers.ravel() > 0].round(), axis=0))  # features at one place count once


def save_sheets(output: Path, pairs: Sequence[Candidate], paths: dict[str, Path]) -> None:
    """Write contact sheets with both photographs of each pair, side by side."""
    for start in range(0, len(pairs), ON_A_SHEET):
        cells = []
        for number, pair in enumerate(pairs[start : start + ON_A_SHEET], start + 1):
            note = f"pair {number}: {pair.matches} matches" + ", mirrored" * pair.mirrored
            cells += [Cell(stem, partial(picture, paths[stem]), note) for stem in (pair.first, pair.second)]
        title = "Candidates: do both photographs of a pair show the same lesion?"
        save_sheet(output / f"pairs_{start + 1:04d}.png", title, cells, side=200)


def picture(path: Path) -> tuple[torch.Tensor, None]:
    return read_image(path), None


def main(options: FindSameLesion) -> None:
    paths = find_images(options.folders)
    output = Path(options.output or RESULTS / f"same_lesion_{Path(options.folders[0]).resolve().name}")
    if (output / SAME_LESION).exists():
        raise ValueError(f"--output {output}: found {SAME_LESION}, which may have been edited; expected another folder")
    pairs = find_candidates(paths)
    output.mkdir(parents=True, exist_ok=True)
    write_rows(output / SAME_LESION, [{"pair": number, **pair._asdict()} for number, pair in enumerate(pairs, 1)])
    save_sheets(output, pairs, paths)
    print(f"{len(paths)} photographs: {len(pairs)} pairs may show the same lesion, {output / SAME_LESION}")
    if pairs:
        print(
            f"They are candidates: look at each on the contact sheets in {output} and delete the rows that are wrong."
        )


if __name__ == "__main__":
    run(main, FindSameLesion)
