"""Masks, overlays and measurements for images and CT volumes, from a checkpoint of train.py or train_synapse.py.

    python predict.py results/<run>/checkpoints/best.pth photo.jpg folder_of_images --output predictions
    python predict.py best.pth scan.nii.gz folder_with_dicom_slices case0001.npy.h5 --output predictions

As a library:

    from predict import Predictor
    result = Predictor("best.pth").predict("photo.jpg")     # or an array, a NIfTI file, a DICOM folder ...
    result.mask, result.structures()                        # class of each pixel of the input; areas and volumes

Every input goes through the same steps as in the test of the training script. Images are normalised, resized to the
network's size, and the probabilities are resized back to the image's own size. Volumes go slice by slice, as
`volume_resize` in the checkpoint says, after their axes were brought to those of training and, unless their values are
within 0..1 already, Hounsfield units were clipped and scaled. Results are in the input's own size and geometry.
"""

import dataclasses
import gzip
import io
import itertools
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from tqdm import tqdm

from configs.config_setting_synapse import SynapseConfig
from datasets.cache import available_cpus, free_memory
from datasets.files import some
from datasets.inputs import Input, Picture, Volume, find_inputs, read_picture, read_volume, unique_names
from datasets.isic import stretched_rgb
from datasets.synapse import HU_WINDOW, ORIENTATION, scale_hu
from datasets.transforms import NORMALIZATIONS, resize
from engine import Execution
from utils.checkpoint import write_atomically
from utils.command_line import run_command
from utils.plots import class_colours, draw_labels, draw_outlines, make_montage
from utils.run import choose_device, read_rows, start_log, write_rows
from utils.trained import CT_DATASETS, class_names, describe, load_trained
from utils.training import prepare
from utils.volume import affine_of_slices, predict_volume

log = logging.getLogger("vmunet")

# (quarter turns, mirrored) of the views that are averaged
VIEWS = {
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "flips_rotations": list(itertools.product(range(4), (False, True))),
}
BYTES_PER_PIXEL = 1000  # of the network's input, that one image may need; measured: 440 on a CPU at 256 x 256
READ_AHEAD = 16  # images that are read while others are predicted
LARGEST_PICTURES = 500_000_000  # bytes of images in one batch
LARGEST_BATCH = {"cpu": 4, "cuda": 64, "mps": 8}  # more is not faster


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
    scan_backend: Literal["auto", "triton", "cuda", "mamba_ssm", "cpu", "torch", "reference"] = "auto"


@dataclass(kw_only=True)
class PredictConfig(Options):
    checkpoint: Annotated[str, tyro.conf.Positional]  # of train.py, train_synapse.py or the original
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]  # images, volumes, folders of them, DICOM folders
    output: str  # folder for the results
    existing: Literal["refuse", "skip", "overwrite"] = "refuse"  # if output holds files; skip: what is done already
    overlays: bool = True  # pictures of the results
    debug: bool = False  # show the traceback of errors


