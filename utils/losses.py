"""Losses. Every function here of (logits, target) can be chosen in a config, by its name: `loss = "bce_dice"`.

    def my_loss(logits, target):        # (B, n, H, W); n 1: masks (B, 1, H, W) in 0..1; else class numbers (B, H, W)
        return F.cross_entropy(logits, target.long())

Further parameters get the config's values of the same name: `loss_weight`, `class_weights`, `ignore_label`. In training
the function gets a batch (under torchrun the whole batch); in validation it gets one image at a time. The losses of
several outputs are added.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import check_same_shape


def bce_dice(
    logits: Tensor, target: Tensor, loss_weight: Sequence[float] = (1, 1), class_weights: Sequence[float] = ()
) -> Tensor:
    """Return w0 * binary cross-entropy + w1 * soft Dice loss of sigmoid(logits): one class, (B, 1, H, W) twice.

    class_weights  of background and object, in the cross-entropy"""
    if not class_weights:
        return BceDiceWithLogitsLoss(*loss_weight)(logits, target)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    dice = BceDiceWithLogitsLoss(0, loss_weight[1])(logits, target)
    return loss_weight[0] * weighted_mean(bce, pixel_weights(target, class_weights)) + dice


def ce_dice(
    logits: Tensor,
    target: Tensor,
    loss_weight: Sequence[float] = (1, 1),
    class_weights: Sequence[float] = (),
    ignore_label: int | None = None,
) -> Tensor:
    """Return w0 * cross-entropy + w1 * soft Dice loss of softmax(logits): (B, n, H, W) and class numbers (B, H, W).

    class_weights  of the classes 0, 1, ...: both parts are weighted means
    ignore_label   pixels of this number, which is no class, are left out of both"""
    n, target = logits.shape[1], target.long()
    if not class_weights and ignore_label is None:
        return CeDiceLoss(n, loss_weight)(logits, target)
    pixels = F.cross_entropy(logits, target.clamp(max=n - 1), reduction="none")
    ce = weighted_mean(pixels, pixel_weights(target, class_weights, ignore_label))
    counted = pixel_weights(target, (), ignore_label)[:, None]
    of_classes = [weight * n / sum(class_weights) for weight in class_weights] or None
    return loss_weight[0] * ce + loss_weight[1] * nDiceLoss(n)(logits.softmax(1) * counted, target, of_classes)


def focal(
    logits: Tensor,
    target: Tensor,
    focal_gamma: float = 2,
    class_weights: Sequence[float] = (),
    ignore_label: int | None = None,
) -> Tensor:
    """Return the focal loss (Lin et al. 2017), the mean of (1 - p)^gamma * -log(p) with the probability p of the right
    class: of one class, (B, 1, H, W) twice, or of several, (B, n, H, W) and class numbers (B, H, W).

    class_weights, ignore_label  as in ce_dice; of one class two weights, of background and object"""
    if logits.shape[1] == 1:
        log_loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    else:
        target = target.long()
        log_loss = F.cross_entropy(logits, target.clamp(max=logits.shape[1] - 1), reduction="none")
    missing = (1 - (-log_loss).exp()).clamp(min=1e-12)  # 1 - p
    return weighted_mean(missing**focal_gamma * log_loss, pixel_weights(target, class_weights, ignore_label))


def pixel_weights(target: Tensor, class_weights: Sequence[float] = (), ignore_label: int | None = None) -> Tensor:
    """Return the weight of each pixel in the shape of `target`: that of its class, or 0 where the pixel is ignored.
    `target` holds class numbers, or a floating mask 0..1, in which a soft outline has a weight between the two."""
    if target.is_floating_point():
        background, object = class_weights or (1, 1)
        return background + (object - background) * target
    counted = torch.ones_like(target, dtype=torch.float32) if ignore_label is None else (target != ignore_label).float()
    if not class_weights:
        return counted
    return counted * _table(tuple(class_weights), target.device)[target.clamp(max=len(class_weights) - 1)]


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of values with weights of the same shape; 0 where all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


@functools.cache  # sending the numbers to a GPU in each step would cause a wait
def _table(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def find_losses() -> dict[str, Callable[..., Tensor]]:
    """Return {name: function} of the losses that a config can choose: the functions here of (logits, target)."""
    found = {name: value for name, value in globals().items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: f for name, f in found.items() if [*inspect.signature(f).parameters][:2] == ["logits", "target"]}


def loss_name(config: Any) -> str:
    """Return the name of a config's loss; "auto": bce_dice of one class, else ce_dice."""
    automatic = "bce_dice" if config.num_classes == 1 else "ce_dice"
    return automatic if config.loss == "auto" else config.loss


def build_loss(config: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of (logits, target) that `config.loss` names, with the config's values of its parameters."""
    function = find_losses()[loss_name(config)]
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
