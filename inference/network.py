"""The trained network as prediction calls it: averaged over views of an image, by windows, in batches that fit."""

import itertools
import logging
from types import ModuleType

import torch

from engine import Execution
from utils.machine.memory import free_memory

log = logging.getLogger("vmunet")

# (quarter turns, mirrored) of the views that are averaged
VIEWS = {
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "flips_rotations": list(itertools.product(range(4), (False, True))),
}
BYTES_PER_PIXEL = 1000  # of the network's input, that one image may need; measured: 440 on a CPU at 256 x 256
LARGEST_BATCH = {"cpu": 4, "cuda": 64, "mps": 8}  # more is not faster


class BatchedNetwork:
    """Logits of any number of images, on the CPU. With `spread` they are followed, as further channels, by the mean
    probabilities over the views and the sum of squared differences from these.

    model       (B, C, size, size) -> logits, prepared for execution.device
    size        side of its input, in pixels
    tta         a row of VIEWS: test-time augmentation
    overlap     of neighbouring windows, a share from 0 to below 1
    batch_size  images at a time; None: as many as are likely to fit in half of the free memory
    """

    def __init__(
        self,
        model: torch.nn.Module,
        execution: Execution,
        size: int,
        tta: str = "none",
        overlap: float = 0.5,
        batch_size: int | None = None,
        spread: bool = False,
    ):
        self.model, self.execution, self.size, self.views, self.overlap = model, execution, size, VIEWS[tta], overlap
        self.spread = spread
        self.batch_size = batch_size or self._batch_that_fits()

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, h, w) -> logits float32 (B, classes, h, w), with `spread` three times as many channels. Where
        the memory is not enough, the batches become smaller."""
        logits, start = [], 0
        while start < len(images):
            batch = images[start : start + self.batch_size].to(self.execution.device)
            try:
                logits.append(self.average_views(batch).cpu())
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                log.warning("out of memory: going on with %d images at a time", self.batch_size)
                continue
            start += len(batch)
        return torch.cat(logits)

    @torch.inference_mode()
    def by_windows(self, image: torch.Tensor) -> torch.Tensor:
        """The same for an image (1, C, H, W) of any size: MONAI's sliding windows, weighted by a Gaussian. Its padding,
        weights and batches of windows of any overlap are well tested; ours would do nothing better."""
        slide = import_monai().sliding_window_inference
        return slide(image, (self.size, self.size), self.batch_size, self, overlap=self.overlap, mode="gaussian")

    def average_views(self, images: torch.Tensor) -> torch.Tensor:
        """Mean logits over the views, each turned back; with `spread` what belongs to them."""
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
        return torch.cat([average, mean, squares], 1) if self.spread else average

    def _batch_that_fits(self) -> int:
        kind = self.execution.device.type
        free = torch.cuda.mem_get_info(self.execution.device)[0] if kind == "cuda" else free_memory()
        return max(1, min(LARGEST_BATCH[kind], free // 2 // (BYTES_PER_PIXEL * self.size**2)))


def activate(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities (B, C, ...): the sigmoid of a binary network, the softmax over several classes."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def import_monai() -> ModuleType:
    """monai.inferers. Raises ValueError with the command that installs it."""
    try:
        import monai.inferers
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--sliding-window: found no module {error.name!r}, which it needs; pip install -r requirements-extra.txt"
        ) from error
    return monai.inferers