@dataclass
class Prediction:
    """The result for one input, in its own size."""

    mask: np.ndarray  # class numbers, uint8: (H, W), of volumes (S, H, W) in the orientation of training
    probabilities: np.ndarray | None  # float32 (C, H, W) or (C, S, H, W); C is 1 for a binary network
    class_names: list[str]  # of the classes 1, 2, ...
    source: Picture | Volume
    spacing: np.ndarray | None  # mm, in the order of the mask's axes; None if unknown

    def structures(self):
        """A row for each structure: pixels, their share; where the spacing is known mm2 (images) or ml (volumes)."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.class_names) + 1)
        size = None if self.spacing is None else float(np.prod(self.spacing))
        volume = self.mask.ndim == 3
        return [
            {
                "structure": name,
                "class": c,
                "pixels": int(counts[c]),
                "share": float(counts[c] / self.mask.size),
                "area_mm2": "" if volume or size is None else float(counts[c] * size),
                "volume_ml": "" if not volume or size is None else float(counts[c] * size / 1000),
            }
            for c, name in enumerate(self.class_names, start=1)
        ]

    def overlay(self):
        """A PIL image: the outlines of one class, the colours of several; of a volume a sheet of slices."""
        if isinstance(self.source, Volume):
            buffer = io.BytesIO()
            figure = make_montage(self.source.slices, self.mask, self.class_names, self.spacing)
            figure.savefig(buffer, format="png", dpi=100)
            return Image.open(buffer)
        draw = draw_outlines if len(self.class_names) == 1 else draw_labels
        return Image.fromarray(draw(self.source.pixels, self.mask))

    def save(self, folder, name, overlay=True):
        """Writes masks/NAME, overlays/NAME.png and, if they were asked for, probabilities/NAME, each in one step.

        Masks of images are PNG: 0 and 255, or class numbers with a palette. Those of volumes are NIfTI."""
        folder = Path(folder)
        exif = getattr(self.source, "exif", b"")
        if overlay:
            _write(folder / "overlays" / f"{name}.png", _png(self.overlay(), exif))
        if isinstance(self.source, Volume):
            if self.probabilities is not None:
                nifti = self.source.to_nifti(self.probabilities, np.float32)
                nifti.set_data_dtype(np.uint16)  # scaled: exact to 1 / 65535
                _write(folder / "probabilities" / f"{name}.nii.gz", _gzip(nifti))
            _write(folder / "masks" / f"{name}.nii.gz", _gzip(self.source.to_nifti(self.mask, np.uint8)))
            return
        if self.probabilities is not None:
            names = self.class_names if len(self.class_names) == 1 else ["background", *self.class_names]
            for structure, probability in zip(names, self.probabilities, strict=True):
                picture = Image.fromarray((probability * 65535).round().astype(np.uint16))
                _write(folder / "probabilities" / f"{name}_{structure.replace(' ', '_')}.png", _png(picture, exif))
        if len(self.class_names) == 1:
            picture = Image.fromarray(255 * self.mask)
        else:
            picture = Image.fromarray(self.mask).convert("P")
            picture.putpalette(np.array([(0, 0, 0), *class_colours(len(self.class_names))], dtype=np.uint8).tobytes())
        _write(folder / "masks" / f"{name}.png", _png(picture, exif))


def _write(path, content):
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)


def _png(picture, exif):
    buffer = io.BytesIO()
    picture.save(buffer, format="png", exif=exif)
    return buffer.getvalue()


def _gzip(nifti):
    return gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0)


class Predictor:
    """A trained network, ready for images and volumes of any size.

        Predictor("best.pth", device="cuda", tta="flips").predict("photo.jpg").mask

    The options are those of the command line, see `Options`.
    Raises ValueError and OSError for checkpoints and options that can't be used."""

    def __init__(self, checkpoint, **options):
        self.options = o = Options(**options)
        self.model, self.config, self.sha256 = load_trained(
            checkpoint, o.kind, image_size=o.image_size, normalization=o.normalization, threshold=o.threshold,
            volume_resize=o.volume_resize, precision=o.precision, scan_backend=o.scan_backend,
        )  # fmt: skip
        self.volumes = isinstance(self.config, SynapseConfig)
        if o.sliding_window:
            import_monai()
        self._check_options()
        self.class_names = class_names(self.config)
        self.device = choose_device(o.device)
        self.execution = Execution(self.device, self.config.precision)
        self.model = prepare(self.model, self.config, self.device)
        self.batch_size = o.batch_size or self._batch_that_fits()

    def predict(self, source, spacing=None):
        """The Prediction for a file, a DICOM folder, or an array.

        An array is an image (H, W), (H, W, 3) or (H, W, 4), or for a network of volumes (S, H, W) in the orientation of
        training; `spacing` gives the mm of its axes. What is not 8-bit is stretched as deep image files are."""
        if isinstance(source, str | os.PathLike):
            found = find_inputs([source])
            if len(found) > 1:
                raise ValueError(f"{source} holds {len(found)} inputs; expected one (`predict_all` takes many)")
            return self._predict(self._read(found[0]))
        array, spacing = np.asarray(source), None if spacing is None else np.asarray(spacing, dtype=float)
        if not self.volumes:
            return self._predict(_picture_of_array(array), spacing)
        if array.ndim not in (2, 3):
            raise ValueError(f"found an array of shape {array.shape}, expected a volume (slices, rows, columns)")
        volume = Volume(array[None] if array.ndim == 2 else array, spacing, affine_of_slices(spacing))
        return self._predict(self._scaled(volume, "the array"))

    def predict_all(self, inputs, on_error=None):
        """Pairs (Input, Prediction) for many inputs of `find_inputs`, in order; images in batches, read ahead.

        An input that can't be read ends this with its ValueError or OSError, or is handed to `on_error(input, error)`
        and left out."""
        batch, remaining, waiting = [], iter(inputs), []
        with ThreadPoolExecutor(min(8, available_cpus())) as pool:
            while True:
                for item in itertools.islice(remaining, READ_AHEAD - len(waiting)):
                    # volumes are large: they are read when it is their turn
                    waiting.append((item, None if item.is_volume else pool.submit(self._read, item)))
                if not waiting:
                    break
                item, reading = waiting.pop(0)
                try:
                    source = self._read(item) if reading is None else reading.result()
                except (ValueError, OSError) as error:
                    if on_error is None:
                        raise
                    on_error(item, error)
                    continue
                if isinstance(source, Volume):
                    yield from self._predict_batch(batch)
                    batch = []
                    yield item, self._predict_volume(source)
                    continue
                batch.append((item, source))
                if len(batch) == self.batch_size or sum(p.pixels.nbytes for _, p in batch) > LARGEST_PICTURES:
                    yield from self._predict_batch(batch)
                    batch = []
            yield from self._predict_batch(batch)

    def _check_options(self):
        """Raises ValueError for options that this network would not heed, and for values that mean nothing."""
        o = self.options
        foreign = {"--pixel-size": o.pixel_size} if self.volumes else {"--window": o.window}
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

    def _read(self, item: Input):
        """The Picture or Volume of an input, with values as the network is used to."""
        if not item.is_volume:
            if self.volumes:
                raise ValueError(f"{item.path} is an image; expected a volume, on which this network was trained")
            return read_picture(item)
        volume = read_volume(item, self.options.orientation)
        return self._scaled(volume, item.path) if self.volumes else volume

    def _scaled(self, volume, name):
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

    def _predict(self, source, spacing=None):
        if isinstance(source, Volume):
            return self._predict_volume(source)
        return next(self._predict_pictures([source], spacing))

    def _predict_batch(self, batch):
        if batch:
            items, pictures = zip(*batch, strict=True)
            yield from zip(items, self._predict_pictures(pictures), strict=True)

    def _predict_pictures(self, pictures, spacing=None):
        if spacing is None and self.options.pixel_size is not None:
            spacing = np.full(2, self.options.pixel_size)
        for picture, probs in zip(pictures, self._probabilities([p.pixels for p in pictures]), strict=True):
            kept = probs if self.options.probabilities else None
            yield Prediction(self._decide(probs), kept, self.class_names, picture, spacing)

    def _decide(self, probs):
        """(C, H, W) probabilities to class numbers, uint8, as train.py does."""
        if len(probs) == 1:
            return (probs[0] >= np.float32(self.config.threshold)).astype(np.uint8)
        return probs.argmax(0).astype(np.uint8)

    def _probabilities(self, pictures):
        """Yields the probabilities (C, H, W) of uint8 pictures (3, H, W), each at its own size."""
        normalize, size = NORMALIZATIONS[self.config.normalization], self.config.image_size
        if self.options.sliding_window:
            for picture in pictures:
                yield self._activate(self._slide(normalize(picture).float()[None]))[0].numpy()
            return
        inputs = [resize(normalize(picture), size, antialias=self.config.antialias).float() for picture in pictures]
        for picture, probs in zip(pictures, self._activate(self._network(torch.stack(inputs))), strict=True):
            own = picture.shape[1:]
            if own != probs.shape[1:]:
                probs = F.interpolate(probs[None], own, mode="bilinear", align_corners=False)[0]
            yield probs.numpy()

    def _predict_volume(self, volume):
        """Slice by slice: as evaluate in engine_synapse.py does, or for a network of images as images."""
        slices, chunks = volume.slices, []
        bar = tqdm(total=len(slices), unit="slice", leave=False, disable=len(slices) < 2)
        with bar:
            if not self.volumes or self.options.sliding_window:
                masks = []
                for s in slices:
                    if self.volumes:
                        probs = self._activate(self._slide(torch.from_numpy(s)[None, None]))[0].numpy()
                    else:
                        (probs,) = self._probabilities([torch.from_numpy(stretched_rgb(s)).permute(2, 0, 1)])
                    masks.append(self._decide(probs))
                    chunks += [probs[:, None]] if self.options.probabilities else []
                    bar.update()
                mask = np.stack(masks)
            else:
                size = (self.config.image_size,) * 2

                def network(x):
                    logits = self._network(x)
                    if self.options.probabilities:
                        # Corner-aligned, as the zoom that made the network's input.
                        own = F.interpolate(logits, slices.shape[1:], mode="bilinear", align_corners=True)
                        chunks.append(self._activate(own).transpose(0, 1).numpy())
                    bar.update(len(x))
                    return logits

                resizing = self.config.volume_resize
                mask = predict_volume(network, slices, size, "cpu", self.batch_size, volume_resize=resizing)
        probabilities = np.concatenate(chunks, 1) if chunks else None
        return Prediction(mask, probabilities, self.class_names, volume, volume.spacing)

    def _activate(self, logits):
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)

    @torch.inference_mode()
    def _network(self, images):
        """Logits float32 on the CPU of images (B, C, h, w), averaged over the views, in batches that fit in memory."""
        logits, start = [], 0
        while start < len(images):
            batch = images[start : start + self.batch_size].to(self.device)
            try:
                logits.append(self._views(batch).cpu())
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                log.warning("out of memory: going on with %d images at a time", self.batch_size)
                continue
            start += len(batch)
        return torch.cat(logits)

    def _views(self, images):
        total = None
        for turns, mirrored in VIEWS[self.options.tta]:
            view = images.flip(3) if mirrored else images
            with self.execution.autocast():
                logits = self.model(view.rot90(turns, (2, 3))).float()
            logits = logits.rot90(-turns, (2, 3))
            logits = logits.flip(3) if mirrored else logits
            total = logits if total is None else total + logits
        return total / len(VIEWS[self.options.tta])

    @torch.inference_mode()
    def _slide(self, image):
        """Logits (1, C, H, W) of an image (1, 3 or 1, H, W): MONAI's windows, weighted by a Gaussian.

        Its padding, weights and batches of windows of any overlap are well tested; ours would do nothing better."""
        size = (self.config.image_size,) * 2
        slide = import_monai().sliding_window_inference
        return slide(image, size, self.batch_size, self._network, overlap=self.options.overlap, mode="gaussian")

    def _batch_that_fits(self):
        """Images that fit in half of the free memory. Should the estimate be too high, `_network` takes fewer."""
        kind = self.device.type
        free = torch.cuda.mem_get_info(self.device)[0] if kind == "cuda" else free_memory()
        needed = BYTES_PER_PIXEL * self.config.image_size**2
        return max(1, min(LARGEST_BATCH[kind], free // 2 // needed))


def _picture_of_array(array):
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[..., :3]
    elif array.ndim != 2:
        raise ValueError(f"found an array of shape {array.shape}, expected an image (H, W), (H, W, 3) or (H, W, 4)")
    return Picture(torch.from_numpy(stretched_rgb(array)).permute(2, 0, 1).contiguous())


def import_monai():
    """monai.inferers. Raises ValueError with the command that installs it."""
    try:
        import monai.inferers
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--sliding-window: found no module {error.name!r}, which it needs; pip install -r requirements-extra.txt"
        ) from error
    return monai.inferers


# ---- command line


# options that change the results
DECISIVE = sorted({f.name for f in dataclasses.fields(Options)} - {"batch_size", "device", "scan_backend"})


@dataclass
class Table:
    """structures.csv of an output folder: a row for each input and structure."""

    path: Path
    rows: list = field(default_factory=list)
    unsaved: int = 0

    def add(self, name, path, rows):
        self.rows += [{"name": name, "input": str(path), **row} for row in rows]
        self.unsaved += 1
        if self.unsaved >= 50:
            self.save()

    def save(self):
        if self.unsaved:
            write_rows(self.path, self.rows)
            self.unsaved = 0


def main(config):
    if not config.inputs:
        raise ValueError("INPUTS: found none, expected images, volumes or folders of them")
    log.setLevel(logging.INFO)
    inputs = find_inputs(config.inputs)
    names = dict(zip(inputs, unique_names(inputs), strict=True))
    folder, table, todo = check_output(config, names)
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(Options)}
    predictor = Predictor(config.checkpoint, **options)
    folder.mkdir(parents=True, exist_ok=True)  # only now, that a mistake above leaves nothing behind
    start_log(folder)
    network = describe(predictor.config)
    about = {"checkpoint": config.checkpoint, "sha256": predictor.sha256, "network": network, "options": options}
    save_about(folder / "prediction.json", about, config.existing == "skip")
    log.info("%d inputs, %d at a time on %s", len(todo), predictor.batch_size, predictor.device)
    failed, bar = [], tqdm(total=len(todo), desc="predict", unit="input")

    def report(item, error):
        failed.append(item)
        log.error("left out: %s", error)
        bar.update()

    try:
        for item, result in predictor.predict_all(todo, report):
            result.save(folder, names[item], config.overlays)
            table.add(names[item], item.path, result.structures())
            bar.update()
    except KeyboardInterrupt:
        log.error("stopped after %d of %d inputs; --existing skip goes on with the others", bar.n, len(todo))
        raise SystemExit(130) from None
    finally:
        bar.close()
        table.save()
    log.info("results are in %s", folder)
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} inputs were left out: {some(item.path for item in failed)}")


