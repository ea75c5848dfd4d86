"""A trained network, ready for images and volumes of any size."""

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tqdm import tqdm

from configs.base import ScanBackend
from datasets.isic import stretched_rgb
from datasets.nifti import affine_of_slices
from datasets.synapse import HU_WINDOW, ORIENTATION, scale_hu
from datasets.transforms import NORMALIZATIONS, resize
from engine import Execution
from inference.inputs import Input, Picture, find_inputs, read_picture
from inference.network import BatchedNetwork, activate, import_monai
from inference.prediction import Prediction
from inference.trained import CT_DATASETS, load_trained
from inference.volumes import Volume, read_volume
from models.build import prepare
from utils.machine.device import available_cpus, choose_device
from utils.volume import predict_volume

log = logging.getLogger("vmunet")

READ_AHEAD = 16  # images that are read while others are predicted
LARGEST_PICTURES = 500_000_000  # bytes of images in one batch


@dataclass(kw_only=True)
class Options:
    """How to predict. What is None comes from the checkpoint."""

    kind: Literal["images", "volumes"] | None = None  # what a checkpoint without a stored configuration is for
    image_size: int | None = None  # side of the network's input, in pixels
    normalization: Literal["minmax", "imagenet"] | None = None  # images
    threshold: float | None = None  # from this probability on a pixel is foreground (one class)
    volume_resize: Literal["labels", "logits"] | None = None  # volumes; see train_synapse.py --help
    window: tuple[float, float] | None = None  # volumes: values that become 0 and 1; for CT -125 275 (Hounsfield units)
    orientation: str = ORIENTATION  # volumes: where columns, rows and slices of the training data point to
    probabilities: bool = False  # also the probabilities of all classes
    tta: Literal["none", "flips", "flips_rotations"] = "none"  # average over 4 or 8 views of each image
    sliding_window: bool = False  # windows of the network's size at the image's own scale, instead of resizing it
    overlap: float = 0.5  # of neighbouring windows
    pixel_size: float | None = None  # mm, of images, for areas in mm2
    batch_size: int | None = None  # images at a time; none: as many as the memory holds
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    scan_backend: ScanBackend = "auto"


