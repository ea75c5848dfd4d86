"""Every optimizer and scheduler with the original's values: a row each, keyed by its name in PyTorch.

A config selects rows by name (`opt`, `sch`); utils/optimizers.py builds them and takes overrides of single values.
"""

from typing import Any, Literal

Optimizer = Literal["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "RMSprop", "Rprop", "SGD"]
Scheduler = Literal[
    "StepLR",
    "MultiStepLR",
    "ExponentialLR",
    "CosineAnnealingLR",
    "ReduceLROnPlateau",
    "CosineAnnealingWarmRestarts",
    "WP_MultiStepLR",
    "WP_CosineLR",
    "CosineWarmup",
]
Rows = dict[str, dict[str, Any]]

OPTIMIZERS: Rows = {
    "Adadelta": dict(lr=0.01, rho=0.9, eps=1e-6, weight_decay=0.05),
    "Adagrad": dict(lr=0.01, lr_decay=0, eps=1e-10, weight_decay=0.05),
    "Adam": dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, amsgrad=False),
    "AdamW": dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False),
    "Adamax": dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0),
    "ASGD": dict(lr=0.01, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0),
    "RMSprop": dict(lr=0.01, momentum=0, alpha=0.99, eps=1e-8, centered=False, weight_decay=0),
    "Rprop": dict(lr=0.01, etas=(0.5, 1.2), step_sizes=(1e-6, 50)),
    "SGD": dict(lr=0.01, momentum=0.9, weight_decay=0.05, dampening=0, nesterov=False),
}

# Stepped once an epoch. The published cosine (T_max 50 or 100 in 300 epochs) rises again; CosineWarmup does not.
SCHEDULERS: Rows = {
    "StepLR": dict(step_size=None, gamma=0.5),  # None: a fifth of the epochs
    "MultiStepLR": dict(milestones=(60, 120, 150), gamma=0.1),
    "ExponentialLR": dict(gamma=0.99),
    "CosineAnnealingLR": dict(T_max=50, eta_min=1e-5),
    "ReduceLROnPlateau": dict(
        mode="min", factor=0.1, patience=10, threshold=1e-4, threshold_mode="rel", cooldown=0, min_lr=0, eps=1e-8
    ),
    "CosineAnnealingWarmRestarts": dict(T_0=50, T_mult=2, eta_min=1e-6),
    "WP_MultiStepLR": dict(warm_up_epochs=10, milestones=(125, 225), gamma=0.1),
    "WP_CosineLR": dict(warm_up_epochs=20),
    "CosineWarmup": dict(warm_up_epochs=10, eta_min=1e-5),  # not in the original: one cosine over the whole run
}

# The original's Synapse config differs in these rows.
SYNAPSE_OPTIMIZERS = OPTIMIZERS | {
    "Adam": OPTIMIZERS["Adam"] | dict(lr=1e-4, weight_decay=0.05),
    "SGD": OPTIMIZERS["SGD"] | dict(lr=3e-3, weight_decay=1e-4),
}
SYNAPSE_SCHEDULERS = SCHEDULERS | {"CosineAnnealingLR": dict(T_max=100, eta_min=1e-5)}


def rows_of(config: Any) -> tuple[Rows, Rows]:
    """Return the tables of optimizers and schedulers for a config of images or of volumes."""
    return (SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS) if config.of_volumes else (OPTIMIZERS, SCHEDULERS)
