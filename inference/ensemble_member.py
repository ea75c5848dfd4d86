"""A trained network as prediction calls it: in batches that fit in memory, averaged over views, in windows."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from configs.build import prepare
from datasets.transforms import normalizer, resize
from engine import Compute
from inference.prediction_options import PredictionOptions
from inference.progress import Progress
from utils.machine.memory import free_memory
from utils.optional import optional
from utils.volume import fit_slices, middle

log = logging.getLogger("vmunet")

# (quarter turns, mirrored) of the views that are averaged
VIEWS = {
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "flips_rotations": list(itertools.product(range(4), (False, True))),
}
BYTES_PER_PIXEL = 1000  # upper bound of an image's memory per input pixel; measured: 440 on a CPU at 256 x 256
LARGEST_BATCH = {"cpu": 4, "cuda": 64, "mps": 8}  # larger batches are not faster

Parts = TypeVar("Parts", bound=Any)  # a named tuple


class ViewAverage(NamedTuple):
    """A network's answer to images, averaged over the views; each tensor is float32 (B, C, H, W)."""

    output: torch.Tensor  # logits; probabilities after `activated`
    mean: torch.Tensor | None = None  # probabilities; None unless the spread over members is wanted
    squares: torch.Tensor | None = None  # sum over the views of the squared differences from `mean`

    def activated(self) -> "ViewAverage":
        """Turn the logits into probabilities."""
        return self._replace(output=activate(self.output))

    def resized(self, size: Sequence[int], align_corners: bool) -> "ViewAverage":
        """Resize to (height, width), bilinearly."""
        if tuple(size) == self.output.shape[2:]:
            return self
        # In one call: a CPU rounds the last bit differently when the tensors are resized one by one.
        tensors = [tensor for tensor in self if tensor is not None]
        whole = F.interpolate(torch.cat(tensors, 1), tuple(size), mode="bilinear", align_corners=align_corners)
        return ViewAverage(*whole.chunk(len(tensors), 1))


class EnsembleMember:
    """A trained network with its own input size and normalisation.

    trained  what `load_trained` returns
    spread   whether its answers have `mean` and `squares`"""

    def __init__(self, trained: Any, options: PredictionOptions, device: torch.device, spread: bool):
        self.config = config = trained.config
        self.sha256: str = trained.checkpoint.sha256  # of the checkpoint file
        self.model = prepare(trained.network, config, device, trains=False)
        self.execution = Compute(device, config.precision)
        self.views, self.overlap, self.spread = VIEWS[options.tta], options.overlap, spread
        self.batch_size = options.batch_size or self._batch_that_fits()

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> ViewAverage:
        """Answer images (B, channels, size, size) with logits. Halves the batch size when memory is not enough."""
        answers, start = [], 0
        while start < len(images):
            batch = images[start : start + self.batch_size].to(self.execution.device)
            try:
                answers.append(apply(torch.Tensor.cpu, self.average_views(batch)))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                log.warning("out of memory: going on with %d images at a time", self.batch_size)
                continue
            start += len(batch)
        return join(torch.cat, answers)

    def average_views(self, images: torch.Tensor) -> ViewAverage:
        """Average the logits over the views, each turned back."""
        total, mean, squares = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for number, (turns, mirrored) in enumerate(self.views, 1):
            view = images.flip(3) if mirrored else images
            with self.execution.autocast():
                logits = self.model(view.rot90(turns, (2, 3))).float()
            logits = logits.rot90(-turns, (2, 3))
            logits = logits.flip(3) if mirrored else logits
            total = total + logits
            if self.spread:  # Welford's sums, which lose no digits
                difference = activate(logits) - mean
                mean = mean + difference / number
                squares = squares + difference * (activate(logits) - mean)
        average = total / len(self.views)
        return ViewAverage(average, mean, squares) if self.spread else ViewAverage(average)

    def normalized(self, picture: torch.Tensor) -> torch.Tensor:
        """Normalise a uint8 picture (3, H, W) as in training."""
        return normalizer(self.config.normalization, self.config.input_channels)(picture)

    def prepare(self, picture: torch.Tensor) -> torch.Tensor:
        """Normalise a uint8 picture (3, H, W) and resize it to the network's input."""
        return resize(self.normalized(picture), self.config.image_size, antialias=self.config.antialias).float()

    def answer_pictures(
        self, pictures: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> Iterator[ViewAverage]:
        """Yield probabilities (1, C, H, W) for each picture (3, H, W); `inputs` are the results of `prepare`."""
        answer = self(torch.stack(tuple(inputs))).activated()
        for number, picture in enumerate(pictures):
            own = apply(itemgetter(slice(number, number + 1)), answer)
            yield own.resized(picture.shape[1:], align_corners=False)

    def answer_slices(self, slices: np.ndarray) -> ViewAverage:
        """Return logits (S, classes, h, w), in the size of the network's input, for slices (S, channels, H, W) with
        values as in training; `at_own_size` brings them back."""
        inputs = fit_slices(slices, (self.config.image_size,) * 2, self.config.slice_fit)
        return self(torch.from_numpy(inputs.astype(np.float32)))

    def at_own_size(self, answer: ViewAverage, size: Sequence[int]) -> ViewAverage:
        """Bring the answer to slices to their (height, width): cropped, or resized corner-aligned as they were."""
        if self.config.slice_fit == "pad":
            return apply(lambda part: middle(part, size), answer)
        return answer.resized(size, align_corners=True)

    @torch.inference_mode()
    def answer_windows(self, image: torch.Tensor) -> ViewAverage:
        """Return probabilities (1, C, H, W) for an image (channels, H, W) of any size, by MONAI's sliding windows with
        Gaussian weights. MONAI's padding, weights and batches of windows are well tested; ours would do nothing better.
        """

        def network(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
            answer = self(windows)
            bar.update(len(windows))
            return tuple(tensor for tensor in answer if tensor is not None)

        slide, size = optional("monai.inferers", "--sliding-window").sliding_window_inference, self.config.image_size
        step = max(1, int(size * (1 - self.overlap)))
        count = math.prod(math.ceil(max(0, side - size) / step) + 1 for side in image.shape[1:])
        with Progress(count, "window") as bar:
            answer = slide(image[None], (size, size), self.batch_size, network, overlap=self.overlap, mode="gaussian")
        return (ViewAverage(*answer) if self.spread else ViewAverage(answer)).activated()

    def _batch_that_fits(self) -> int:
        """Count the images that are likely to fit in half of the free memory."""
        kind = self.execution.device.type
        free = torch.cuda.mem_get_info(self.execution.device)[0] if kind == "cuda" else free_memory()
        return max(1, min(LARGEST_BATCH[kind], free // 2 // (BYTES_PER_PIXEL * self.config.image_size**2)))


def apply(function: Callable[[Any], Any], parts: Parts) -> Parts:
    """Apply a function to each array of a named tuple; None stays None."""
    return type(parts)(*(None if part is None else function(part) for part in parts))


def join(function: Callable[[Any], Any], several: Sequence[Parts]) -> Parts:
    """Join the arrays of several named tuples, such as by torch.cat."""
    columns = zip(*several, strict=True)
    return type(several[0])(*(None if column[0] is None else function(column) for column in columns))


def activate(logits: torch.Tensor) -> torch.Tensor:
    """Return the probabilities (B, C, ...): sigmoid of a binary network, softmax over several classes."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