class Predictor:
    """A trained network, ready for images and volumes of any size.

        Predictor("isic17", tta="flips").predict("photo.jpg").mask

    Args:
        checkpoint: a file, the folder of a run, or the name of a network that comes with the code
        options: those of the command line, see `Options`

    Raises ValueError and OSError for checkpoints and options that can't be used."""

    def __init__(self, checkpoint: str | os.PathLike[str], **options: Any):
        self.options = o = Options(**options)
        trained = load_trained(
            checkpoint,
            o.kind,
            image_size=o.image_size,
            normalization=o.normalization,
            threshold=o.threshold,
            volume_resize=o.volume_resize,
            precision=o.precision,
            scan_backend=o.scan_backend,
        )
        self.config = trained.config
        self.sha256 = trained.checkpoint.sha256  # of the checkpoint's file
        self.volumes: bool = self.config.of_volumes
        self.class_names: list[str] = self.config.class_names  # of the classes 1, 2, ...
        if o.sliding_window:
            import_monai()
        self._check_options()
        self.device = choose_device(o.device)
        self.network = BatchedNetwork(
            prepare(trained.network, self.config, self.device),
            Execution(self.device, self.config.precision),
            self.config.image_size,
            o.tta,
            o.overlap,
            o.batch_size,
        )

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
        volume = Volume(array[None] if array.ndim == 2 else array, mm, affine_of_slices(mm))
        return self._predict(self._scaled(volume, "the array"))

    def predict_all(
        self, inputs: Iterable[Input], on_error: Callable[[Input, Exception], None] | None = None
    ) -> Iterator[tuple[Input, Prediction]]:
        """Pairs (Input, Prediction) for many inputs of `find_inputs`, in order; images in batches, read ahead.

        An input that can't be read ends this with its ValueError or OSError, or is handed to `on_error(input, error)`
        and left out."""
        batch: list[tuple[Input, Picture]] = []
        for item, source in self._read_ahead(inputs, on_error):
            if isinstance(source, Volume):
                yield from self._predict_batch(batch)
                batch = []
                yield item, self._predict_volume(source)
                continue
            batch.append((item, source))
            if len(batch) >= self.network.batch_size or sum(p.pixels.nbytes for _, p in batch) > LARGEST_PICTURES:
                yield from self._predict_batch(batch)
                batch = []
        yield from self._predict_batch(batch)

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
        if sorted({"R": "L", "A": "P", "I": "S"}.get(axis, axis) for axis in o.orientation) != ["L", "P", "S"]:
            raise ValueError(f"--orientation: found {o.orientation!r}, expected L or R, P or A, S or I in any order")
        if o.window is not None and not o.window[0] < o.window[1]:
            raise ValueError(f"--window: found {o.window}, expected a lower and a higher value")

    # ---- input

    def _read_ahead(
        self, inputs: Iterable[Input], on_error: Callable[[Input, Exception], None] | None
    ) -> Iterator[tuple[Input, Picture | Volume]]:
        """Pairs (Input, what it holds). Images are read in other threads before it is their turn."""
        remaining, waiting = iter(inputs), list[tuple[Input, Future | None]]()
        with ThreadPoolExecutor(min(8, available_cpus())) as pool:
            while True:
                for item in itertools.islice(remaining, READ_AHEAD - len(waiting)):
                    # volumes are large: they are read when it is their turn
                    waiting.append((item, None if item.is_volume else pool.submit(self._read, item)))
                if not waiting:
                    return
                item, reading = waiting.pop(0)
                try:
                    source = self._read(item) if reading is None else reading.result()
                except (ValueError, OSError) as error:
                    if on_error is None:
                        raise
                    on_error(item, error)
                else:
                    yield item, source

    def _read(self, item: Input) -> Picture | Volume:
        """The Picture or Volume of an input, with values as the network is used to."""
        if not item.is_volume:
            if self.volumes:
                raise ValueError(f"{item.path} is an image; expected a volume, on which this network was trained")
            return read_picture(item)
        volume = read_volume(item, self.options.orientation)
        return self._scaled(volume, item.path) if self.volumes else volume

    def _scaled(self, volume: Volume, name: object) -> Volume:
        """A volume with the values of training: h5 files and 0..1 are scaled already, else the window is used."""
        slices = volume.slices
        low, high = float(np.nanmin(slices)), float(np.nanmax(slices))
        if volume.scaled or (0 <= low and high <= 1 and self.options.window is None):
            return dataclasses.replace(volume, slices=np.ascontiguousarray(slices, dtype=np.float32))
        window = self.options.window
        if window is None:
            ct = self.config.dataset in CT_DATASETS and volume.modality in (None, "CT")
            if not ct:
                what = f"modality {volume.modality}" if volume.modality else f"values from {low:g} to {high:g}"
                raise ValueError(
                    f"{name} has {what}, and how the data set {self.config.dataset!r} was scaled is not stored in the "
                    "checkpoint; say with --window which values became 0 and 1"
                )
            window = HU_WINDOW
        log.info("%s: values %g to %g clipped to %g..%g and scaled to 0..1", name, low, high, *window)
        return dataclasses.replace(volume, slices=scale_hu(np.nan_to_num(slices, nan=window[0]), window))

    # ---- network

    def _predict(self, source: Picture | Volume, spacing: np.ndarray | None = None) -> Prediction:
        if isinstance(source, Volume):
            return self._predict_volume(source)
        return next(self._predict_pictures([source], spacing))

    def _predict_batch(self, batch: list[tuple[Input, Picture]]) -> Iterator[tuple[Input, Prediction]]:
        if batch:
            items, pictures = zip(*batch, strict=True)
            yield from zip(items, self._predict_pictures(pictures), strict=True)

    def _predict_pictures(self, pictures: Sequence[Picture], spacing: np.ndarray | None = None) -> Iterator[Prediction]:
        if spacing is None and self.options.pixel_size is not None:
            spacing = np.full(2, self.options.pixel_size)
        for picture, probs in zip(pictures, self._probabilities([p.pixels for p in pictures]), strict=True):
            kept = probs if self.options.probabilities else None
            yield Prediction(self._decide(probs), kept, self.class_names, picture, spacing)

    def _decide(self, probs: np.ndarray) -> np.ndarray:
        """(C, H, W) probabilities to class numbers, uint8, as train.py does."""
        if len(probs) == 1:
            return (probs[0] >= np.float32(self.config.threshold)).astype(np.uint8)
        return probs.argmax(0).astype(np.uint8)

    def _probabilities(self, pictures: Sequence[torch.Tensor]) -> Iterator[np.ndarray]:
        """Yields the probabilities (C, H, W) of uint8 pictures (3, H, W), each at its own size."""
        normalize, size = NORMALIZATIONS[self.config.normalization], self.config.image_size
        if self.options.sliding_window:
            for picture in pictures:
                yield self._by_windows(normalize(picture).float())
            return
        inputs = [resize(normalize(picture), size, antialias=self.config.antialias).float() for picture in pictures]
        for picture, probs in zip(pictures, activate(self.network(torch.stack(inputs))), strict=True):
            own = picture.shape[1:]
            if own != probs.shape[1:]:
                probs = F.interpolate(probs[None], own, mode="bilinear", align_corners=False)[0]
            yield probs.numpy()

    def _by_windows(self, image: torch.Tensor) -> np.ndarray:
        """Probabilities (classes, H, W) of an image (C, H, W) at its own scale."""
        return activate(self.network.by_windows(image[None]))[0].numpy()

    def _predict_volume(self, volume: Volume) -> Prediction:
        count = len(volume.slices)
        with tqdm(total=count, unit="slice", leave=False, disable=count < 2) as bar:
            if self.volumes and not self.options.sliding_window:
                mask, probabilities = self._resized_slices(volume.slices, bar)
            else:
                mask, probabilities = self._single_slices(volume.slices, bar)
        kept = np.concatenate(probabilities, 1) if probabilities else None
        return Prediction(mask, kept, self.class_names, volume, volume.spacing)

    def _resized_slices(self, slices: np.ndarray, bar: tqdm) -> tuple[np.ndarray, list[np.ndarray]]:
        """(mask (S, H, W), probabilities (C, s, H, W) of groups of slices if they are asked for), as evaluate in
        engine_synapse.py makes them."""
        chunks: list[np.ndarray] = []

        def network(x: torch.Tensor) -> torch.Tensor:
            logits = self.network(x)
            if self.options.probabilities:
                # Corner-aligned, as the zoom that made the network's input.
                own = F.interpolate(logits, slices.shape[1:], mode="bilinear", align_corners=True)
                chunks.append(activate(own).transpose(0, 1).numpy())
            bar.update(len(x))
            return logits

        size, resizing = (self.config.image_size,) * 2, self.config.volume_resize
        mask = predict_volume(network, slices, size, "cpu", self.network.batch_size, volume_resize=resizing)
        return mask, chunks

    def _single_slices(self, slices: np.ndarray, bar: tqdm) -> tuple[np.ndarray, list[np.ndarray]]:
        """The same for slices at their own scale, in windows, or for a network of images, as images."""
        masks, chunks = [], []
        for pixels in slices:
            if self.volumes:
                probs = self._by_windows(torch.from_numpy(pixels)[None])
            else:
                (probs,) = self._probabilities([torch.from_numpy(stretched_rgb(pixels)).permute(2, 0, 1)])
            masks.append(self._decide(probs))
            if self.options.probabilities:
                chunks.append(probs[:, None])
            bar.update()
        return np.stack(masks), chunks


def _picture_of_array(array: np.ndarray) -> Picture:
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[..., :3]
    elif array.ndim != 2:
        raise ValueError(f"found an array of shape {array.shape}, expected an image (H, W), (H, W, 3) or (H, W, 4)")
    return Picture(torch.from_numpy(stretched_rgb(array)).permute(2, 0, 1).contiguous())
