"""Which runs in a folder are runs of a config, and which of them can be resumed."""

import json

import pytest

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from report.records import Record
from report.run_index import can_be_resumed, find_runs, latest_run, same_run
from tests.report.made_runs import make_run
from utils.files import write_rows

CONFIG = ISICConfig(dataset="isic17", load_ckpt_path="none")


def remove_fields(run, *names):
    values = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (run / "config.json").write_text(json.dumps({name: value for name, value in values.items() if name not in names}))
    return Record(run)


def test_a_run_is_known_by_the_values_that_can_change_a_score(tmp_path):
    neutral = dict(device="cuda", work_dir="elsewhere", val_interval=1, recipe="stable", debug=True)
    assert same_run(Record(make_run(tmp_path / "same", [0.5], **neutral)), CONFIG)
    for number, value in enumerate((dict(seed=1), dict(loss_weight=[1, 2]), dict(test_only="best.pth"))):
        assert not same_run(Record(make_run(tmp_path / str(number), [0.5], **value)), CONFIG)
    assert not same_run(Record(make_run(tmp_path / "same2", [0.5])), SynapseConfig(load_ckpt_path="none"))


def test_what_an_older_run_lacks_has_the_published_value(tmp_path):
    run = remove_fields(make_run(tmp_path / "run", [0.5]), "recipe", "threshold", "loss", "checkpoint_interval")
    assert same_run(run, CONFIG) and can_be_resumed(run, CONFIG)
    assert not same_run(run, ISICConfig(dataset="isic17", load_ckpt_path="none", threshold=0.4))


@pytest.mark.parametrize("opt, rates", [("AdamW", (1e-3, 1e-2)), ("SGD", (0.01, 0.05))])
def test_a_rate_of_none_is_that_of_the_optimizers_row(opt, rates, tmp_path):
    run = Record(make_run(tmp_path / "run", [0.5], opt=opt, lr=None, weight_decay=None))
    explicit = dict(zip(("lr", "weight_decay"), rates, strict=True))
    assert {name: run.values[name] for name in explicit} == explicit
    for values in (explicit, dict.fromkeys(explicit)):
        assert same_run(run, ISICConfig(dataset="isic17", load_ckpt_path="none", opt=opt, **values))
    assert not same_run(run, ISICConfig(dataset="isic17", load_ckpt_path="none", opt=opt, lr=0.02))


def test_a_run_with_an_unknown_field_is_not_resumed(tmp_path):
    assert not can_be_resumed(Record(make_run(tmp_path / "run", [0.5], unknown=1)), CONFIG)


def test_the_newest_finished_run_counts_else_the_newest(tmp_path, caplog):
    first, second, third = (make_run(tmp_path / name, [0.5]) for name in ("first", "second", "third"))
    for run in (first, third):
        (run / "metrics.json").unlink()
    make_run(tmp_path / "damaged", [0.5], epochs="ten")
    runs = find_runs(tmp_path)
    assert len(runs) == 3 and str(tmp_path / "damaged") in caplog.text
    assert latest_run(runs, CONFIG).folder == second
    (second / "metrics.json").unlink()
    assert latest_run(find_runs(tmp_path), CONFIG).folder == third
    assert latest_run(runs, ISICConfig(dataset="isic18")) is None


def test_the_selected_epoch_follows_the_protocol(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    values = dict(dataset="synapse", network="vmunet", load_ckpt_path="none", seed=1, epochs=2, test_only=None)
    values |= {"volume_resize": "labels"}
    first, second = {"train_loss": 0.5, "dice_transunet": 0.7}, {"train_loss": 0.4, "dice_transunet": 0.6}
    write_rows(run / "metrics.csv", [{"epoch": 1, **first}, {"epoch": 2, **second}])
    for protocol, epoch in (("paper", 2), ("holdout", 1)):
        (run / "config.json").write_text(json.dumps(values | {"protocol": protocol}))
        assert Record(run).best_epoch == epoch
    write_rows(
        run / "metrics.csv", [{"epoch": 1, **first, "dice_strict": 0.2}, {"epoch": 2, **second, "dice_strict": 0.3}]
    )
    assert Record(run).best_epoch == 1  # of a run that did not note it
    (run / "facts.json").write_text('{"selected_by": "dice_strict"}')
    assert Record(run).best_epoch == 2
