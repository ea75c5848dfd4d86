"""Reports: numbers out of the run's files, every name escaped, nothing outside the page, never the end of a run."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import report
import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.optim import rows_of
from configs.options import MachineOptions, RunOptions, fields_of, published_values
from configs.resolve import config_from_values, resolve
from datasets.demo import make_demo_isic, make_demo_synapse
from inference.trained import describe
from report.__main__ import main
from report.page import page_bytes
from report.paper import PUBLISHED_ROWS
from report.records import Record, mean_dice
from report.run_page import run_contents, write_report
from report.sections import extremes
from tests.report.html_page import HOSTILE, Page, assert_self_contained
from tests.report.made_runs import make_run
from tests.tiny import ROOT, TRAINING
from utils.files import read_rows, write_rows
from utils.optimizers import optimization_values

COLOURS = ("#ff0000", "#0000ff")  # of the palette of the masks
SMALL = TRAINING | dict(epochs=2, val_interval=1)


@pytest.fixture(scope="module")
def isic_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isic")
    data = make_demo_isic(folder / "data", size=40, train=8, val=10, test=1)
    train.main(ISICConfig(**SMALL, dataset="demo", data_path=str(data), work_dir=str(folder / "runs")))
    return next((folder / "runs").iterdir())


@pytest.fixture(scope="module")
def synapse_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synapse")
    data = make_demo_synapse(folder / "data", size=40, train=1, val=1, test=3, slices=5)
    train_synapse.main(SynapseConfig(**SMALL, dataset="demo", data_path=str(data), work_dir=str(folder / "runs")))
    return next((folder / "runs").iterdir())


def copy(run, tmp_path, **config):
    """A copy of a run with other values in its config.json."""
    target = tmp_path / "copy"
    shutil.copytree(run, target)
    values = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(values | config))
    return target


def test_a_run_ends_with_a_page_that_has_its_numbers(isic_run):
    page = Page(isic_run / "report.html")
    assert_self_contained(page)
    scores = json.loads((isic_run / "metrics.json").read_text(encoding="utf-8"))
    for name in ("miou", "dsc", "accuracy", "dsc_per_image"):
        assert f"{100 * scores[name]:.2f}" in page.text
    assert "Selected on the reported set" in page.text and "Synthetic data" in page.text
    assert "image_size is 32, published 256" in page.text and "batch_size is 4, published 32" in page.text
    assert "initial weights none, recipe published, seed 42" in page.text
    images = read_rows(isic_run / "test_images.csv")
    counts = {name: sum(int(row[name]) for row in images) for name in ("tp", "fp", "fn", "tn")}
    assert sum(counts.values()) == 10 * 32 * 32
    assert scores["dsc"] == pytest.approx(2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"]))
    assert all(f"{n:,} (" in page.text for n in counts.values())
    assert page.tags.count("img") == 9 and page.tags.count("svg") == 5  # loss, rate, mIoU, DSC; distribution
    best = max(images, key=lambda row: float(row["dsc"]))
    assert f"{best['name']} Dice {float(best['dsc']):.3f}" in page.text
    row = read_rows(isic_run / "metrics.csv")[0]
    assert {"seconds", "images_per_second", "waiting_share"} <= set(row)
    assert "scan backend cpu" in page.text


def test_own_data_stands_beside_no_paper(isic_run, tmp_path):
    run = copy(isic_run, tmp_path, dataset="own")
    page = Page(write_report(Record(run)))
    assert "Not comparable" not in page.text and "the paper has no data set" not in page.text
    assert "image_size 32 256" in page.text  # what differs from the published values is still told


def test_an_organ_that_was_missed_is_called_so(synapse_run, tmp_path):
    run = copy(synapse_run, tmp_path)
    rows = read_rows(run / "test_volumes.csv")
    for number, row in enumerate(rows):
        for score, value in (("dice_transunet", 0), ("hd95_transunet", 0), ("dice_strict", 0), ("hd95_strict", 60)):
            row[f"{score} liver"] = value
            row[f"{score} spleen"] = value if number == 0 else 0.5
    write_rows(run / "test_volumes.csv", rows)
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    scores["classes"][4] |= {"dice_transunet": 0, "hd95_transunet": 0}
    (run / "metrics.json").write_text(json.dumps(scores))
    page = Page(write_report(Record(run)))
    assert "liver 0.00 0.00 missed" in page.text and "0.50, missed in 1 of 3" in page.text
    assert f"HD95, voxels where found (published protocol: {scores['hd95_transunet']:.2f})" in page.text


def test_a_fold_says_that_it_is_a_part_of_one_experiment(isic_run, tmp_path):
    page = Page(write_report(Record(copy(isic_run, tmp_path, folds=5, fold=2))))
    assert "Fold 2 of 0..4 of a cross-validation, which is one experiment" in page.text


def test_a_narrow_page_lets_tables_move_in_their_own_box(isic_run):
    text = (isic_run / "report.html").read_text(encoding="utf-8")
    style = text[: text.index("</style>")]
    assert 'name="viewport" content="width=device-width' in style
    assert ".scroll { overflow-x: auto; max-width: 100%;" in style and "@media (max-width: 600px)" in style
    assert text.count("<table") == text.count('<div class="scroll"><table')
    assert not re.search(r"min-width: \d{3,}px|[{;] width: \d+px", style)


def test_volumes_have_organs_cases_and_slices(synapse_run):
    page = Page(synapse_run / "report.html")
    assert_self_contained(page)
    scores = json.loads((synapse_run / "metrics.json").read_text(encoding="utf-8"))
    assert f"mean {100 * scores['dice_transunet']:.2f} {scores['hd95_transunet']:.2f}" in page.text
    liver = scores["classes"][4]
    assert f"liver {100 * liver['dice_transunet']:.2f} {liver['hd95_transunet']:.2f}" in page.text
    assert "lowest training loss, as published" in page.text
    assert page.tags.count("img") == 3 * 2  # worst, median, best case: three planes, and the slices
    text = (synapse_run / "report.html").read_text(encoding="utf-8")
    dice = Record(synapse_run).dice()
    worst_first = sorted(dice, key=dice.__getitem__)
    assert re.findall(r'href="predictions/(\w+)_slices.png"', text) == worst_first
    assert re.findall(r"<figcaption><b>(\w+)", text) == [name for name in worst_first for _ in range(2)]
    assert "volumes of 3 patients" in page.text and "strict HD95 mm" in page.text  # the demo knows its spacing


def test_the_papers_numbers_stand_beside_those_of_their_row(isic_run, synapse_run, tmp_path):
    small = "pretrained_weights/vmamba_small_e238_ema.pth"
    run = copy(isic_run, tmp_path / "a", dataset="isic17", load_ckpt_path=small)
    page = Page(write_report(Record(run)))
    assert "80.23" in page.text and "80.23 †" not in page.text  # confirmed by a second source
    assert "89.03" in page.text and "89.03 †" not in page.text and "96.29 †" in page.text
    assert "† from memory of the paper's tables, without a second source" in page.text
    assert "tested on 10 images or volumes, published 650" in page.text
    run = copy(isic_run, tmp_path / "b", dataset="isic18", load_ckpt_path=small)
    page = Page(write_report(Record(run)))
    assert "81.35" in page.text and "81.35 †" not in page.text and "94.91 †" in page.text
    run = copy(isic_run, tmp_path / "c", dataset="isic17")
    page = Page(write_report(Record(run)))
    assert "77.59" in page.text and "†" not in page.text
    run = copy(isic_run, tmp_path / "d", dataset="isic17", load_ckpt_path="my_weights.pth")
    page = Page(write_report(Record(run)))
    assert "†" not in page.text and "77.59" not in page.text and "80.23" not in page.text
    run = copy(synapse_run, tmp_path / "e", dataset="synapse", load_ckpt_path="vssmsmall_dp03_ckpt_epoch_238.pth")
    page = Page(write_report(Record(run)))
    assert "81.08" in page.text and "94.17" in page.text and "19.21" in page.text and "†" not in page.text


def test_no_difference_to_the_paper_stands_without_its_reasons(isic_run, synapse_run, tmp_path):
    sentence = "* Not comparable with the paper as it stands:"
    run = copy(isic_run, tmp_path / "a", dataset="isic17")
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    miou, sensitivity, of_images = (100 * scores[s] for s in ("miou", "sensitivity", "sensitivity_per_image"))
    page = Page(write_report(Record(run)))
    assert f"mIoU {miou:.2f} 77.59 {miou - 77.59:+.2f} *" in page.text
    table, reasons = page.text.split(sentence)
    assert table.endswith(f"sensitivity {sensitivity:.2f} {of_images:.2f} ")  # its last row
    assert reasons.startswith(" " + " ".join(Record(run).differences))
    run = copy(synapse_run, tmp_path / "b", dataset="synapse", load_ckpt_path="vssmsmall_dp03_ckpt_epoch_238.pth")
    liver = 100 * json.loads((run / "metrics.json").read_text(encoding="utf-8"))["classes"][4]["dice_transunet"]
    page = Page(write_report(Record(run)))
    assert f"liver {liver:.2f} 94.17 {liver - 94.17:+.2f} *" in page.text and sentence in page.text


def test_a_run_under_the_published_values_has_differences_without_a_mark(tmp_path):
    run = make_run(tmp_path / "run", [0.8] * 650)
    scores = dict.fromkeys(("miou", "dsc", "accuracy", "specificity", "sensitivity"), 0.8)
    scores |= {f"{name}_per_image": 0.8 for name in scores}
    (run / "metrics.json").write_text(json.dumps(scores))
    write_rows(run / "metrics.csv", [row | {"seconds": 1.0} for row in read_rows(run / "metrics.csv")])
    page = Page(write_report(Record(run)))
    assert "mIoU 80.00 77.59 +2.41 80.00" in page.text
    assert "*" not in page.text and "Not comparable" not in page.text


def test_facts_stand_in_the_report_and_old_runs_do_without(isic_run, tmp_path):
    facts = json.loads((isic_run / "facts.json").read_text(encoding="utf-8"))
    assert facts["recipe"] == "recipe published" and facts["scan"] == "cpu" and "overlap" not in facts
    assert facts["network"].startswith("vmunet: 0.13 M") and facts["device"].startswith("device cpu (")
    log = (isic_run / "log.txt").read_text(encoding="utf-8")
    assert facts["network"] in log and facts["device"] in log
    page = Page(isic_run / "report.html")
    assert f"network {facts['network']} machine {facts['device']} scan backend cpu" in page.text

    run = copy(isic_run, tmp_path)
    (run / "facts.json").unlink()
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config.pop("recipe")
    (run / "config.json").write_text(json.dumps(config))
    page = Page(write_report(Record(run)))
    assert "machine device" not in page.text and "memory Configuration" not in page.text
    assert facts["network"] in page.text  # in the log, which is shown and never parsed
    assert "initial weights none, seed 42" in page.text


@pytest.mark.slow
def test_cases_that_are_trained_on_and_tested_are_noted(tmp_path):
    data = make_demo_synapse(tmp_path / "data", size=40, train=1, val=1, test=1, slices=5)
    (trained,) = {name.split("_")[0] for name in (data / "lists/list_Synapse/train.txt").read_text().split()}
    tested = (data / "lists/list_Synapse/test_vol.txt").read_text().strip()
    (data / "test_vol_h5" / f"{tested}.npy.h5").rename(data / "test_vol_h5" / f"{trained}.npy.h5")
    (data / "lists/list_Synapse/test_vol.txt").write_text(trained)
    changes = dict(dataset="demo", data_path=str(data), work_dir=str(tmp_path / "runs"), epochs=1)
    train_synapse.main(SynapseConfig(**SMALL | changes))
    (run,) = (tmp_path / "runs").iterdir()
    overlap = f"overlap: 1 of the tested cases are also trained on: {trained}"
    assert json.loads((run / "facts.json").read_text(encoding="utf-8"))["overlap"] == overlap
    assert Page(run / "report.html").text.count(overlap) == 2  # the note; the log


def test_edited_rows_of_the_optimizer_are_differences(isic_run, synapse_run, tmp_path):
    for number, run in enumerate((isic_run, synapse_run)):
        facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
        assert not Record(run).row_changes
        facts["optimization"]["optimizer"] |= {"weight_decay": 0.05, "betas": [0.8, 0.999]}
        facts["optimization"]["scheduler"]["T_max"] = 300
        run = copy(run, tmp_path / str(number), lr=None, weight_decay=None)
        (run / "facts.json").write_text(json.dumps(facts))
        page = Page(write_report(Record(run)))
        published = (50, 100)[number]
        assert f"T_max of CosineAnnealingLR is 300, published {published}" in page.text
        assert "betas of AdamW is 0.8 0.999, published 0.9 0.999" in page.text
        assert "weight_decay 0.05 0.01" in page.text  # in the table of changed values


def test_what_the_config_says_itself_is_not_said_again(isic_run, tmp_path):
    facts = json.loads((isic_run / "facts.json").read_text(encoding="utf-8"))
    facts["optimization"]["optimizer"] |= {"weight_decay": 0.05, "eps": 1e-6}
    facts["optimization"]["scheduler"] = {"name": "CosineWarmup", "warm_up_epochs": 10, "eta_min": 1e-5}
    run = copy(isic_run, tmp_path, weight_decay=0.05, opt_args={"eps": "1e-6"}, sch="CosineWarmup")
    (run / "facts.json").write_text(json.dumps(facts))
    assert not Record(run).row_changes
    assert "weight_decay is 0.05, published 0.01" in Record(run).differences


def test_a_run_that_lost_what_it_had_learned_says_so_first(isic_run, tmp_path):
    run = copy(isic_run, tmp_path)
    lost = "lost what it had learned: from epoch 98 on the score is below half of the best"
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    (run / "facts.json").write_text(json.dumps(facts | {"lost": lost}))
    page = Page(write_report(Record(run)))
    assert_self_contained(page)
    assert page.text.index(f"This run {lost}.") < page.text.index("Selected on the reported set")


def test_a_run_that_was_ended_when_lost_is_told_by_its_epochs(isic_run, tmp_path):
    ended = "ended after epoch 2 of 300 (--stop-when-lost)"
    run = copy(isic_run, tmp_path / "a", epochs=300, stop_when_lost=True)
    assert Record(run).differences[-1] == ended
    for number, changes in enumerate(({"epochs": 2, "stop_when_lost": True}, {"epochs": 300})):
        assert ended not in Record(copy(isic_run, tmp_path / str(number), **changes)).differences


@pytest.mark.parametrize("config", [ISICConfig(), SynapseConfig()])
def test_the_published_values_are_those_of_the_configs(config):
    not_hyperparameters = fields_of(MachineOptions, RunOptions) - {"val_interval"}
    values = {name: value for name, value in vars(config).items() if name not in not_hyperparameters}
    assert values == published_values(type(config))
    built = json.loads(json.dumps(optimization_values(config, *rows_of(config))))
    assert {name: built["optimizer"].pop(name) for name in ("lr", "weight_decay")} == {"lr": 1e-3, "weight_decay": 1e-2}
    assert built == PUBLISHED_ROWS[config.of_volumes]


def test_every_name_is_escaped(isic_run, tmp_path):
    names = ("dataset", "network", "work_dir", "device", "load_ckpt_path")
    run = copy(isic_run, tmp_path, **dict.fromkeys(names, HOSTILE))
    rows = read_rows(run / "test_images.csv")
    hostile = HOSTILE.replace("/", "|")
    for kind in ("", "_overlay"):
        shutil.move(run / "predictions" / f"{rows[0]['name']}{kind}.png", run / "predictions" / f"{hostile}{kind}.png")
    rows[0] |= {"name": hostile, "dsc": 1.0}
    write_rows(run / "test_images.csv", rows)
    with open(run / "log.txt", "a", encoding="utf-8") as file:
        file.write(f"2026-01-01 00:00:00 device {HOSTILE}\n")
    (run / "facts.json").write_text(json.dumps(dict.fromkeys(("network", "device", "overlap", "lost"), HOSTILE)))
    page = Page(write_report(Record(run)))
    assert_self_contained(page)
    assert page.tags.count("img") == 9 and page.text.count("<script>alert(1)") >= 10


@pytest.mark.slow
def test_class_names_and_outlines_of_several_classes(tmp_path):
    folder = tmp_path / "data"
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / split / "images" / f"{i}.png")
            mask = Image.fromarray(np.repeat(np.array([0, 1, 2], np.uint8), [10, 10, 20])[None].repeat(40, 0))
            mask.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
            mask.save(folder / split / "masks" / f"{i}.png")
    names = ("_core $x_1$", "edema \u7532")
    values = SMALL | dict(epochs=1, dataset="own", num_classes=3, class_names=names)
    config = resolve(ISICConfig(**values, data_path=str(folder), work_dir=str(tmp_path / "runs")))
    scores = train.main(config)
    (run,) = (tmp_path / "runs").iterdir()
    page = Page(run / "report.html")
    assert_self_contained(page)
    truth = np.array(Image.open(run / "predictions" / "0_truth.png"))
    assert truth.shape == (32, 32) and set(np.unique(truth)) == {0, 1, 2}
    row = read_rows(run / "test_images.csv")[0]
    assert sum(int(row[f"{name}_class2"]) for name in ("tp", "fp", "fn", "tn")) == 32 * 32
    assert f"{100 * scores['classes'][2]['dsc']:.2f}" in page.text and names[1] in page.text
    html = (run / "report.html").read_text(encoding="utf-8")
    assert all(
        f'style="background: {colour}"></span> {name}' in html for name, colour in zip(names, COLOURS, strict=True)
    )
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["class_colours"] == list(COLOURS)
    assert f"dsc {names[1]}" in (run / "log.txt").read_text(encoding="utf-8")
    (epoch,) = read_rows(run / "metrics.csv")
    assert {f"dsc {name}" for name in names} <= epoch.keys()
    overlay = np.array(Image.open(run / "predictions" / "0_overlay.png")).astype(int)
    predicted = np.array(Image.open(run / "predictions" / "0.png"))
    assert {*np.unique(predicted)} <= {0, 1, 2} and (predicted > 0).any()
    red, green, blue = overlay[predicted == 1].T if (predicted == 1).any() else overlay[predicted == 2].T[::-1]
    assert red.min() >= 140 and max(green.max(), blue.max()) <= 115  # 0.55 of the user's colour over the image
    weights = torch.load(run / "checkpoints" / "best.pth", weights_only=True)
    assert describe(config_from_values(ISICConfig, weights["config"]))["class_names"] == ["background", *names]
    assert page.tags.count("img") == 3


def test_dice_of_an_image_leaves_out_classes_that_are_nowhere():
    row = {"dsc_class0": 0.9, "dsc_class1": 0.5, "dsc_class2": 0.0, "tp_class2": 0, "fp_class2": 0, "fn_class2": 0}
    assert mean_dice(row) == 0.5
    assert mean_dice(row | {"fn_class2": 3}) == 0.25
    nowhere = {"dice_transunet aorta": 0.0, "dice_strict aorta": float("nan")}
    assert mean_dice({"dice_transunet liver": 0.5, "dice_strict liver": 0.5, **nowhere}) == 0.5
    assert mean_dice(nowhere) == 1


@pytest.mark.slow
def test_runs_that_were_stopped_or_came_before_still_get_a_page(isic_run, tmp_path):
    run = copy(isic_run, tmp_path, epochs=300)
    rows = read_rows(run / "test_images.csv")
    write_rows(run / "test_images.csv", [{"name": row["name"], "dsc": row["dsc"]} for row in rows])
    shutil.rmtree(run / "predictions")
    page = Page(write_report(Record(run)))
    assert "2 of 300 epochs" in page.text and "Confusion" not in page.text
    assert page.text.count("its pictures are not in the run's folder") == 9
    overlap = "overlap: 1 of the tested cases are also trained on: case0001"
    with open(run / "log.txt", "a", encoding="utf-8") as file:
        file.write(f"2026-01-01 00:00:00 {overlap}\n" * 2)
    assert Page(write_report(Record(run))).text.count("also trained on: case0001") == 2  # the log makes no note
    (run / "facts.json").write_text(json.dumps({"overlap": overlap}))
    assert Page(write_report(Record(run))).text.count("also trained on: case0001") == 3  # the note; twice in the log
    (run / "metrics.json").unlink()
    assert "Not tested yet" in Page(write_report(Record(run))).text
    (run / "metrics.csv").unlink()
    page = Page(write_report(Record(run)))
    assert "0 of 300 epochs" in page.text and "svg" not in page.tags


def test_a_run_that_only_tested_has_no_training(isic_run, tmp_path):
    run = copy(isic_run, tmp_path, test_only="results/<other>/best.pth", dataset="isic17")
    (run / "metrics.csv").unlink()
    page = Page(write_report(Record(run)))
    assert "initial weights of results/<other>/best.pth" in page.text and "tested only" in page.text
    assert "Selected on the reported set" not in page.text and "†" not in page.text and page.tags.count("svg") == 1


def test_a_report_that_fails_is_logged_and_loses_nothing(isic_run, tmp_path, monkeypatch, caplog):
    run = copy(isic_run, tmp_path)
    old = (run / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr("report.run_page.page_bytes", lambda *args, **values: 1 / 0)
    report.report_at_end(run)
    assert str(run) in caplog.text and "ZeroDivisionError" in caplog.text
    assert (run / "report.html").read_text(encoding="utf-8") == old


def test_a_training_loads_the_report_only_at_its_end():
    code = "import sys, train, train_synapse; sys.exit('report' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


RECORDS = [path.parent for data in ("isic17", "acdc") for path in sorted(ROOT.glob(f"results/{data}/**/config.json"))]


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_the_records_of_the_repository_are_read(folder):
    run = Record(folder)
    assert run.values["lr"] in (1e-3, 5e-4) and run.values["weight_decay"] == 1e-2
    assert run.finished or "ablation" in folder.parts
    assert run.row is not None and run_contents(run)["charts"]


@pytest.mark.parametrize("name", ["acdc/stable_vmunet_42", "isic17/ablation/no_warmup"])
def test_records_from_before_a_field_have_a_page(name):
    run = Record(ROOT / "results" / name)
    assert "select" not in run.config and f"<h1>{run.name}</h1>".encode() in page_bytes(
        "report.html", **run_contents(run)
    )


def test_extremes_show_no_image_twice():
    dice = {name: i / 10 for i, name in enumerate("abcdefghijk")}
    worst, median, best = ["a", "b", "c"], ["e", "f", "g"], ["i", "j", "k"]
    assert extremes(dice) == [("Worst", worst), ("Median", median), ("Best", best)]
    for count in range(1, 12):
        names = [name for _, part in extremes(dict(list(dice.items())[:count])) for name in part]
        assert len(names) == len(set(names)) and set(names) <= set(dice)


def test_command_makes_pages_anew_and_says_what_is_no_run(isic_run, tmp_path, capsys):
    run = copy(isic_run, tmp_path)
    (run / "report.html").unlink()
    main([str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").is_file()
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == 2 and f"{tmp_path}: found no config.json" in capsys.readouterr().err
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json"):
        write_report(Record(run))


def test_charts_are_drawn(isic_run, drawn):
    page = Page(write_report(Record(isic_run)))
    assert_self_contained(page)
    assert page.tags.count("path") > 50
