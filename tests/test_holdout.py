"""The protocol "holdout": trained on one part, selected on another, reported on a third."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.prepare_volumes import prepare
from report.records import Record
from tests.datasets.volumes import make_pairs, options
from tests.tiny import TRAINING
from utils.files import read_rows
from utils.runs.named_weights import read_checkpoint
from utils.volume import score_case, summarize_cases

SMALL = TRAINING | dict(dataset="demo", epochs=1, protocol="holdout")


def run_of(main, config):
    main(config)
    (run,) = Path(config.work_dir).iterdir()
    return run, (run / "log.txt").read_text(encoding="utf-8")


def test_isic_reports_on_test_images_alone(tmp_path):
    data = make_demo_isic(tmp_path / "data", size=40, train=6, val=3, test=2)
    config = ISICConfig(**SMALL, data_path=str(data), work_dir=str(tmp_path / "runs"))
    run, log = run_of(train.main, config)
    assert [row["name"] for row in read_rows(run / "test_images.csv")] == ["DEMO_0000009", "DEMO_0000010"]
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["split"] == "test"
    assert "protocol holdout" in log and "protocol paper" not in log

    for kind in ("images", "masks"):
        for path in (data / "val" / kind).glob("DEMO_0000007*"):
            shutil.copy(path, data / "test" / kind)
    with pytest.raises(ValueError, match="--protocol holdout.* 1 .* val and test .*DEMO_0000007"):
        train.main(config)
    shutil.rmtree(data / "test")
    with pytest.raises(FileNotFoundError, match="--protocol holdout.* test"):
        train.main(config)


def test_synapse_selects_on_val_vol_and_reports_test_vol(tmp_path):
    data = make_demo_synapse(tmp_path / "data", size=40, train=2, val=1, test=1, slices=4)
    config = SynapseConfig(**SMALL, data_path=str(data), work_dir=str(tmp_path / "runs"))
    run, log = run_of(train_synapse.main, config)
    assert [row["name"] for row in read_rows(run / "test_volumes.csv")] == ["case0004"]
    assert re.search("protocol holdout.*val_vol.txt", log)
    (row,) = read_rows(run / "metrics.csv")
    assert float(row["dice_transunet"]) >= 0  # of case0003, measured in every epoch
    assert "hd95_transunet" not in row  # but for HD95, which takes longer and selects nothing

    assert "overlap: " not in log
    lists = data / "lists" / "list_Synapse"
    (lists / "test_vol.txt").write_text("case0003\ncase0004\n")
    (lists / "train.txt").write_text("".join(f"case0001_slice00{i}\n" for i in range(4)) + "case0003_slice000\n")
    shutil.copy(data / "train_npz" / "case0001_slice000.npz", data / "train_npz" / "case0003_slice000.npz")
    _, log = run_of(train_synapse.main, replace(config, protocol="paper", work_dir=str(tmp_path / "paper")))
    assert re.search("overlap: 1 .*case0003", log) and "protocol paper" in log
    (lists / "train.txt").write_text("case0001_slice000\ncase0002_slice000\n")

    (lists / "val_vol.txt").write_text("case0002\n")  # its slices are trained on
    with pytest.raises(ValueError, match="--protocol holdout.* 1 .* train.txt and val_vol.txt .*case0002"):
        train_synapse.main(config)
    (lists / "val_vol.txt").unlink()
    with pytest.raises(FileNotFoundError, match="val_vol.txt"):
        train_synapse.main(config)


def test_a_perfect_network_is_selected_before_one_that_finds_what_is_not_there(tmp_path, monkeypatch):
    """8 cases, of which 3 hold nothing: the published Dice of the perfect network is 0.625, with a wrong voxel in each
    of the 3 it is 1; the strict Dice is 1 and 0.625."""
    truth = [np.full((1, 4, 4), case < 5, np.uint8) for case in range(8)]
    wrong = np.zeros((1, 4, 4), np.uint8)
    wrong[0, 0, 0] = 1
    perfect, voxels = (
        summarize_cases([score_case(one if one.any() else empty, one, 2) for one in truth])
        for empty in (np.zeros_like(wrong), wrong)
    )
    assert (perfect["dice_transunet"], voxels["dice_transunet"]) == (0.625, 1)
    assert (perfect["dice_strict"], voxels["dice_strict"]) == (1, 0.625)

    data = make_demo_synapse(tmp_path / "data", size=40, train=2, val=1, test=1, slices=4)
    answers, real = iter([voxels, perfect, voxels]), train_synapse.evaluate_share

    def evaluate(*arguments, **options):
        scores, rows = real(*arguments, **options)
        answer = next(answers, {})
        return scores | {name: answer[name] for name in ("dice_transunet", "dice_strict") if answer}, rows

    monkeypatch.setattr(train_synapse, "evaluate_share", evaluate)
    config = SynapseConfig(**SMALL | dict(epochs=3), data_path=str(data), work_dir=str(tmp_path / "runs"))
    run, log = run_of(train_synapse.main, config)
    assert "best epoch: 2, with dice_strict 1.0000" in log and "dice_strict 1, dice_transunet 0.625" in log
    assert Record(run).best_epoch == 2 and Record(run).selected_by == "dice_strict"
    assert read_checkpoint(run / "checkpoints" / "best.pth").about["epoch"] == 2


def test_a_resumed_run_keeps_to_the_score_that_it_was_begun_with(tmp_path):
    data = make_demo_synapse(tmp_path / "data", size=40, train=2, val=1, test=1, slices=4)
    config = SynapseConfig(**SMALL, data_path=str(data), work_dir=str(tmp_path / "runs"))
    run, _ = run_of(train_synapse.main, config)
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    assert facts.pop("selected_by") == "dice_strict"
    (run / "facts.json").write_text(json.dumps(facts))  # as before the fact was noted
    train_synapse.main(resolve(SynapseConfig, ["--resume", str(run), "--epochs", "2"]))
    assert Record(run).selected_by == "dice_transunet"


@pytest.mark.slow
def test_all_folds_of_volumes_end_with_a_table_and_every_case_is_reported_once(tmp_path):
    prepare(options(make_pairs(tmp_path), split=(100, 0, 0)))
    values = TRAINING | dict(
        dataset="own", data_path=str(tmp_path / "out"), folds=2, fold="all", select="last", epochs=1
    )
    config = resolve(SynapseConfig(**values, work_dir=str(tmp_path / "runs"), slice_fit="pad", context=1))
    means = train_synapse.main(config)
    (path,) = tmp_path.glob("runs/cross_validation_*.csv")
    rows = read_rows(path)
    assert [row["fold"] for row in rows] == ["0", "1", "mean", "deviation"]
    assert means["dice_transunet"] == float(rows[2]["dice_transunet"])
    cases = [row["name"] for run in rows[:2] for row in read_rows(tmp_path / "runs" / run["run"] / "test_volumes.csv")]
    assert sorted(cases) == ["pat1_a", "pat1_b", "pat2_a", "pat3_a"]
