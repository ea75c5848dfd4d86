import io
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs.optim import OPTIMIZERS, SCHEDULERS, SYNAPSE_OPTIMIZERS, SYNAPSE_SCHEDULERS
from utils.optimizers import adopt_length, build_optimizer, build_scheduler, check_optimization, step_scheduler


def config(**changes):
    published = dict(opt="AdamW", sch="CosineAnnealingLR", lr=None, weight_decay=None, decay="all", epochs=300)
    return SimpleNamespace(**published | dict(warmup="from_first_step") | changes)


def rates(config, rows=SCHEDULERS, epochs=None, base_lr=None, overrides=None, metric=lambda epoch: 1.0):
    """The learning rate of every epoch; one more than config.epochs unless said otherwise."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=base_lr or 1e-3)
    scheduler, seen = build_scheduler(optimizer, config, rows, overrides), []
    for epoch in range(epochs or config.epochs + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        step_scheduler(scheduler, metric(epoch))
    return seen


# ---- optimizers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_with_the_values_of_its_row(name):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(16, 3)
    optimizer = build_optimizer(model, config(opt=name), OPTIMIZERS)
    assert type(optimizer).__name__ == name
    assert optimizer.defaults | OPTIMIZERS[name] == optimizer.defaults
    losses = []
    for _ in range(30):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_synapse_differs_in_the_published_rows_only():
    changed = {name: row for name, row in SYNAPSE_OPTIMIZERS.items() if row != OPTIMIZERS[name]}
    assert {name: (row["lr"], row["weight_decay"]) for name, row in changed.items()} == {
        "Adam": (1e-4, 0.05),
        "SGD": (3e-3, 1e-4),
    }
    assert SYNAPSE_OPTIMIZERS["SGD"]["momentum"] == 0.9
    changed = {name: row for name, row in SYNAPSE_SCHEDULERS.items() if row != SCHEDULERS[name]}
    assert changed == {"CosineAnnealingLR": dict(T_max=100, eta_min=1e-5)}


def test_config_and_overrides_replace_single_values_and_leave_the_row():
    before = dict(OPTIMIZERS["AdamW"])
    overrides = dict(betas="(0.8, 0.9)", eps=1e-6)  # text, as from a command line, and a number
    changed = config(lr=3e-4, weight_decay=0.0)
    defaults = build_optimizer(nn.Linear(2, 1), changed, OPTIMIZERS, overrides).defaults
    assert (defaults["lr"], defaults["weight_decay"], defaults["betas"], defaults["eps"]) == (3e-4, 0, (0.8, 0.9), 1e-6)
    assert OPTIMIZERS["AdamW"] == before
    assert build_optimizer(nn.Linear(2, 1), changed, OPTIMIZERS, dict(lr=1e-5)).defaults["lr"] == 1e-5


def test_unknown_names_and_values_are_named():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="opt.*'Lion'.*Adadelta, "):
        build_optimizer(model, config(opt="Lion"), OPTIMIZERS)
    with pytest.raises(ValueError, match="opt AdamW.* beta,.* lr, betas"):
        build_optimizer(model, config(), OPTIMIZERS, dict(beta=0.9))
    with pytest.raises(ValueError, match="opt Rprop.*weight_decay"):
        build_optimizer(model, config(opt="Rprop", weight_decay=0.1), OPTIMIZERS)
    optimizer = build_optimizer(model, config(), OPTIMIZERS)
    with pytest.raises(ValueError, match="sch.*'Linear'.*StepLR, "):
        build_scheduler(optimizer, config(sch="Linear"), SCHEDULERS)
    with pytest.raises(ValueError, match="sch WP_CosineLR.*T_max.*warm_up_epochs"):
        build_scheduler(optimizer, config(sch="WP_CosineLR"), SCHEDULERS, dict(T_max=3))


class Block(nn.Module):
    """One parameter of every kind that the model has."""

    def __init__(self):
        super().__init__()
        self.A_logs, self.Ds = nn.Parameter(torch.zeros(8, 16)), nn.Parameter(torch.ones(8))
        self.x_proj_weight = nn.Parameter(torch.zeros(4, 5, 2))
        self.dt_projs_weight, self.dt_projs_bias = nn.Parameter(torch.zeros(4, 2, 1)), nn.Parameter(torch.zeros(4, 2))
        self.in_proj, self.conv2d, self.out_norm = nn.Linear(2, 4, bias=False), nn.Conv2d(2, 2, 3), nn.LayerNorm(2)


def test_weight_decay_covers_all_parameters_or_the_weights_only():
    model = Block()
    names = {p: name for name, p in model.named_parameters()}
    (group,) = build_optimizer(model, config(), OPTIMIZERS).param_groups
    assert [names[p] for p in group["params"]] == list(names.values()), "published: one group in the model's order"
    decayed, spared = build_optimizer(model, config(decay="weights_only"), OPTIMIZERS).param_groups
    assert {names[p] for p in decayed["params"]} == {
        "x_proj_weight",
        "dt_projs_weight",
        "in_proj.weight",
        "conv2d.weight",
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-2, 0)


# ---- schedulers


def test_learning_rates_equal_the_originals(shared):
    golden = json.loads((shared / "oracle/golden/losses_metrics.json").read_text(encoding="utf-8"))["lr_schedules"]
    isic = golden["isic_CosineAnnealingLR_first_epochs"]
    assert rates(config(), epochs=len(isic)) == pytest.approx(isic, rel=1e-12)
    synapse = golden["synapse_CosineAnnealingLR_first_epochs"]
    assert rates(config(), SYNAPSE_SCHEDULERS, len(synapse)) == pytest.approx(synapse, rel=1e-12)
    for name in ("WP_MultiStepLR", "WP_CosineLR"):
        published = rates(config(sch=name, warmup="published"), base_lr=1.0)
        assert published == pytest.approx(golden[name], rel=1e-12, abs=1e-15)
        fixed = rates(config(sch=name), base_lr=1.0)
        n = SCHEDULERS[name]["warm_up_epochs"]
        assert fixed[:n] == pytest.approx([(e + 1) / n for e in range(n)])
        assert fixed[n:] == pytest.approx(golden[name][n:], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("epochs", [1, 3, 60])
def test_every_schedule_runs_for_any_number_of_epochs_and_never_starts_at_zero(name, epochs):
    assert all(0 < rate <= 1e-3 * (1 + 1e-12) for rate in rates(config(sch=name, epochs=epochs), epochs=epochs))


def test_step_size_is_a_fifth_of_the_epochs_unless_given():
    def steps(epochs, overrides=None):
        seen = rates(config(sch="StepLR", epochs=epochs), overrides=overrides)
        return [e for e in range(1, len(seen)) if seen[e] < seen[e - 1]]

    assert steps(300) == [60, 120, 180, 240, 300]
    assert steps(12, dict(step_size="5")) == [5, 10]
    assert steps(2) == [1, 2]


def test_multi_step_and_exponential_rates():
    seen = rates(config(sch="MultiStepLR"), base_lr=1.0)
    assert [seen[e] for e in (59, 60, 119, 120, 149, 150)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert rates(config(sch="ExponentialLR"), epochs=3, base_lr=1.0) == pytest.approx([1, 0.99, 0.9801])
    seen = rates(config(sch="CosineAnnealingWarmRestarts"), epochs=151)
    assert [e for e in range(1, 151) if seen[e] > seen[e - 1]] == [50, 150]


def test_plateau_lowers_the_rate_when_its_metric_stalls():
    row = SCHEDULERS["ReduceLROnPlateau"]
    falling = rates(config(sch="ReduceLROnPlateau"), epochs=40, metric=lambda epoch: 1 / (epoch + 1))
    assert falling == [1e-3] * 40
    stalled = rates(config(sch="ReduceLROnPlateau"), epochs=40)
    assert stalled.index(pytest.approx(1e-4)) == row["patience"] + 2
    other = rates(config(sch="ReduceLROnPlateau"), epochs=40, overrides=dict(mode="max"), metric=lambda epoch: epoch)
    assert other == [1e-3] * 40


def test_a_schedule_leaves_the_config_as_it_was():
    """The original's flat config let the scheduler's threshold 1e-4 replace the mask's 0.5."""
    settings = config(sch="ReduceLROnPlateau", threshold=0.5)
    before = dict(vars(settings))
    optimizer = build_optimizer(nn.Linear(2, 1), settings, OPTIMIZERS)
    assert build_scheduler(optimizer, settings, SCHEDULERS).threshold == 1e-4
    assert vars(settings) == before
    assert optimizer.defaults["eps"] == 1e-8


