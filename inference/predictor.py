"""A trained network, ready for images and volumes of any size."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from datasets.files import checked_spacing
from datasets.intensities import Scaling, to_unit, without_nan
from datasets.isic import stretched_rgb
from datasets.nifti import STORED, affine_of_slices
from datasets.synapse import ORIENTATION
from inference.inputs import Input, find_inputs
from inference.member import Member, agree, as_slice, check_alike
from inference.network import import_monai
from inference.options import Options
from inference.pictures import Picture, read_picture
from inference.prediction import Prediction
from inference.trained import CT_DATASETS, load_trained
from inference.volumes import Volume, read_volume
from utils.machine.device import available_cpus, choose_device
from utils.volume import predict_volume

log = logging.getLogger("vmunet")

READ_AHEAD = 16  # images that are read while others are predicted, beside those of the next batch
TOGETHER = 32  # images that are predicted at once: few enough that others are read and saved meanwhile
LARGEST_PICTURES = 500_000_000  # bytes of images in one batch, and of those read ahead
LARGEST_GROUP = 16  # slices whose probabilities are made at once

Prepared = list[torch.Tensor]  # a picture as each network gets it
Named = str | os.PathLike[str]  # see utils.runs.shipped.find_checkpoint


class Predictor:
    """A trained network, ready for images and volumes of any size; or several, whose probabilities are averaged.

        Predictor("isic17", tta="flips").predict("photo.jpg").mask
        Predictor(["results/fold0", "results/fold1"]).predict("photo.jpg").disagreement

    Args:
        checkpoint: a file, the folder of a run, or the name of a network that comes with the code; or a list of them.
            Each network gets its input in its own size and normalisation; classes and kind must be the same.
        options: those of the command line, see `Options`

    Raises ValueError and OSError for checkpoints and options that can't be used."""

    def __init__(self, checkpoint: Named | Sequence[Named], **options: Any):
        self.options = o = Options(**options)
        names = [checkpoint] if isinstance(checkpoint, str | os.PathLike) else list(checkpoint)
        if not names:
            raise ValueError("found no checkpoint, expected one or several")
        changes = dict(
            image_size=o.image_size,
            normalization=o.normalization,
            threshold=o.threshold,
            volume_resize=o.volume_resize,
            precision=o.precision,
            scan_backend=o.scan_backend,
        )
        trained = [load_trained(name, o.kind, **changes) for name in names]
        self.config = trained[0].config
        self.volumes: bool = self.config.of_volumes
        self.class_names: list[str] = self.config.structures  # of the classes 1, 2, ...
        if o.sliding_window:
            import_monai()
        self._check_options()
        self.device = choose_device(o.device)
        spread = len(trained) > 1 or o.tta != "none"
        self.members = [Member(one, o, self.device, spread) for one in trained]
        check_alike(self.members, [str(name) for name in names])
        if len(names) > 1 and o.volume_resize is not None:
            raise ValueError("--volume-resize: found a value, but of several networks the probabilities are resized")
        self.network = self.members[0].network
        self.sha256 = self.members[0].sha256  # of the first checkpoint's file

    def predict(
        self, source: str | os.PathLike[str] | npt.ArrayLike, spacing: Sequence[float] | np.ndarray | None = None
    ) -> Prediction:
        """The Prediction for a file, a DICOM folder, or an array.

        An array is an image (H, W), (H, W, 3) or (H, W, 4), or for a network of volumes (S, H, W) in the orientation of
        training; `spacing` gives the mm of its axes. What is not 8-bit is stretched as deep image files are."""
        if isinstance(source, str | os.PathLike):
            found = find_inputs([source])
            if len(found) > 1:
                raise ValueError(f"{source} holds {len(found)} inputs; expected one (`predict_all` takes many)")
            return self._predict(self._read(found[0]))
        array, mm = np.asarray(source), None if spacing is None else np.asarray(spacing, dtype=float)
        if not self.volumes:
            return self._predict(_picture_of_array(array), mm)
        if array.ndim not in (2, 3):
            raise ValueError(f"found an array of shape {array.shape}, expected a volume (slices, rows, columns)")
        mm = mm if mm is None else checked_spacing(mm, "the array")
        volume = Volume(array[None] if array.ndim == 2 else array, mm, affine_of_slices(mm))
        return self._predict(self._scaled(volume, "the array"))

    def predict_all(
        self, inputs: Iterable[Input], on_error: Callable[[Input, Exception], None] | None = None
    ) -> Iterator[tuple[Input, Prediction]]:
        """Pairs (Input, Prediction) for many inputs of `find_inputs`, in order; images in batches, read ahead.

        An input that can't be read or predicted ends this with its error, or is handed to `on_error(input, error)` and
        left out."""
        batch: list[tuple[Input, Picture, Prepared]] = []
        for item, source, prepared in self._read_ahead(inputs, on_error):
            if isinstance(source, Volume):
                yield from self._predict_batch(batch, on_error)
                batch = []
                yield from self._predict_one(item, source, on_error)
                continue
            batch.append((item, source, prepared))
            if len(batch) >= self._together or sum(p.pixels.nbytes for _, p, _ in batch) > LARGEST_PICTURES:
                yield from self._predict_batch(batch, on_error)
                batch = []
        yield from self._predict_batch(batch, on_error)

    def _check_options(self) -> None:
        """Raises ValueError for options that this network would not heed, and for values that mean nothing."""
        o = self.options
        foreign: dict[str, object] = {"--pixel-size": o.pixel_size} if self.volumes else {"--window": o.window}
        if self.config.num_classes > 1:
            foreign["--threshold"] = o.threshold
        for flag, value in foreign.items():
            if value is not None:
                raise ValueError(f"{flag}: found {value}, but this network has no use for it")
        if not 0 <= o.overlap < 1:
            raise ValueError(f"--overlap {o.overlap}: expected a share from 0 to below 1")
        self.orientation = o.orientation or (self.config.orientation if self.volumes else ORIENTATION)
        axes = sorted({"R": "L", "A": "P", "I": "S"}.get(axis, axis) for axis in self.orientation)
        if self.orientation != STORED and axes != ["L", "P", "S"]:
            expected = f"L or R, P or A, S or I in any order, or {STORED}"
            raise ValueError(f"--orientation: found {self.orientation!r}, expected {expected}")
        if o.window is not None and not o.window[0] < o.window[1]:
            raise ValueError(f"--window: found {o.window}, expected a lower and a higher value")

    @property
    def _together(self) -> int:
        """Images in a batch."""
        return min(self.network.batch_size, TOGETHER)

    # ---- input

    def _read_ahead(
        self, inputs: Iterable[Input], on_error: Callable[[Input, Exception], None] | None
    ) -> Iterator[tuple[Input, Picture | Volume, Prepared]]:
        """Triples (Input, what it holds, the same for each network). Images are read and prepared in other threads
        before it is their turn."""
        remaining, waiting = iter(inputs), deque[tuple[Input, Future | None]]()
        with self._readers() as pool:
            while True:
                while len(waiting) < READ_AHEAD + self._together and _bytes_read(waiting) < LARGEST_PICTURES:
                    item = next(remaining, None)
                    if item is None:
                        break
                    # volumes are large: they are read when it is their turn
                    waiting.append((item, None if item.is_volume else pool.submit(self._read_and_prepare, item)))
                if not waiting:
                    return
                item, reading = waiting.popleft()
                try:
                    source, prepared = self._read_and_prepare(item) if reading is None else reading.result()
                except Exception as error:  # of any library, for files that nobody thought of
                    if on_error is None:
                        raise
                    on_error(item, error)
                else:
                    yield item, source, prepared

    @contextlib.contextmanager
    def _readers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that read and prepare. Beside a network on a GPU each of them computes with one thread: with several
        of PyTorch's they get in each other's way."""
        threads, beside_gpu = torch.get_num_threads(), self.device.type != "cpu"
        alone = functools.partial(torch.set_num_threads, 1) if beside_gpu else None
        try:
            with ThreadPoolExecutor(min(8, available_cpus()), initializer=alone) as pool:
                yield pool
        finally:
            if beside_gpu:
                torch.set_num_threads(threads)  # for threads that begin later, which take over what was set last

    def _read_and_prepare(self, item: Input) -> tuple[Picture | Volume, Prepared]:
        source = self._read(item)
        return source, self._prepared(source.pixels) if isinstance(source, Picture) else []

    def _prepared(self, picture: torch.Tensor) -> Prepared:
        """A uint8 picture (3, H, W) as each network gets it; nothing where slices or windows are made of it."""
        whole = not self.volumes and not self.options.sliding_window
        return [member.prepare(picture) for member in self.members] if whole else []

    def _read(self, item: Input) -> Picture | Volume:
        """The Picture or Volume of an input, with values as the network is used to."""
        if item.is_volume != self.volumes and not self.options.insist:
            found, expected = ("a volume", "an image") if item.is_volume else ("an image", "a volume")
            raise ValueError(
                f"{item.path} is {found}; expected {expected}, on which this network was trained (--insist predicts it "
                "all the same)"
            )
        if not item.is_volume:
            return read_picture(item)
        volume = read_volume(item, self.orientation)
        if self.volumes:
            return self._scaled(volume, item.path)
        return dataclasses.replace(volume, slices=without_nan(volume.slices, item.path))

    def _scaled(self, volume: Volume, name: object) -> Volume:
        """A volume with the values of training, see `to_unit`."""
        window = self.options.window
        if self.volumes and self.config.scaling and window is None and not volume.prepared:
            scaling = Scaling(self.config.scaling, *self.config.scaling_range)
            return dataclasses.replace(volume, slices=np.ascontiguousarray(scaling(volume.slices, name)))
        if volume.modality not in (None, "CT") and window is None:
            raise ValueError(
                f"{name} is of modality {volume.modality}; how the data set {self.config.dataset!r} scaled such values "
                "is not stored in the checkpoint: say with --window which values became 0 and 1"
            )
        hounsfield = self.config.dataset in CT_DATASETS and not volume.prepared
        scaled = to_unit(volume.slices, name, window, hounsfield)
        return dataclasses.replace(volume, slices=np.ascontiguousarray(scaled))

    # ---- network

    def _predict(self, source: Picture | Volume, spacing: np.ndarray | None = None) -> Prediction:
        if isinstance(source, Volume):
            return self._predict_volume(source)
        return next(self._predict_pictures([source], [self._prepared(source.pixels)], spacing))

    def _predict_one(
        self, item: Input, source: Picture | Volume, on_error: Callable[[Input, Exception], None] | None
    ) -> Iterator[tuple[Input, Prediction]]:
        """One pair; none if it went wrong and `on_error` was told."""
        try:
            result = self._predict(source)
        except Exception as error:  # too little memory, or a form of input that nobody thought of
            if on_error is None:
                raise
            on_error(item, error)
        else:
            yield item, result

    def _predict_batch(
        self, batch: list[tuple[Input, Picture, Prepared]], on_error: Callable[[Input, Exception], None] | None
    ) -> Iterator[tuple[Input, Prediction]]:
        if not batch:
            return
        items, pictures, prepared = zip(*batch, strict=True)
        try:
            results = list(self._predict_pictures(pictures, prepared))
        except Exception:  # of one of them: they go on one by one
            if on_error is None:
                raise
            for item, picture, _ in batch:
                yield from self._predict_one(item, picture, on_error)
        else:
            yield from zip(items, results, strict=True)

    def _predict_pictures(
        self, pictures: Sequence[Picture], prepared: Sequence[Prepared], spacing: np.ndarray | None = None
    ) -> Iterator[Prediction]:
        if spacing is None and self.options.pixel_size is not None:
            spacing = np.full(2, self.options.pixel_size)
        for picture, (probs, disagreement) in zip(
            pictures, self._probabilities([p.pixels for p in pictures], prepared), strict=True
        ):
            kept = probs if self.options.probabilities else None
            colours = self.config.structure_colours
            yield Prediction(self._decide(probs), kept, self.class_names, picture, spacing, colours, disagreement)

    def _decide(self, probs: np.ndarray) -> np.ndarray:
        """(C, ...) probabilities to class numbers, uint8, as train.py does."""
        if len(probs) == 1:
            return (probs[0] >= np.float32(self.config.threshold)).astype(np.uint8)
        return probs.argmax(0).astype(np.uint8)

    def _probabilities(
        self, pictures: Sequence[torch.Tensor], prepared: Sequence[Prepared]
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yields (probabilities (C, H, W), disagreement (H, W)) of uint8 pictures (3, H, W), each at its own size."""
        if self.volumes:
            for picture in pictures:
                probs, disagreement = self._of_slices(as_slice(picture))
                yield probs[:, 0], None if disagreement is None else disagreement[0]
        elif self.options.sliding_window:
            for picture in pictures:
                yield self._agreed([member.of_picture_by_windows(picture) for member in self.members])
        else:
            inputs = zip(*prepared, strict=True)  # of each network
            maps = (member.of_pictures(pictures, own) for member, own in zip(self.members, inputs, strict=True))
            answers = zip(*maps, strict=True)
            yield from map(self._agreed, answers)

    def _agreed(self, maps: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray | None]:
        """`agree` as arrays."""
        probs, disagreement = agree(maps, len(self.network.views))
        return probs.numpy(), None if disagreement is None else disagreement.numpy()

    def _of_slices(self, slices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(probabilities (C, S, H, W), disagreement (S, H, W)) of slices (S, H, W) with values of training, or for a
        network of images of any values."""
        if not self.volumes:
            pictures = [torch.from_numpy(stretched_rgb(pixels)).permute(2, 0, 1) for pixels in slices]
            prepared = [self._prepared(picture) for picture in pictures]
            probs, disagreements = zip(*self._probabilities(pictures, prepared), strict=True)
            return np.stack(probs, 1), None if disagreements[0] is None else np.stack(disagreements)
        if self.options.sliding_window:
            image = [torch.from_numpy(pixels)[None] for pixels in slices]
            maps = [torch.stack([member.by_windows(one) for one in image]) for member in self.members]
        else:
            maps = [member.of_slices(slices) for member in self.members]
        probs, disagreement = self._agreed(maps)
        return probs.swapaxes(0, 1), disagreement

    def _predict_volume(self, volume: Volume) -> Prediction:
        """Slices go in groups, so that what is kept of them needs little memory."""
        slices, group = volume.slices, min(self.network.batch_size, LARGEST_GROUP)
        one_resized = self.volumes and len(self.members) == 1 and not self.options.sliding_window
        answers = []
        with tqdm(total=len(slices), unit="slice", leave=False, disable=len(slices) < 2 or None) as bar:
            for start in range(0, len(slices), group):
                some = slices[start : start + group]
                if one_resized:
                    mask, probs, disagreement = self._resized(some)
                else:
                    probs, disagreement = self._of_slices(some)
                    mask = self._decide(probs)
                answers.append((mask, probs if self.options.probabilities else None, disagreement))
                bar.update(len(some))
        masks, probabilities, disagreements = zip(*answers, strict=True)
        return Prediction(
            np.concatenate(masks),
            np.concatenate(probabilities, 1) if self.options.probabilities else None,
            self.class_names,
            volume,
            volume.spacing,
            self.config.structure_colours,
            np.concatenate(disagreements) if self.members[0].spread else None,
        )

    def _resized(self, slices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """(mask, probabilities, disagreement) of slices by one network, the mask as evaluate in engine_synapse.py makes
        it; probabilities and disagreement only if they are asked for."""
        (member,) = self.members
        answers = []

        def network(x: torch.Tensor) -> torch.Tensor:
            answers.append(member.network(x))
            return answers[-1][:, : self.config.num_classes]

        size, resizing = (self.config.image_size,) * 2, self.config.volume_resize
        mask = predict_volume(network, slices, size, "cpu", len(slices), volume_resize=resizing)
        if not (self.options.probabilities or member.spread):
            return mask, None, None
        probs, disagreement = self._agreed([member.resized(answers[0], slices.shape[1:])])
        return mask, probs.swapaxes(0, 1), disagreement


def _bytes_read(waiting: Iterable[tuple[Input, Future | None]]) -> int:
    """Of the pictures that are read already."""
    done = (reading for _, reading in waiting if reading is not None and reading.done())
    return sum(reading.result()[0].pixels.nbytes for reading in done if reading.exception() is None)


def _picture_of_array(array: np.ndarray) -> Picture:
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[..., :3]
    elif array.ndim != 2:
        raise ValueError(f"found an array of shape {array.shape}, expected an image (H, W), (H, W, 3) or (H, W, 4)")
    return Picture(torch.from_numpy(stretched_rgb(array)).permute(2, 0, 1).contiguous())
