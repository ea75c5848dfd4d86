"""Optimizers and learning-rate schedules, built from the rows of configs/optim.py."""

import ast
import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

Rows = Mapping[str, Any]  # name -> its values, as in configs/optim.py


def build_optimizer(model: nn.Module, config: Any, rows: Rows, overrides: dict[str, Any] | None = None) -> Optimizer:
    """Return the optimizer `config.opt` for all parameters of `model`, with the values of its row in `rows`.

    config.lr, config.weight_decay   replace the row's, unless None; `overrides` (name -> value) replaces any value
    config.decay                     "all" decays every parameter (published); "weights_only" spares A_logs, Ds, norms
                                     and biases"""
    values = _optimizer_row(config, rows, overrides)
    optimizer = getattr(torch.optim, config.opt)
    if config.opt in ("Adam", "AdamW") and all(p.is_cuda or p.is_cpu for p in model.parameters()):
        values.setdefault("fused", True)  # one kernel for all parameters; on CPUs also no temporary copies of them
    return optimizer(_parameter_groups(model, config.decay), **values)


def build_scheduler(
    optimizer: Optimizer, config: Any, rows: Rows, overrides: dict[str, Any] | None = None
) -> LRScheduler:
    """Return the scheduler `config.sch`, stepped once an epoch by `step_scheduler`, with the values of its row.

    config.epochs   length of the run
    config.warmup   of the WP_* rows: "from_first_step" climbs from 1/n of the rate to 1 in n epochs; "published" climbs
                    from 0, at which it spends the first epoch, to (n - 1)/n"""
    values, after = _scheduler_row(config, rows, overrides), FACTORS.get(config.sch)
    if after is None:
        return getattr(lr_scheduler, config.sch)(optimizer, **values)
    run = dict(epochs=config.epochs, base_lr=optimizer.defaults["lr"])
    first = 0 if config.warmup == "published" and config.sch != "CosineWarmup" else 1
    n = values["warm_up_epochs"]
    # The lambda keeps the values out of the scheduler's state, which then holds nothing but numbers.
    return lr_scheduler.LambdaLR(optimizer, lambda i: (i + first) / n if i < n else after(i, **run, **values))


def step_scheduler(scheduler: LRScheduler, metric: float) -> None:
    """End an epoch. Only ReduceLROnPlateau uses the metric, the loss by which the best epoch is selected."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(metric)
    else:
        scheduler.step()


def check_optimization(config: Any, optimizers: Rows, schedulers: Rows) -> None:
    """Raise ValueError for values that the config's optimizer or scheduler rejects, before any data are read."""
    try:
        optimizer = build_optimizer(torch.nn.Linear(1, 1), config, optimizers, config.opt_args)
        scheduler = build_scheduler(optimizer, config, schedulers, config.sch_args)
        optimizer.step()
        step_scheduler(scheduler, 1.0)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"--opt {config.opt} --sch {config.sch}: found invalid values: {error}") from error


def adopt_length(scheduler: LRScheduler, config: Any) -> str:
    """Continue a restored schedule as that of a run of config.epochs. Return a sentence about it for the log."""
    if not isinstance(scheduler, lr_scheduler.LambdaLR) or config.sch == "WP_MultiStepLR":
        return f"the schedule {config.sch} is unchanged: it does not depend on the number of epochs"
    groups = scheduler.optimizer.param_groups
    before = groups[0]["lr"]
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)
    change = f"the learning rate of the next one is {groups[0]['lr']:.2e} instead of {before:.2e}"
    return f"the schedule {config.sch} is now that of {config.epochs} epochs: {change}"


def optimization_values(config: Any, optimizers: Rows, schedulers: Rows) -> dict[str, dict[str, Any]]:
    """Return the names and values of a config's optimizer and scheduler, as plain values."""
    return {
        "optimizer": {"name": config.opt, **_optimizer_row(config, optimizers, config.opt_args)},
        "scheduler": {"name": config.sch, **_scheduler_row(config, schedulers, config.sch_args)},
    }


def warm_up_warning(scheduler: Mapping[str, Any], epochs: int) -> str | None:
    """Return a warning if the rate of a schedule, with the values of `optimization_values`, only rises; else None."""
    warm_up = scheduler.get("warm_up_epochs", 0)
    if warm_up < epochs:
        return None
    found = f"found warm_up_epochs {warm_up} in a run of {epochs}: the learning rate never falls"
    return f"--sch {scheduler['name']}: {found}; --epochs gives more, --sch-args warm_up_epochs fewer"


def _optimizer_row(config, rows, overrides):
    replaced = {name: getattr(config, name) for name in ("lr", "weight_decay") if getattr(config, name) is not None}
    return _row(rows, "opt", config.opt, replaced | (overrides or {}), getattr(torch.optim, config.opt, None))


def _scheduler_row(config, rows, overrides):
    build = FACTORS.get(config.sch) or getattr(lr_scheduler, config.sch, None)
    values = _row(rows, "sch", config.sch, overrides or {}, build)
    if config.sch == "StepLR" and values["step_size"] is None:
        values["step_size"] = max(1, config.epochs // 5)
    return values


def _row(rows, option, name, overrides, build):
    """Return row `name` with the overrides; text, as from a command line, is read as Python literals."""
    if name not in rows:
        raise ValueError(f"--{option}: found {name!r}, expected one of {', '.join(rows)}")
    known = [key for key in inspect.signature(build).parameters if key not in ("params", "optimizer", *RUN_VALUES)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"{option} {name} has no {', '.join(unknown)}, expected some of {', '.join(known)}")
    return rows[name] | {key: _literal(value) for key, value in overrides.items()}


def _literal(value):
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value  # a word, such as ReduceLROnPlateau's mode


def _parameter_groups(model, decay):
    if decay == "all":
        return list(model.parameters())
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]  # A_logs and dt_projs_bias are matrices: their names tell, not their shapes
        spare = parameter.ndim <= 1 or leaf in ("A_logs", "A_log", "Ds") or leaf.endswith("bias")
        (spared if spare else decayed).append(parameter)
    return [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]


# ---- schedules that PyTorch lacks, as factors of the learning rate after the warm-up, in an epoch counted from 0

RUN_VALUES = ("epoch", "epochs", "base_lr")


def _half_cosine(epoch, start, end):
    """From 1 in epoch `start` to 0 in epoch `end`."""
    return 0.5 * (1 + math.cos(math.pi * (epoch - start) / max(1, end - start)))


def _multi_step(epoch, epochs, base_lr, warm_up_epochs, milestones, gamma):
    return gamma ** bisect_right(milestones, epoch)


def _cosine(epoch, epochs, base_lr, warm_up_epochs):
    return _half_cosine(epoch, warm_up_epochs, epochs)


def _cosine_over_the_run(epoch, epochs, base_lr, warm_up_epochs, eta_min):
    """One cosine that reaches eta_min in the run's last epoch and stays there; its warm-up is never from 0."""
    lowest, last = eta_min / base_lr, epochs - 1
    return lowest + (1 - lowest) * _half_cosine(min(epoch, last), warm_up_epochs, last)


FACTORS: dict[str, Callable[..., float]] = {
    "WP_MultiStepLR": _multi_step,
    "WP_CosineLR": _cosine,
    "CosineWarmup": _cosine_over_the_run,
}
