import json
import re
import shlex
import shutil
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.check import data_report
from datasets.check.__main__ import Check, command, main
from datasets.check.contact_sheet import GAP, LINE, SIDE, TOP
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.synthetic import lesion
from tests.tiny import write_slice
from utils.files import read_rows
from utils.runs.named_weights import RELEASED

IMAGE, MASK = "val/images/DEMO_0000007.jpg", "val/masks/DEMO_0000007_segmentation.png"
OTHER = "train/images/DEMO_0000001.jpg"
SLICE = "train_npz/case0001_slice001"
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)


def write_pairs(folder, masks, start=0, **save):
    """images/<n>.png, all different, and masks/<n>.png of the arrays."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks, start):
        image = lesion(np.random.default_rng(number), 48)[0]
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        mask.save(folder / "masks" / f"{number}.png")


def square(number, high=255, low=0):
    mask = np.full((48, 48), low, np.uint8)
    mask[10 : 20 + number, 10:40] = high
    return mask


@pytest.fixture
def run(tmp_path, capsys):
    """run(folder, flags) -> (exit status, text of the report, output folder)."""

    def run(folder, **options):
        output = tmp_path / "report"
        shutil.rmtree(output, ignore_errors=True)
        status = main(Check(folder=str(folder), output=str(output), **options))
        text = (output / "report.txt").read_text(encoding="utf-8")
        assert capsys.readouterr().out.startswith(text[:200])
        return status, text, output

    return run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_isic(tmp_path_factory.mktemp("demo") / "isic", size=48, train=6, val=4, test=3)


@pytest.fixture
def good(tmp_path, demo):
    shutil.copytree(demo, tmp_path / "data")
    return tmp_path / "data"


# ---- what is right


def test_a_good_folder_has_no_problems(demo, run):
    status, text, output = run(demo)
    assert status == 0 and "Problems: none" in text and "Warnings: none" in text
    assert "  train             6 files   size 48x48 (6)   mode RGB (6)   values 0 255 (6)" in text
    start = f"Train with: python train.py --dataset isic --data-path {demo} --batch-size 6"
    assert f"{start}\n" in text.replace(
        " --recipe stable --load-ckpt-path none", ""
    )  # which is there unless the default start is
    assert sorted(path.name for path in output.iterdir()) == [
        "files.csv",
        "report.txt",
        "test.png",
        "train.png",
        "val.png",
    ]
    rows = read_rows(output / "files.csv")
    mask = np.asarray(Image.open(demo / "val" / "masks" / f"{rows[6]['name']}_segmentation.png")) >= 128
    assert len(rows) == 13 and rows[6]["part"] == "val" and float(rows[6]["class_1"]) == mask.mean()


def test_class_shares_are_those_of_the_pixels(tmp_path, run):
    write_pairs(tmp_path / "data" / "train", [square(0), square(10)])  # 10 and 20 rows of 30 in 48 x 48
    write_pairs(tmp_path / "data" / "val", [square(20)], start=2)
    _, text, _ = run(tmp_path / "data")
    shares = (100 * (300 + 600) / (2 * 48 * 48), 100 * 900 / (48 * 48))
    (line,) = (line for line in text.splitlines() if line.startswith("  object"))
    assert line.split() == ["object", f"{shares[0]:.3f}", "%", "2", f"{shares[1]:.3f}", "%", "1"]


def test_contact_sheets_show_image_and_outline(demo, run):
    _, _, output = run(demo, thumbnails=2)
    sheet = np.asarray(Image.open(output / "train.png")).astype(int)
    assert sheet.shape == (TOP + SIDE + LINE + 2 * GAP, 4 * (SIDE + GAP) + GAP, 3)  # one row
    images = sorted((demo / "train" / "images").iterdir())
    for place, path in enumerate((images[0], images[-1])):  # evenly spread
        shown = sheet[TOP : TOP + SIDE, GAP + place * (SIDE + GAP) :][:, :SIDE]
        outline = (shown == (0, 200, 80)).all(-1)
        stored = np.asarray(Image.open(path)).astype(int).repeat(SIDE // 48, 0).repeat(SIDE // 48, 1)
        assert np.array_equal(shown[~outline], stored[~outline]) and outline.any()


@pytest.mark.parametrize(
    "masks, options, values, flags",
    [
        ([square(n, 1) for n in range(3)], {}, ["0 1 (3)"], ""),
        ([square(1, 1), square(2, 255), square(3, 1)], {}, ["0 1 (2)", "0 255 (1)"], ""),
        ([square(1, 200, 10)], {"mask_values": ("10", "200")}, ["10 200 (1)"], " --mask-values 10 200"),
        ([square(1, 1), square(2, 2)], {"num_classes": 3}, ["0 1 (1)", "0 2 (1)"], " --num-classes 3"),
        (
            [COLOURS[square(0, n)] for n in (1, 2)],
            {"mask_values": ("#000000", "#0000ff", "#ff0000")},
            ["#000000 #0000ff (1)", "#000000 #ff0000 (1)"],
            " --num-classes 3 --mask-values '#000000' '#0000ff' '#ff0000'",
        ),
        ([np.linspace(0, 255, 2304).astype(np.uint8).reshape(48, 48)], {}, ["many (1)"], ""),
    ],
)
def test_the_values_in_the_masks_and_the_flags_of_training_are_reported(masks, options, values, flags, tmp_path, run):
    write_pairs(tmp_path / "own data", masks)
    status, text, output = run(tmp_path / "own data", **options)
    assert status == 0 and all(value in text for value in values)
    command = f"python train.py --dataset 'own data' --data-path '{tmp_path}/own data'{flags} --folds 5 --fold 0"
    assert text.split("Train with: ")[1].startswith(f"{command} --batch-size ")
    assert (output / "all.png").is_file()


def test_palette_masks_are_read_by_index(tmp_path, run):
    masks = []
    for high in (1, 2):
        mask = Image.fromarray(square(1, high))
        mask.putpalette(COLOURS.tobytes())
        masks.append(mask)
    write_pairs(tmp_path / "data", masks)
    status, text, _ = run(tmp_path / "data", num_classes=3)
    assert status == 0 and "0 1 (1), 0 2 (1)" in text


def test_the_printed_command_trains_without_a_download(demo, tmp_path, run, monkeypatch):
    """Its constants are those of the config, it has a start that is there, and a batch that the data fill."""
    assert ISICConfig.batch_size == data_report.BATCH_SIZE
    assert RELEASED[ISICConfig.load_ckpt_path].url.endswith(f"/{data_report.DEFAULT_START.name}")
    for exists in (False, True):
        monkeypatch.setattr(data_report, "DEFAULT_START", tmp_path / "start.pth")
        text = run(demo)[1].split("Train with: ")[1].splitlines()[0]
        assert text.endswith(" --batch-size 6" + " --recipe stable --load-ckpt-path none" * (not exists))
        (tmp_path / "start.pth").touch()
    shutil.copytree(demo / "train", tmp_path / "one part" / "train")
    assert " --folds 5 --fold 0 --batch-size 4" in run(tmp_path / "one part")[1]  # 6 images less a fold of 2


def with_palette(indices, colours):
    mask = Image.fromarray(np.asarray(indices, np.uint8))
    mask.putpalette(np.array(colours, np.uint8).tobytes())
    return mask


def test_palettes_that_differ_are_a_problem_until_the_colours_are_given(tmp_path, run):
    inside = square(0) > 0
    masks = [with_palette(inside, COLOURS[:2])] * 2 + [with_palette(~inside, COLOURS[1::-1])]
    write_pairs(tmp_path / "data", masks)
    status, text, output = run(tmp_path / "data")  # the colour that is not black is the object
    assert status == 0 and {float(row["class_1"]) for row in read_rows(output / "files.csv")} == {inside.mean()}
    write_pairs(tmp_path / "data", [with_palette(inside, COLOURS[::2])], start=3)
    status, text, _ = run(tmp_path / "data", num_classes=3)
    flags = '--mask-values with colours such as "#000000" "#0000ff" "#ff0000"'
    assert status == 1 and "masks/2.png" in problems(text) and flags in problems(text)
    status, text, output = run(tmp_path / "data", mask_values=("#000000", "#ff0000", "#0000ff"))
    assert status == 0 and "values #000000 #ff0000 (3), #000000 #0000ff (1)" in text
    assert [float(row["class_1"]) for row in read_rows(output / "files.csv")] == [inside.mean()] * 3 + [0]


def test_a_void_is_no_class(tmp_path, run):
    mask = square(0, 1)
    mask[:4] = 255
    write_pairs(tmp_path / "data", [mask, square(1, 1)])
    status, text, _ = run(tmp_path / "data")
    advice = "--num-classes 2 --ignore-label 255"
    assert status == 1 and advice in problems(text) and advice in warnings(text)
    assert f" {advice} " in text.split("Train with: ")[1]
    status, text, output = run(tmp_path / "data", num_classes=2, ignore_label=255)
    assert status == 0 and "Warnings: none" in text
    assert float(read_rows(output / "files.csv")[0]["class_1"]) == (mask == 1).sum() / (mask < 255).sum()


def test_contact_sheets_have_the_masks_own_colours(tmp_path, run):
    """Of palettes and of --mask-values; pixels without a class stay as they are."""
    colours = [(0, 0, 0), (0, 255, 255), (255, 255, 0)] + [(255, 0, 255)] * 253
    indices = np.kron(np.array([[0, 1], [2, 255]]), np.ones((24, 24), np.uint8))
    folders = [tmp_path / "palette", tmp_path / "rgb"]
    write_pairs(folders[0], [with_palette(indices, colours)])
    write_pairs(folders[1], [np.where(indices[..., None] < 255, np.array(colours, np.uint8)[indices], 0)])
    image = np.asarray(Image.open(folders[0] / "images" / "0.png")).repeat(3, 0).repeat(3, 1).astype(float)
    for folder, options in zip(
        folders,
        ({"num_classes": 3, "ignore_label": 255}, {"mask_values": ("#000000", "#00ffff", "#ffff00")}),
        strict=True,
    ):
        _, _, output = run(folder, **options)
        shown = np.asarray(Image.open(output / "all.png")).astype(float)[TOP:, GAP:][:SIDE, :SIDE]
        expected = image.copy()
        for rows, columns, colour in ((0, 1, colours[1]), (1, 0, colours[2])):
            part = np.s_[72 * rows : 72 * rows + 72, 72 * columns : 72 * columns + 72]
            expected[part] = 0.45 * image[part] + 0.55 * np.array(colour)
        assert np.abs(shown - expected).max() <= 1


def test_given_classes_are_held_to(tmp_path, run):
    write_pairs(tmp_path / "data", [square(1, 1), square(2, 2)])
    status, text, _ = run(tmp_path / "data", num_classes=2)
    assert status == 1 and "masks/1.png" in problems(text) and "(0, 1)" in problems(text)
    status, text, _ = run(tmp_path / "data", mask_values=("0", "1", "2", "3"))
    assert status == 0 and "class 3" in warnings(text)


# ---- what is wrong


def problems(text):
    return text.split("Problems: ")[1].split("\n\nWarnings")[0]


def warnings(text):
    return text.split("Warnings: ")[1]


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda f: (f / IMAGE).write_bytes(b"no"), [IMAGE]),
        (lambda f: (f / MASK).write_bytes(b"no"), [MASK]),
        (lambda f: (f / IMAGE).unlink(), ["1 files", "0007_segmentation.png"]),
        (lambda f: shutil.rmtree(f / "val/masks"), ["val/masks"]),
        (lambda f: Image.new("L", (40, 48)).save(f / MASK), [IMAGE, "48x48", MASK, "40x48"]),
        (lambda f: Image.new("RGB", (48, 48)).save(f / "val/images/DEMO_0000007.png"), ["0007.jpg", "0007.png"]),
        (lambda f: shutil.copy(f / OTHER, f / IMAGE), ["1 pairs", "train/DEMO_0000001 = val/DEMO_0000007"]),
        (
            lambda f: [(f / part).rename(f / str(part).replace("0007", "0001")) for part in (IMAGE, MASK)],
            ["1 names", "DEMO_0000001 (train and val)"],
        ),
        (lambda f: Image.new("RGB", (48, 48), (9, 9, 9)).save(f / IMAGE), [IMAGE]),
    ],
)
def test_what_stands_against_training_is_a_problem(spoil, named, good, run):
    spoil(good)
    status, text, _ = run(good)
    assert status == 1 and all(name in problems(text) for name in named)


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda f: Image.new("L", (48, 48)).save(f / MASK), "val/DEMO_0000007"),
        (lambda f: Image.new("L", (48, 48), 255).save(f / MASK), "val/DEMO_0000007"),
        (lambda f: Image.open(f / OTHER).save(f / IMAGE, quality=40), "train/DEMO_0000001 = val/DEMO_0000007"),
        (lambda f: shutil.copy(f / "val/images/DEMO_0000006.jpg", f / IMAGE), "val/DEMO_0000006 = val/DEMO_0000007"),
        (lambda f: turned_by_exif(f / IMAGE), "val/DEMO_0000007"),
    ],
)
def test_the_unusual_is_a_warning_and_shown(spoil, named, good, run):
    spoil(good)
    status, text, output = run(good)
    assert status == 0 and named in warnings(text) and "Warnings: 1\n" in text
    assert (output / "suspects.png").is_file()


def turned_by_exif(path):
    image = Image.open(path)
    exif = image.getexif()
    exif[274] = 6
    image.save(path, exif=exif)


def test_many_problems_are_cut_on_the_screen_only(tmp_path, capsys):
    write_pairs(tmp_path / "data", [square(0)] * 25)
    for path in (tmp_path / "data" / "masks").iterdir():
        path.write_bytes(b"no")
    assert main(Check(folder=str(tmp_path / "data"), output=str(tmp_path / "out"))) == 1
    printed, stored = capsys.readouterr().out, (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert printed.count("/masks/") == 20 and stored.count("/masks/") == 25 and " 5 more" in printed


def test_exit_status_of_the_command(good, tmp_path, monkeypatch, caplog):
    def status(folder):
        monkeypatch.setattr(sys, "argv", ["check", str(folder), "--output", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as exit:
            command()
        return exit.value.code

    assert status(good) == 0
    (good / IMAGE).unlink()
    assert status(good) == 1
    (tmp_path / "empty").mkdir()
    assert status(tmp_path / "empty") == 2
    assert "empty" in caplog.text and "train/images" in caplog.text and "train_npz" in caplog.text


def test_raw_volumes_are_to_be_prepared(tmp_path):
    for raw in ("img/a.nii.gz", "images/b.NII"):
        folder = tmp_path / raw[0:3]
        (folder / raw).parent.mkdir(parents=True)
        (folder / raw).touch()
        (folder / "masks").mkdir()
        with pytest.raises((FileNotFoundError, ValueError), match=f"{raw}.*prepare_volumes --images IMAGES --labels"):
            main(Check(folder=str(folder)))
    (folder / "dataset.json").touch()
    with pytest.raises(
        (FileNotFoundError, ValueError), match=f"prepare_volumes --images {re.escape(str(folder))} --out"
    ):
        main(Check(folder=str(folder)))


# ---- Synapse


@pytest.fixture
def synapse(tmp_path):
    return make_demo_synapse(tmp_path / "synapse", size=48, train=2, val=1, test=1, slices=3)


def test_the_printed_command_trains_on_volumes(synapse, tmp_path, run):
    assert SynapseConfig.batch_size == data_report.BATCH_SIZE

    def config_of(folder):
        command = shlex.split(run(folder)[1].split("Train with: ")[1].splitlines()[0])
        assert command[:2] == ["python", "train_synapse.py"]
        return resolve(SynapseConfig, command[2:])

    config = config_of(synapse)
    assert (config.dataset, config.data_path, config.protocol) == ("synapse", str(synapse), "holdout")
    assert config.batch_size == 6  # slices
    (synapse / "lists" / "list_Synapse" / "val_vol.txt").unlink()
    scaling = {"kind": "window", "low": 0, "high": 1}
    record = {"class_names": [*"abcdefgh"], "intensities": scaling, "orientation": "LPS", "labels": [*range(1, 9)]}
    (synapse / "preparation.json").write_text(json.dumps(record))
    config = config_of(synapse.rename(tmp_path / "liver"))
    assert (config.dataset, config.protocol, config.scaling_range) == ("liver", "paper", (0, 1))


def edit_list(folder, name, lines):
    (folder / "lists" / "list_Synapse" / name).write_text("".join(f"{line}\n" for line in lines))


def test_synapse_has_no_problems(synapse, run):
    status, text, output = run(synapse)
    assert status == 0 and "Problems: none" in text
    assert "  train.txt         6 files   size 1x48x48 (6)" in text
    assert "  test_vol.txt      1 files   spacing 66.7 x 7.5 x 7.5 (1)   size 3x48x48 (1)" in text
    assert {"train.png", "val_vol.png", "test_vol.png"} <= {path.name for path in output.iterdir()}
    with np.load(synapse / "train_npz" / "case0001_slice000.npz") as arrays:
        row = read_rows(output / "files.csv")[0]
        assert row["name"] == "case0001_slice000" and float(row["class_5"]) == (arrays["label"] == 5).mean()


def test_other_lists_may_divide_the_cases_otherwise(synapse, run):
    """Cases 1, 2 | 3 | 4 in one folder of lists and 1 | 2 | 4 in another; only within a folder they must differ."""
    lists = synapse / "lists" / "list_Synapse_holdout"
    shutil.copytree(synapse / "lists" / "list_Synapse", lists)
    train = (lists / "train.txt").read_text(encoding="utf-8").splitlines()
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in train if name.startswith("case0001")))
    (lists / "val_vol.txt").write_text("case0002\n")
    with h5py.File(synapse / "test_vol_h5" / "case0002.npy.h5", "w") as file:
        slices = [np.load(synapse / "train_npz" / f"case0002_slice{index:03d}.npz") for index in range(3)]
        file["image"], file["label"] = (np.stack([arrays[kind] for arrays in slices]) for kind in ("image", "label"))
    assert run(synapse)[0] == 0
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in train))
    status, text, _ = run(synapse)
    assert status == 1 and f"{lists}: 3 slices" in problems(text) and "case0002_slice000 = case0002 slice 0" in text


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda f: (f / f"{SLICE}.npz").write_bytes(b"no"), ["case0001_slice001.npz"]),
        (lambda f: (f / f"{SLICE}.npz").unlink(), ["1 of 6", "train_npz", "case0001_slice001.npz"]),
        (lambda f: write_slice(f, SLICE, label=np.full((20, 24), 9.0)), ["case0001_slice001.npz", "9 to 9", "0..8"]),
        (
            lambda f: np.savez(f / SLICE, image=np.full((4, 4), -900.0), label=np.zeros((4, 4))),
            ["case0001_slice001.npz", "-900 to -900", "0..1"],
        ),
        (lambda f: edit_list(f, "test_vol.txt", ["case0003"]), ["1 cases", "case0003 (val_vol.txt and test_vol.txt)"]),
        (
            lambda f: (f / "test_vol_h5/case0004.npy.h5").write_bytes((f / "test_vol_h5/case0003.npy.h5").read_bytes()),
            ["3 slices", "val_vol.txt", "test_vol.txt", "case0003 slice 0 = case0004 slice 0"],
        ),
        (lambda f: shutil.rmtree(f / "lists"), ["lists", "train.txt", "test_vol.txt"]),
    ],
)
def test_what_stands_against_training_on_volumes_is_a_problem(spoil, named, synapse, run):
    spoil(synapse)
    status, text, _ = run(synapse)
    assert status == 1 and all(name in problems(text) for name in named)


def test_data_of_which_nothing_can_be_read_gets_a_report(tmp_path, run):
    write_pairs(tmp_path / "data/train", [square(0), square(1)])
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"")
    status, text, output = run(tmp_path / "data")
    assert status == 1 and "Problems: 4" in text
    assert (output / "files.csv").exists()


def test_jpeg_masks_of_zeros_and_ones_are_a_problem(tmp_path, run):
    write_pairs(tmp_path / "data/train", [square(0), square(1)])
    for number in range(2):
        (tmp_path / f"data/train/masks/{number}.png").unlink()
        Image.fromarray(square(number, high=1)).save(tmp_path / f"data/train/masks/{number}.jpg")
    status, text, _ = run(tmp_path / "data")
    assert status == 1 and "masks/0.jpg" in problems(text) and "--mask-values" in problems(text)
    status, _, _ = run(tmp_path / "data", mask_values=("0", "1"))
    assert status == 0


def test_files_that_are_not_used_are_named(tmp_path, run):
    write_pairs(tmp_path / "data/train", [square(0), square(1)])
    Image.new("L", (9, 9)).save(tmp_path / "data/train/images/c.gif")
    (tmp_path / "data/train/masks/deeper").mkdir()
    status, text, _ = run(tmp_path / "data")
    assert status == 0 and "c.gif" in text and "deeper" in text


def test_orientation_tags_are_reported(tmp_path, run):
    """Those of TIFF files are applied, those of others ignored."""
    write_pairs(tmp_path / "data/train", [square(0), square(1)])
    exif = Image.Exif()
    exif[0x0112] = 3
    for number, ending in enumerate(("tif", "jpg")):
        path = tmp_path / f"data/train/images/{number}.png"
        Image.open(path).save(path.with_suffix(f".{ending}"), exif=exif)
        path.unlink()
    _, text, _ = run(tmp_path / "data")
    applied, ignored = warnings(text).splitlines()[1:3]
    assert "applied" in applied and "train/0" in applied and "ignored" in ignored and "train/1" in ignored
