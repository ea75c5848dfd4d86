"""A trained network, ready for images and volumes of any size."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datasets.array_checks import checked_spacing
from datasets.image_reading import check_alpha, stretched_rgb
from datasets.intensities import Scaling, to_unit, without_nan
from datasets.nifti import STORED, affine_of_slices
from datasets.synapse import ORIENTATION
from inference.ensemble import ImageEnsemble, Segmentation, VolumeEnsemble, check_compatible, check_distinct
from inference.ensemble_member import EnsembleMember, apply, join
from inference.image_files import Picture, read_picture
from inference.inputs import Input, find_inputs
from inference.prediction import Prediction
from inference.prediction_options import PredictionOptions
from inference.progress import Progress
from inference.read_ahead import LARGEST_PICTURES, read_ahead
from inference.trained import CT_DATASETS, load_trained, mask_values
from inference.volume_inputs import Volume, read_volume
from utils.machine.device import choose_device
from utils.optional import optional
from utils.volume import with_context

log = logging.getLogger("vmunet")

READ_AHEAD = 16  # images that are read while others are predicted, in addition to the next batch
LARGEST_IMAGE_BATCH = 32  # images predicted at once; limited so that reading and saving overlap
LARGEST_GROUP = 16  # slices predicted at once
FROM_CHECKPOINT = ("image_size", "normalization", "threshold", "volume_resize", "precision", "scan_backend")

CheckpointName = str | os.PathLike[str]  # see utils.runs.named_weights.find_checkpoint
OnError = Callable[[Input, Exception], None]
Results = Iterator[tuple[Input, Prediction]]
Content = tuple[Picture | Volume, list[torch.Tensor]]  # what an input holds, and a picture as each network reads it


def raise_error(item: Input, error: Exception) -> None:
    """Raise the error of an input."""
    raise error


class Predictor:
    """A trained network, ready for images and volumes of any size; or several, whose probabilities are averaged.

        Predictor("isic17", tta="flips").predict("photo.jpg").mask
        Predictor(["results/fold0", "results/fold1"]).predict("photo.jpg").disagreement

    Args:
        checkpoint: a file, the folder of a run, or the name of a network that ships with the code; or a list of them.
            Each network gets its input in its own size and normalisation; classes and input kind must be the same.
        options: those of the command line, see `PredictionOptions`

    Raises ValueError and OSError for invalid checkpoints and options."""

    def __init__(self, checkpoint: CheckpointName | Sequence[CheckpointName], **options: Any):
        self.options = o = PredictionOptions(**options)
        names = [checkpoint] if isinstance(checkpoint, str | os.PathLike) else list(checkpoint)
        if not names:
            raise ValueError("found no checkpoint, expected one or several")
        changes = {name: getattr(o, name) for name in FROM_CHECKPOINT}
        trained = [load_trained(name, o.kind, **changes) for name in names]
        self.config = trained[0].config
        self.volumes: bool = self.config.of_volumes
        self.class_names: list[str] = self.config.structures  # of the classes 1, 2, ...
        check_distinct([one.network for one in trained], [str(name) for name in names])
        if o.sliding_window:
            optional("monai.inferers", "--sliding-window")
        if o.sliding_window and getattr(self.config, "slice_fit", "zoom") == "zoom":
            log.warning(
                "--sliding-window: this network was trained on whole %s, each resized to %d x %d pixels. Windows "
                "show it parts at another scale, which it has not learned: expect wrong masks of much larger images",
                *("slices" if self.volumes else "images", self.config.image_size, self.config.image_size),
            )
        self._check_options(len(names))
        self.device = choose_device(o.device)
        spread = len(trained) > 1 or o.tta != "none"
        self.members = [EnsembleMember(one, o, self.device, spread) for one in trained]
        check_compatible(self.members, [str(name) for name in names])
        self.ensemble = (VolumeEnsemble if self.volumes else ImageEnsemble)(self.members, o)
        self.network = self.members[0]
        self.sha256 = self.network.sha256  # of the first checkpoint file

    def predict(
        self, source: str | os.PathLike[str] | npt.ArrayLike, spacing: npt.ArrayLike | None = None
    ) -> Prediction:
        """Predict a file, a DICOM folder, or an array.

        An array is an image (H, W), (H, W, 3) or (H, W, 4), or for a network of volumes (S, H, W) in the orientation of
        training; `spacing` gives the mm of its axes. Values other than 8-bit are stretched as those of image files."""
        if isinstance(source, str | os.PathLike):
            found = find_inputs([source], self.options.insist)
            if len(found) > 1:
                raise ValueError(f"{source}: found {len(found)} inputs, expected one (`predict_all` takes many)")
            return self._predict([self._read_and_prepare(found[0])])[0]
        array, mm = np.asarray(source), None if spacing is None else np.asarray(spacing, dtype=float)
        if not self.volumes:
            if array.ndim != 2 and array.shape[2:] not in ((3,), (4,)):
                expected = "an image (H, W), (H, W, 3) or (H, W, 4)"
                raise ValueError(f"found an array of shape {array.shape}, expected {expected}")
            if array.shape[2:] == (4,):
                check_alpha(array[..., 3])
            pixels = stretched_rgb(array if array.ndim == 2 else array[..., :3])
            picture = Picture(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
            return self._predict([(picture, self.ensemble.prepare(picture.pixels))], mm)[0]
        if array.ndim not in (2, 3):
            raise ValueError(f"found an array of shape {array.shape}, expected a volume (slices, rows, columns)")
        mm = mm if mm is None else checked_spacing(mm, "the array")
        volume = Volume(array[None] if array.ndim == 2 else array, mm, affine_of_slices(mm))
        return self._predict([(self._scaled(volume, "the array"), [])])[0]

    def predict_all(self, inputs: Iterable[Input], on_error: OnError = raise_error) -> Results:
        """Yield pairs (Input, Prediction) for many inputs of `find_inputs`, in order; images in batches, read ahead.

        `on_error(input, error)` is called for an input that can't be read or predicted, which is then skipped."""
        batch, count = list[tuple[Input, Content]](), min(self.network.batch_size, LARGEST_IMAGE_BATCH)
        for item, read in read_ahead(inputs, self._read_and_prepare, READ_AHEAD + count, self.device):
            try:
                content = read()
            except Exception as error:  # libraries raise more kinds of errors than they document
                on_error(item, error)
                continue
            if item.is_volume:
                yield from self._predict_batch(batch, on_error)
                batch = []
            batch.append((item, content))
            size = sum(one.pixels.nbytes for _, (one, _) in batch if isinstance(one, Picture))
            if item.is_volume or len(batch) >= count or size > LARGEST_PICTURES:
                yield from self._predict_batch(batch, on_error)
                batch = []
        yield from self._predict_batch(batch, on_error)

    def _check_options(self, networks: int) -> None:
        """Raise ValueError for options that do not apply to this network, and for invalid values."""
        o = self.options
        foreign: dict[str, object] = {"--pixel-size": o.pixel_size} if self.volumes else {"--window": o.window}
        if self.config.num_classes > 1:
            foreign["--threshold"] = o.threshold
        for flag, value in foreign.items():
            if value is not None:
                raise ValueError(f"{flag}: found {value}, which does not apply to this network")
        if o.volume_resize is not None and networks > 1:
            raise ValueError(f"--volume-resize: found {o.volume_resize} with {networks} networks, expected one network")
        if not 0 <= o.overlap < 1:
            raise ValueError(f"--overlap: found {o.overlap}, expected a fraction from 0 to below 1")
        self.orientation = o.orientation or (self.config.orientation if self.volumes else ORIENTATION)
        axes = sorted({"R": "L", "A": "P", "I": "S"}.get(axis, axis) for axis in self.orientation)
        if self.orientation != STORED and axes != ["L", "P", "S"]:
            expected = f"L or R, P or A, S or I in any order, or {STORED}"
            raise ValueError(f"--orientation: found {self.orientation!r}, expected {expected}")
        if o.window is not None and not o.window[0] < o.window[1]:
            raise ValueError(f"--window: found {o.window}, expected a lower and a higher value")

    # ---- input

    def _read_and_prepare(self, item: Input) -> Content:
        """Read an input, with values as the network was trained on."""
        if item.is_volume != self.volumes and not self.options.insist:
            found, expected = ("a volume", "an image") if item.is_volume else ("an image", "a volume")
            raise ValueError(f"{item.path} is {found}; expected {expected} as in training (--insist predicts it)")
        if not item.is_volume:
            picture = read_picture(item)
            return picture, self.ensemble.prepare(picture.pixels)
        channel = self.options.channel
        channel = getattr(self.config, "channel", None) if channel is None else channel
        volume = read_volume(item, self.orientation, channel)
        if self.volumes:
            return self._scaled(volume, item.path), []
        return dataclasses.replace(volume, slices=without_nan(volume.slices, item.path)), []

    def _scaled(self, volume: Volume, name: object) -> Volume:
        """Scale the values of a volume as in training, see `to_unit`."""
        window = self.options.window
        if self.config.scaling and window is None and not volume.prepared:
            scaling = Scaling(self.config.scaling, *self.config.scaling_range)
            if not self.options.insist:
                scaling.check_kind(volume.slices, volume.modality, name)
            slices = scaling(volume.slices, name)
        elif volume.modality not in (None, "CT") and window is None:
            found = f"modality {volume.modality}, whose scaling in {self.config.dataset!r} is not in the checkpoint"
            raise ValueError(f"{name}: found {found}, expected --window with the values that become 0 and 1")
        else:
            hounsfield = self.config.dataset in CT_DATASETS and not volume.prepared
            slices = to_unit(volume.slices, name, window, hounsfield)
        return dataclasses.replace(volume, slices=np.ascontiguousarray(slices))

    # ---- network

    def _predict_batch(self, batch: list[tuple[Input, Content]], on_error: OnError) -> Results:
        """Predict inputs together; after an error one by one."""
        if not batch:
            return
        items, contents = zip(*batch, strict=True)
        try:
            results = self._predict(contents)
        except Exception as error:  # too little memory, or an unforeseen form of input
            if len(batch) == 1:
                on_error(items[0], error)
                return
            for one in batch:
                yield from self._predict_batch([one], on_error)
        else:
            yield from zip(items, results, strict=True)

    def _predict(self, contents: Sequence[Content], spacing: np.ndarray | None = None) -> list[Prediction]:
        """Predict pictures, whose pixels have the `spacing`, or one volume."""
        sources, prepared = zip(*contents, strict=True)
        if isinstance(sources[0], Volume):
            segmentations, spacing = [self._segment_volume(sources[0].slices)], sources[0].spacing
        else:
            pictures = self.ensemble.segment_pictures([picture.pixels for picture in sources], prepared)
            segmentations = [apply(itemgetter(0), segmentation) for segmentation in pictures]
            if spacing is None and self.options.pixel_size is not None:
                spacing = np.full(2, self.options.pixel_size)
        names, colours, values = self.class_names, self.config.structure_colours, mask_values(self.config)
        results = []
        for source, (classes, probabilities, disagreement) in zip(sources, segmentations, strict=True):
            probabilities = None if probabilities is None else np.moveaxis(probabilities, -3, 0)
            results.append(Prediction(classes, probabilities, names, source, spacing, colours, disagreement, values))
        return results

    def _segment_volume(self, slices: np.ndarray) -> Segmentation:
        """Segment slices in groups, to save memory."""
        group, parts = min(self.network.batch_size, LARGEST_GROUP), []
        with Progress(len(slices), "slice") as bar:
            for start in range(0, len(slices), group):
                numbers = range(start, min(start + group, len(slices)))
                parts.append(self.ensemble.segment_slices(with_context(slices, self.ensemble.context, numbers)))
                bar.update(len(parts[-1].mask))
        return join(np.concatenate, parts)