def test_one_cosine_over_the_run():
    seen = rates(config(sch="CosineWarmup", epochs=100), base_lr=1e-2)
    assert seen[:10] == pytest.approx([1e-3 * (e + 1) for e in range(10)])
    assert all(b < a for a, b in zip(seen[10:99], seen[11:100], strict=True)), "it never rises again"
    assert seen[99] == seen[100] == pytest.approx(1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_stored_schedule_goes_on_where_it_stopped(name):
    def make():
        optimizer = build_optimizer(nn.Linear(2, 1), settings, OPTIMIZERS)
        return optimizer, build_scheduler(optimizer, settings, SCHEDULERS)

    def run(optimizer, scheduler, epochs):
        seen = []
        for _ in range(epochs):
            optimizer.step()
            step_scheduler(scheduler, 1.0)
            seen.append(optimizer.param_groups[0]["lr"])
        return seen

    settings = config(sch=name, epochs=40)
    whole = run(*make(), 40)
    first, stored = make(), io.BytesIO()
    run(*first, 13)
    torch.save([part.state_dict() for part in first], stored)
    stored.seek(0)
    second = make()
    for part, state in zip(second, torch.load(stored, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert run(*second, 27) == whole[13:]


# ---- a run that becomes longer, and values that are refused


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ReduceLROnPlateau"])
def test_a_schedule_goes_on_as_that_of_the_longer_run_or_as_it_was(name):
    """After 30 of 30 epochs, 60 are wanted."""
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=1e-3)
    scheduler = build_scheduler(optimizer, config(sch=name, epochs=30), SCHEDULERS)
    for _ in range(30):
        optimizer.step()
        scheduler.step()
    state, rate = scheduler.state_dict(), optimizer.param_groups[0]["lr"]
    longer = config(sch=name, epochs=60)
    scheduler = build_scheduler(optimizer, longer, SCHEDULERS)
    scheduler.load_state_dict(state)
    optimizer.param_groups[0]["lr"] = rate
    said = adopt_length(scheduler, longer)
    found = optimizer.param_groups[0]["lr"]
    if name in ("WP_CosineLR", "CosineWarmup"):
        assert found == pytest.approx(rates(longer)[30]) and name in said and "60" in said and f"{found:.2e}" in said
    else:
        assert found == rate and name in said and "60" not in said


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(opt_args={"betas": "3"}), "--opt AdamW --sch CosineAnnealingLR"),
        (dict(opt_args={"eps": "-1"}), "Invalid epsilon value"),  # PyTorch's own
        (dict(sch_args={"T_max": "x"}), "--opt AdamW --sch CosineAnnealingLR"),
    ],
)
def test_values_that_the_optimizer_or_the_schedule_refuses_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        check_optimization(config(**dict(opt_args={}, sch_args={}) | values), OPTIMIZERS, SCHEDULERS)
