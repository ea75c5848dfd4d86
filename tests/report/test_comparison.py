"""Comparison of runs: what is a group, which tests are made, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import wilcoxon

from configs.config_setting_synapse import SynapseConfig
from datasets.lesions import LISTED
from report import compare_page as compare
from report.__main__ import main
from report.records import Record, means_of_units
from tests.report.html_page import HOSTILE, Page, assert_self_contained
from tests.report.made_runs import make_run
from utils.files import read_rows, write_rows
from utils.metrics import class_counts_per_image, counts_of_image, scores_of_image, summarize

PAIRS = ("A and B", "A and C", "B and C")


def compared(runs):
    return compare.comparison_contents([Record(Path(run)) for run in runs])


def rows(table):
    """The rows of a table as {heading: cell}."""
    return [{heading: value for heading, value, *_ in row["cells"]} for row in table["rows"]]


def test_holm_by_hand():
    assert compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert compare.holm([0.9, 0.8]) == [1, 1]
    assert compare.holm([]) == []


def test_paired_test_is_scipys_over_the_common_names():
    some = {"a": 0.9, "b": 0.5, "c": 0.8, "d": 0.7, "e": 0.6, "f": 0.35}
    other = {"f": 0.3, "e": 0.5, "d": 0.7, "c": 0.5, "b": 0.7, "a": 0.5}
    result = compare.paired_test(some, other)
    assert (result["pairs"], result["unequal"]) == (6, 5)
    assert result["mean"] == pytest.approx((0.4 - 0.2 + 0.3 + 0 + 0.1 + 0.05) / 6)
    assert result["median"] == pytest.approx(0.075)
    assert result["p"] == wilcoxon([0.4, -0.2, 0.3, 0.1, 0.05]).pvalue
    assert result["low"] < result["mean"] < result["high"]


def test_no_test_where_no_pair_differs_and_no_interval_of_equal_differences():
    same = compare.paired_test({"a": 0.5, "b": 0.25}, {"a": 0.5, "b": 0.25})
    assert same["p"] is None and same["mean"] == 0 and same["low"] is None
    shifted = compare.paired_test({"a": 0.75, "b": 0.5}, {"a": 0.5, "b": 0.25})
    assert shifted["mean"] == 0.25 and shifted["low"] is None and 0 < shifted["p"] <= 1


def test_runs_that_differ_in_the_seed_are_a_group_with_a_deviation(tmp_path):
    runs = [
        make_run(tmp_path / "a42", [0.8, 0.6, 0.7], seed=42, num_workers=4, device="cuda"),
        make_run(tmp_path / "b42", [0.5, 0.5, 0.4], seed=42, network="unet"),
        make_run(tmp_path / "a43", [0.9, 0.7, 0.8], seed=43),
    ]
    page = compared(runs)
    one, other = rows(page["groups"])
    assert (one[""], one["network"], one["seeds"]) == ("A", "vmunet", "42, 43")
    assert (other[""], other["network"], other["seeds"]) == ("B", "unet", "42")
    deviation = 100 * math.sqrt(0.05**2 + 0.05**2)
    assert one["DSC %"] == f"75.00 ± {deviation:.2f}"
    assert other["DSC %"] == "46.67"
    assert [list(row.values()) for row in rows(page["differing"])] == [["network", "vmunet", "unet"]]
    (pair,) = page["pairs"]
    assert pair["pairs"] == 3 and pair["mean"] == pytest.approx(0.75 - 1.4 / 3) and pair["corrected"] == pair["p"]
    assert len(page["notes"]) == 1  # B has no standard deviation


def test_edited_rows_of_the_optimizer_make_another_group(tmp_path):
    def optimization(decay):
        adamw = {"name": "AdamW", "lr": 1e-3, "weight_decay": decay}
        return {"optimization": {"optimizer": adamw, "scheduler": {"name": "CosineAnnealingLR", "T_max": 50}}}

    rates = dict(lr=None, weight_decay=None)  # those of the row, as configs had them at first
    runs = [
        make_run(tmp_path / "old", [0.8, 0.6], seed=1, **rates),  # from before facts were kept
        make_run(tmp_path / "new", [0.8, 0.6], seed=2, **rates, facts=optimization(1e-2)),
        make_run(tmp_path / "edited", [0.8, 0.6], seed=3, **rates, facts=optimization(5e-2)),
        make_run(tmp_path / "explicit", [0.8, 0.6], seed=4, lr=1e-3, weight_decay=1e-2),
    ]
    page = compared(runs)
    assert [row["seeds"] for row in rows(page["groups"])] == ["1, 2, 4", "3"]
    assert [list(row.values()) for row in rows(page["differing"])] == [["weight_decay", "0.01", "0.05"]]


def test_groups_name_their_recipe_and_the_runs_that_lost_what_they_had_learned(tmp_path):
    lost = {"lost": "lost what it had learned: from epoch 98 on"}
    runs = [
        make_run(tmp_path / "a", [0.8, 0.6], seed=1, facts=lost),
        make_run(tmp_path / "b", [0.8, 0.6], seed=1, recipe="stable", sch="CosineWarmup"),
    ]
    page = compared(runs)
    assert [row["recipe"] for row in rows(page["groups"])] == ["published", "stable"]
    assert page["notes"][0] == "A, seed 1: lost what it had learned: from epoch 98 on"


def test_other_test_images_are_not_paired(tmp_path):
    one = make_run(tmp_path / "one", [0.8, 0.6, 0.7])
    fewer = make_run(tmp_path / "fewer", [0.8, 0.6], lr=0.1)
    others = make_run(tmp_path / "others", [0.8, 0.6, 0.7], truth=2000, lr=0.2)
    by_name, by_mask, _ = compared([one, fewer, others])["pairs"]
    assert by_name["reason"].endswith(": image2") and by_mask["reason"].endswith(": image0, image1, image2")
    assert "p" not in by_name and "p" not in by_mask
    seed = make_run(tmp_path / "seed", [0.8, 0.6], seed=43)
    assert [row["seeds"] for row in rows(compared([one, seed])["groups"])] == ["42", "43"]  # no common group either
    seed = make_run(tmp_path / "masks", [0.8, 0.6, 0.7], truth=2000, seed=43)
    with pytest.raises(ValueError, match="^masks and one .* 3 of them: image0, image1, image2$"):
        compared([one, seed])


def test_only_groups_that_selected_on_the_reported_images_are_called_flattered(tmp_path):
    differing = [dict(), dict(protocol="holdout"), dict(select="last"), dict(test_only="best.pth")]
    runs = [Record(make_run(tmp_path / str(i), [0.5, 0.6], **values)) for i, values in enumerate(differing)]
    groups = {str(values): compare.group_runs([run]) for values, run in zip(differing, runs, strict=True)}
    assert [compare.selected_on_reported(group) for (group,) in groups.values()] == [True, False, False, False]
    assert any(line.startswith("A: the reported images selected") for line in compare.notes(compare.group_runs(runs)))
    assert not any("reported images" in line for line in compare.notes(compare.group_runs(runs[1:])))


def test_runs_of_other_code_are_not_taken_for_seeds_of_one_group(tmp_path):
    """A patch of the network leaves no trace in config.json."""
    scan, none = ({"network": f"vmunet: {size} M parameters; at 256x256 13.62 GFLOP"} for size in (27.43, 22.04))
    runs = [
        make_run(tmp_path / "scan", [0.8, 0.6], facts=scan),
        make_run(tmp_path / "none", [0.7, 0.6], facts=none, seed=43),
        make_run(tmp_path / "again", [0.8, 0.6], facts=scan | {"network": scan["network"] + " otherwise counted"}),
        make_run(tmp_path / "changed", [0.8, 0.5], facts=scan),
    ]
    page = compared(runs)
    assert [(row[""], row["run"]) for row in rows(page["runs"])] == [
        ("A", "scan"), ("A", "again"), ("B", "none"), ("C", "changed"),
    ]  # fmt: skip
    assert [note[:35] for note in page["notes"]] == [f"{pair} have the same configuration" for pair in PAIRS] + [
        "A group of one seed has no standard"
    ]


def make_volumes(folder, dice, **config):
    """A run on volumes {case: Dice of its one structure}, of which two belong to each patient."""
    run = make_run(folder, [0.5])
    (run / "test_images.csv").unlink()
    values = json.loads(json.dumps(vars(SynapseConfig(dataset="acdc", load_ckpt_path="none", num_classes=2))))
    (run / "config.json").write_text(json.dumps(values | config))
    names = ("dice_transunet", "hd95_transunet", "dice_strict", "hd95_strict")
    scores = dict.fromkeys(names, 0.5)
    (run / "metrics.json").write_text(json.dumps(scores | {"class_names": ["LV"], "classes": [scores]}))
    table = [
        {"name": case, "patient": case[:2], **{f"{name} LV": value for name in names}} for case, value in dice.items()
    ]
    write_rows(run / "test_volumes.csv", table)
    return run


def test_the_two_frames_of_a_patient_are_one_unit(tmp_path):
    """Twice as many pairs would make a difference look surer than it is."""
    dice = {f"p{i}_{frame}": 0.5 + i / 20 for i in range(6) for frame in "ab"}
    better = {case: value + 0.01 * int(case[1]) + (0.02 if case[-1] == "a" else 0) for case, value in dice.items()}
    runs = [make_volumes(tmp_path / "a", better), make_volumes(tmp_path / "b", dice, network="unet")]
    (pair,) = compared(runs)["pairs"]
    differences = [0.01 * i + 0.01 for i in range(6)]
    assert pair["pairs"] == 6 and pair["mean"] == pytest.approx(0.035)
    assert pair["p"] == pytest.approx(wilcoxon(differences).pvalue)
    assert Record(runs[0]).units["p0_a"] == Record(runs[0]).units["p0_b"] == "p0"


def test_photographs_of_one_lesion_are_one_unit(tmp_path):
    one, other = (make_run(tmp_path / network, [0.8, 0.6, 0.4], network=network) for network in ("vmunet", "unet"))
    assert compared([one, other])["unit"] == "images"  # of which none is known to share a lesion
    first, second = next((row["first"], row["second"]) for row in read_rows(LISTED))
    for run in (one, other):
        table = read_rows(run / "test_images.csv")
        names = (first, second, "image2")
        write_rows(run / "test_images.csv", [row | {"name": name} for row, name in zip(table, names, strict=True)])
    page = compared([one, other])
    assert page["pairs"][0]["pairs"] == 2 and page["unit"] == "lesions"
    run = Record(one)
    assert sorted(means_of_units(run.dice(), run.units).values()) == pytest.approx([0.4, 0.7])


def make_folds(folder, dice, seed=42, **config):
    """Runs of the folds of one cross-validation; {fold: Dice of its two images}."""
    runs = []
    for fold, values in dice.items():
        run = make_run(folder / f"{seed}_fold{fold}", values, seed=seed, folds=3, fold=fold, **config)
        table = read_rows(run / "test_images.csv")
        write_rows(run / "test_images.csv", [row | {"name": f"{fold}_{row['name']}"} for row in table])
        runs.append(run)
    return runs


def test_folds_are_one_experiment_with_a_deviation_over_the_folds(tmp_path):
    runs = make_folds(tmp_path / "a", {0: [0.8, 0.6], 1: [0.9, 0.7], 2: [0.6, 0.4]})
    page = compared(runs)
    (row,) = rows(page["groups"])
    assert (row["seeds"], row["folds"], row["images"]) == ("42", "0, 1, 2 of 0..2", 6)
    assert row["DSC %"] == "66.67 ± 15.28"  # of 70, 80 and 50
    assert [row["fold"] for row in rows(page["runs"])] == [0, 1, 2]
    assert page["differing"]["rows"] == [] and page["notes"] == []
    group = compare.group_runs([Record(run) for run in runs])[0]
    assert len(group.dice()) == 6


def test_seeds_of_a_fold_are_averaged_before_the_deviation_over_the_folds(tmp_path):
    runs = make_folds(tmp_path / "a", {0: [0.8, 0.8], 1: [0.6, 0.6]}, seed=42)
    runs += make_folds(tmp_path / "b", {0: [0.6, 0.6], 1: [0.4, 0.4]}, seed=43)
    page = compared(runs)
    (row,) = rows(page["groups"])
    assert row["seeds"] == "42, 43" and row["DSC %"] == "60.00 ± 14.14"  # of 70 and 50
    assert any("A: no run of fold 2 is among these" in note for note in page["notes"])


def test_two_cross_validations_are_paired_over_the_images_of_all_folds(tmp_path):
    dice = {0: [0.8, 0.6], 1: [0.9, 0.7], 2: [0.6, 0.4]}
    lower = {fold: [value - 0.1 - fold / 100 for value in values] for fold, values in dice.items()}
    runs = make_folds(tmp_path / "a", dice) + make_folds(tmp_path / "b", lower, network="unet")
    (pair,) = compared(runs)["pairs"]
    assert pair["pairs"] == 6 and pair["mean"] == pytest.approx(0.11) and pair["p"] < 0.05


def test_another_deal_of_the_images_is_another_experiment(tmp_path):
    runs = make_folds(tmp_path / "a", {0: [0.8, 0.6]}) + make_folds(tmp_path / "b", {1: [0.8, 0.6]}, fold_seed=7)
    assert len(rows(compared(runs)["groups"])) == 2


# ---- the command


def test_a_pattern_passes_over_what_is_unfinished_or_no_run_with_a_line_each(tmp_path, capsys):
    done = [make_run(tmp_path / name, [0.8, 0.6], network=name) for name in ("unet", "vmunet")]
    unfinished = make_run(tmp_path / "stopped", [0.5])
    (unfinished / "metrics.json").unlink()
    (tmp_path / "table.md").write_text("")
    main([str(tmp_path / "*"), "-o", str(tmp_path / "compare.html")])
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "compare.html") and "2 runs in 2 groups" in Page(out.strip()).text
    one, other = err.splitlines()
    assert f" {unfinished}: " in one and "2 of 300 epochs" in one
    assert f" {tmp_path / 'table.md'}: " in other and "config.json" in other
    main([str(unfinished), *map(str, done), "-o", str(tmp_path / "again.html")])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_run_among_several_is_named_and_the_others_are_done(tmp_path, capsys):
    runs = [make_run(tmp_path / name, [0.8, 0.6], network=name) for name in ("a", "b", "damaged")]
    (runs[2] / "metrics.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        main([*map(str, runs), "-o", str(tmp_path / "compare.html")])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out.strip() == str(tmp_path / "compare.html")
    assert str(runs[2] / "metrics.json") in err and err.count("\n") == 1


def test_without_a_finished_run_the_command_says_so(tmp_path, capsys):
    for name in ("a", "b"):
        (make_run(tmp_path / name, [0.5]) / "metrics.json").unlink()
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "*")])
    assert end.value.code == 2 and f"error: {tmp_path / '*'}: " in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path, capsys):
    one, two = (make_run(tmp_path / name, [0.8, 0.6], network=name) for name in ("vmunet", "unet"))
    with pytest.raises(ValueError, match="^found 1 "):
        compared([one, Path(one, "..", "vmunet")])
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    values = json.loads((one / "config.json").read_text(encoding="utf-8")) | {"volume_resize": "labels"}
    (volumes / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="^volumes .* vmunet "):
        compared([one, volumes])
    with pytest.raises(SystemExit):
        main([str(one), str(two), "-o", str(one / "metrics.csv")])
    assert f"-o {one / 'metrics.csv'}: " in capsys.readouterr().err
    assert (one / "metrics.csv").read_text(encoding="utf-8").startswith("epoch")


def test_the_page_is_self_contained_and_escaped(tmp_path, capsys):
    name = HOSTILE.replace("/", "|")
    runs = [
        make_run(tmp_path / name, [0.8, 0.6, 0.9], seed=1),
        make_run(tmp_path / "b", [0.5, 0.6, 0.7], network=HOSTILE),
    ]
    main([*map(str, runs), "-o", str(tmp_path / "compare.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "compare.html")
    page = Page(tmp_path / "compare.html")
    assert_self_contained(page)
    assert "2 runs in 2 groups" in page.text and "A − B" in page.text and page.text.count("<script>") == 3
    assert page.tags.count("svg") == 4  # boxes, two losses, DSC


def make_run_of_counts(folder, images, score, **config):
    """A run whose images have these counts and scores, as train.py stored them."""
    run = make_run(folder, score, **config)
    names = ("tp", "fp", "fn", "tn")
    rows = [
        {"name": f"image{i}", "dsc": dsc, **dict(zip(names, counts, strict=True))}
        for i, (counts, dsc) in enumerate(zip(images, score, strict=True))
    ]
    write_rows(run / "test_images.csv", rows)
    return run


def test_a_right_empty_mask_counts_the_same_in_earlier_runs_and_today(tmp_path):
    images = [[0, 0, 0, 9], [2, 0, 0, 7], [0, 0, 0, 9]]
    before = make_run_of_counts(tmp_path / "before", images, [0.0, 1.0, 0.0], lr=0.1)
    today = make_run_of_counts(tmp_path / "today", images, [1.0, 1.0, 1.0])
    page = compared([before, today])
    assert [row["Dice, mean of images %"] for row in rows(page["groups"])] == ["100.00", "100.00"]
    (pair,) = page["pairs"]
    assert pair["mean"] == 0 and pair["p"] is None
    assert Record(before).dice() == Record(today).dice() == {"image0": 1, "image1": 1, "image2": 1}


def test_the_dice_of_the_pairs_are_those_of_the_mean_over_images(tmp_path):
    """One definition for the scores of a run and for the paired test, with several classes too."""
    counts = class_counts_per_image(
        torch.tensor([[0, 0, 0], [0, 1, 2], [0, 0, 1]]), torch.tensor([[0, 0, 0], [0, 1, 1], [0, 2, 1]]), 3
    )
    run = make_run(tmp_path / "run", [0.5], num_classes=3)
    table = [{"name": str(i), **scores_of_image(one), **counts_of_image(one)} for i, one in enumerate(counts)]
    write_rows(run / "test_images.csv", table)
    dice = Record(run).dice()
    assert sum(dice.values()) / 3 == pytest.approx(summarize(counts)["dsc_per_image"])
    assert dice == pytest.approx({"0": 1, "1": (2 / 3 + 0) / 2, "2": (1 + 0) / 2})
