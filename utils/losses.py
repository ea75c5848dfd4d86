"""Losses. Every function here of (logits, target) can be chosen in a config, by its name: `loss = "bce_dice"`.

    def my_loss(logits, target):        # (B, n, H, W); n 1: masks (B, 1, H, W) in 0..1; else class numbers (B, H, W)
        return F.cross_entropy(logits, target.long())

Further parameters get the config's values of the same name, such as `loss_weight`. In training the function gets a
batch, the whole one under torchrun too; in validation one image at a time. The losses of several outputs are added.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import check_same_shape


def bce_dice(logits: Tensor, target: Tensor, loss_weight: Sequence[float] = (1, 1)) -> Tensor:
    """Return w0 * binary cross-entropy + w1 * soft Dice loss of sigmoid(logits): one class, (B, 1, H, W) twice."""
    return BceDiceWithLogitsLoss(*loss_weight)(logits, target)


def ce_dice(logits: Tensor, target: Tensor, loss_weight: Sequence[float] = (1, 1)) -> Tensor:
    """Return w0 * cross-entropy + w1 * soft Dice loss of softmax(logits): (B, n, H, W) and class numbers (B, H, W)."""
    return CeDiceLoss(logits.shape[1], loss_weight)(logits, target)


def find_losses() -> dict[str, Callable[..., Tensor]]:
    """Return {name: function} of the losses that a config can choose: the functions here of (logits, target)."""
    found = {name: value for name, value in globals().items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: f for name, f in found.items() if [*inspect.signature(f).parameters][:2] == ["logits", "target"]}


def build_loss(config: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of (logits, target) that `config.loss` names; "auto": bce_dice of one class, else ce_dice."""
    name = config.loss if config.loss != "auto" else "bce_dice" if config.num_classes == 1 else "ce_dice"
    function = find_losses()[name]
    parameters = [*inspect.signature(function).parameters][2:]
    options = {key: getattr(config, key) for key in parameters if hasattr(config, key)}
    return functools.partial(function, **options) if options else function


# ---- the losses of the original


def batch_mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of one value per image, (B,) -> scalar."""
    return values.sum() / values.new_full((), len(values))  # not a Python number: a GPU would multiply by its inverse


def _full_precision(x: torch.Tensor) -> torch.Tensor:
    """Return x in float32 at least: float16 overflows in the sums over an image."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pair(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and target of equal shape as (B, pixels) of one floating type."""
    check_same_shape(inputs, target)
    inputs = _full_precision(inputs).flatten(1)
    return inputs, target.to(inputs.dtype).flatten(1)


def _dice_loss_per_image(prob: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return 1 - (2 sum(p t) + 1) / (sum p + sum t + 1) of each image: (B, pixels) twice -> (B,)."""
    return 1 - (2 * (prob * target).sum(1) + 1) / (prob.sum(1) + target.sum(1) + 1)


class BCELoss(nn.Module):
    """Binary cross-entropy of probabilities, mean over all pixels; logarithms are cut at -100."""

    def forward(self, prob: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        prob, target = _pair(prob, target)
        return batch_mean(F.binary_cross_entropy(prob, target, reduction="none").mean(1))


class DiceLoss(nn.Module):
    """Soft Dice of probabilities, per image with smooth 1, mean over the images."""

    def forward(self, prob: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return batch_mean(_dice_loss_per_image(*_pair(prob, target)))


class BceDiceLoss(nn.Module):
    """wb * BCE + wd * Dice of probabilities and masks of equal shape (B, ...): the published definition."""

    def __init__(self, wb: float = 1, wd: float = 1):
        super().__init__()
        self.wb, self.wd = wb, wd
        self.bce, self.dice = BCELoss(), DiceLoss()

    def forward(self, prob: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.wb * self.bce(prob, target) + self.wd * self.dice(prob, target)


class BceDiceWithLogitsLoss(nn.Module):
    """BceDiceLoss of sigmoid(logits). Training uses this one: nothing saturates, and it is safe under autocast.

    The two differ only where the original's sigmoid has rounded to 0 or 1 and its logarithm is cut.
    """

    def __init__(self, wb: float = 1, wd: float = 1):
        super().__init__()
        self.wb, self.wd = wb, wd

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits, target = _pair(logits, target)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        dice = _dice_loss_per_image(logits.sigmoid(), target)
        return batch_mean(self.wb * bce + self.wd * dice)


class GT_BceDiceLoss(nn.Module):
    """BceDiceLoss of the output plus that of five side outputs, deepest first, weighted 0.1 to 0.5."""

    def __init__(self, wb: float = 1, wd: float = 1):
        super().__init__()
        self.bcedice = BceDiceLoss(wb, wd)

    def forward(self, gt_pre: Sequence[torch.Tensor], out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        weights = (0.1, 0.2, 0.3, 0.4, 0.5)
        if len(gt_pre) != len(weights):
            raise ValueError(f"GT_BceDiceLoss needs {len(weights)} side outputs, got {len(gt_pre)}")
        side = sum(w * self.bcedice(pre, target) for w, pre in zip(weights, gt_pre, strict=True))
        return self.bcedice(out, target) + side


class nDiceLoss(nn.Module):
    """Dice of n classes, each over the whole batch, background included:

        sum over classes of weight * (1 - (2 sum(s t) + 1e-5) / (sum s^2 + sum t^2 + 1e-5)), divided by n

    inputs (B, n, H, W): probabilities, or logits with softmax=True; target (B, H, W): class numbers.
    """

    def __init__(self, n_classes: int):
        super().__init__()
        self.n_classes = n_classes

    def forward(
        self,
        inputs: torch.Tensor,
        target: torch.Tensor,
        weight: Sequence[float] | None = None,
        softmax: bool = False,
    ) -> torch.Tensor:
        if inputs.shape[1] != self.n_classes or target.shape != inputs[:, 0].shape:
            expected = f"(B, {self.n_classes}, H, W) and (B, H, W)"
            raise ValueError(f"nDiceLoss needs {expected}, got {tuple(inputs.shape)} and {tuple(target.shape)}")
        inputs = _full_precision(inputs)
        score = inputs.softmax(1) if softmax else inputs
        classes = torch.arange(self.n_classes, device=target.device)[:, None, None]
        one_hot = (target.long()[:, None] == classes).to(score.dtype)
        sums = torch.stack([(score * one_hot).sum((0, 2, 3)), score.square().sum((0, 2, 3)), one_hot.sum((0, 2, 3))])
        intersection, predicted, labelled = sums
        loss = 1 - (2 * intersection + 1e-5) / (predicted + labelled + 1e-5)  # (n,)
        if weight is not None:
            loss = loss * loss.new_tensor(weight)
        return loss.sum() / self.n_classes


class CeDiceLoss(nn.Module):
    """w0 * cross-entropy + w1 * nDiceLoss of logits (B, n, H, W) and class numbers (B, H, W)."""

    def __init__(self, num_classes: int, loss_weight: Sequence[float] = (0.4, 0.6)):
        super().__init__()
        self.loss_weight = tuple(loss_weight)
        self.dice = nDiceLoss(num_classes)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits, target = _full_precision(logits), target.long()
        ce = batch_mean(F.cross_entropy(logits, target, reduction="none").flatten(1).mean(1))
        ce_weight, dice_weight = self.loss_weight
        return ce_weight * ce + dice_weight * self.dice(logits, target, softmax=True)