def check_output(config, names):
    """(output folder, its Table, inputs that remain). Raises ValueError rather than to mix results."""
    folder = Path(config.output)
    if config.existing == "refuse" and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--output {folder}: found files there, expected a new or empty folder; --existing skip predicts what is "
            "missing, --existing overwrite everything anew"
        )
    table = Table(folder / "structures.csv")
    if config.existing == "skip":
        table.rows = read_rows(table.path)
        done = {row["name"]: row["input"] for row in table.rows}
        others = [name for item, name in names.items() if done.get(name, str(item.path)) != str(item.path)]
        if others:
            raise ValueError(f"--output {folder}: holds results of other inputs under the same names: {some(others)}")
        return folder, table, [item for item, name in names.items() if name not in done]
    return folder, table, list(names)


def save_about(path, about, going_on):
    """Writes how the masks beside it are made. Raises ValueError before masks of another network or way join them."""
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    if going_on and path.exists():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        different = [name for name in DECISIVE if before["options"].get(name) != now["options"][name]]
        different += ["checkpoint"] * (before["sha256"] != now["sha256"])
        if different:
            raise ValueError(f"--existing skip: what {path.parent} holds was made with another {', '.join(different)}")
    write_atomically(path, text.encode())


if __name__ == "__main__":
    run_command(main, PredictConfig)
