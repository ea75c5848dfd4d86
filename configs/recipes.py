"""Recipes: a few values of the training configs under one name, `--recipe NAME` (configs/resolve.py applies them)."""

from typing import Any

# What each replaces. mIoU of all pixels from random weights (docs/results.md): of the best epoch, and of the last one.
RECIPES: dict[str, dict[str, Any]] = {
    # The paper's values, as in the config files. ISIC17: 79.70, then the training collapses (docs/collapse.md), 38.95.
    # ISIC18, without a collapse: 82.68, 81.53. One seed each.
    "published": {},
    # At a learning rate of 1e-3 three of four runs on ISIC17 fell below half of their highest mIoU (docs/collapse.md).
    # ISIC17: 84.13 ± 0.38, 82.69 ± 0.10. ISIC18: 82.45 ± 0.14, 81.54 ± 0.49. Three seeds each.
    "stable": dict(lr=5e-4, sch="CosineWarmup", clip_grad_norm=1.0, rotation="sample", decay="weights_only"),
}
# Strong augmentation, averaged weights, no epoch selected. ISIC17: 82.56; ISIC18: 82.62. One seed each.
RECIPES["robust"] = RECIPES["stable"] | dict(augmentation="strong", ema=0.998, select="last")
PUBLISHED_DATA = ("isic17", "isic18", "synapse", "demo")  # demo: made like the published ones
DEFAULT_FOR_OWN_DATA = "stable"
