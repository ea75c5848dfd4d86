import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import prepare_isic
from datasets.folds import find_split
from datasets.image_reading import read_image
from datasets.isic import find_pairs
from datasets.lesions import leaked, lesion_of
from datasets.masks import read_mask
from datasets.prepare_isic import OFFICIAL, PrepareISIC, draw, draw_lesions, draw_splits, keep_apart, prepare
from tests.tiny import isic_config, tree
from utils.files import read_rows, write_rows

COUNTS = {"training": 7, "validation": 3, "test": 2}


def write_pair(images, masks, id, seed, size=(48, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / f"{id}.jpg", quality=95)
    mask = np.zeros(size[::-1], np.uint8)
    mask[4:12, 5:16] = 255
    Image.fromarray(mask).save(masks / f"{id}_segmentation.png")


@pytest.fixture
def source(request, tmp_path):
    """The official folders of 2018 with few pairs, and what else lies in them."""
    year = getattr(request, "param", "isic18")
    folder = tmp_path / "source"
    for number, (key, count) in enumerate(COUNTS.items()):
        images, masks = (folder / name for name in OFFICIAL[year][key])
        images.mkdir(parents=True)
        masks.mkdir()
        for i in range(count):
            write_pair(images, masks, f"ISIC_{number}{i:06d}", seed=10 * number + i)
        Image.new("L", (48, 32)).save(images / "ISIC_0000000_superpixels.png")
        (images / "ATTRIBUTION.txt").write_text("not an image")
    return folder


def zipped(source):
    """The same folder with zip archives instead of the official folders."""
    out = source.parent / "zips"
    out.mkdir()
    for folder in source.iterdir():
        shutil.make_archive(out / folder.name, "zip", source, folder.name)
    return out


def options(source, out, **changes):
    return PrepareISIC(source=str(source), out=str(out), **{"seed": 1} | changes)


# ---- splits


@pytest.mark.parametrize("name, train, val", [("isic17", 1500, 650), ("isic18", 1815, 779)])
def test_the_published_lists_are_what_the_seed_draws(name, train, val, monkeypatch):
    listed = prepare_isic.published_split(name)
    sets = {"training": list(listed)}
    from_list = draw_splits(name, sets)
    monkeypatch.setattr(prepare_isic, "published_split", lambda name: {})
    drawn = draw_splits(name, sets)
    assert {id: tuple(drawn[key][id] for key in prepare_isic.DRAWN) for id in listed} == listed and from_list == drawn
    assert Counter(drawn["paper"].values()) == Counter(drawn["grouped"].values()) == {"train": train, "val": val}
    assert {id for id, part in drawn["holdout"].items() if part == "test"} == {
        id for id, part in drawn["paper"].items() if part == "val"
    }


@pytest.mark.parametrize(
    "name, digest",
    [
        ("isic17", "0fbeebb704e5e903e6281a9bb02a66f71e39030c66d46fc5902ad019bf307097"),
        ("isic18", "e916350ce6889117869aa4f68ee1667189a950a7fdd06a87ed73837cf4cfb942"),
    ],
)
def test_the_papers_split_is_never_drawn_anew(name, digest):
    lines = [f"{id} {parts[0]}" for id, parts in sorted(prepare_isic.published_split(name).items())]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


@pytest.mark.parametrize("name, number", [("isic17", 25), ("isic18", 36)])
def test_a_lesion_is_on_one_side_except_in_the_papers_split(name, number):
    """The number of reported images whose lesion was trained on."""
    listed = prepare_isic.published_split(name)
    parts = [
        {part: {id for id in listed if listed[id][i] == part} for part in ("train", "val", "test")} for i in range(3)
    ]
    paper, holdout, grouped = parts
    assert len(leaked(paper["val"], paper["train"])) == number
    assert not leaked(grouped["val"], grouped["train"])
    assert not leaked(holdout["test"], holdout["train"] | holdout["val"])
    assert not leaked(holdout["val"], holdout["train"])


def test_lesions_are_drawn_whole(monkeypatch):
    lesions = {f"i{number}": f"i{number // 4 * 4}" for number in range(40)}  # ten of four images each
    monkeypatch.setattr(prepare_isic, "lesion_of", lambda: lesions)
    for seed in range(5):
        parts = draw_lesions(lesions, 30, seed)
        assert Counter(parts.values()) == {"train": 28, "val": 12}
        assert all(parts[id] == parts[lesion] for id, lesion in lesions.items())
    assert draw_lesions(lesions, 30, 0) != draw_lesions(lesions, 30, 1)


def test_with_the_validation_set_2018_has_the_papers_sizes():
    training = list(prepare_isic.published_split("isic18"))
    validation = [f"ISIC_9{number:06d}" for number in range(100)]
    both = draw_splits("isic18", {"training": training, "validation": validation})
    assert Counter(both["paper"].values()) == {"train": 1886, "val": 808}
    alone = draw_splits("isic18", {"training": training})
    assert all(both[key][id] == part for key in both for id, part in alone[key].items())


def test_an_incomplete_download_keeps_the_sides_of_the_list(capsys):
    listed = prepare_isic.published_split("isic17")
    some = draw_splits("isic17", {"training": list(listed)[::3]})
    assert all(some["paper"][id] == listed[id][0] for id in some["paper"]) and len(some["paper"]) == 717
    assert "717 of the 2150" in capsys.readouterr().out


def test_the_seed_decides_the_split():
    ids = [f"ISIC_{number:07d}" for number in range(50)]
    assert draw(ids, 35, 1) == draw(ids[::-1], 35, 1) != draw(ids, 35, 2)
    pairs = Counter(parts[:2] for parts in draw(ids, 35, 1).values())
    assert pairs == {("train", "train"): 30, ("train", "val"): 5, ("val", "test"): 15}


def test_of_a_lesion_the_part_that_counts_most_is_kept():
    parts = dict(
        a="train", b="test", c="val", d="train", e="train", f="train", g="", h="train", i="val", j="test", k="val"
    )
    keep_apart(parts, dict(a="a", b="a", c="c", d="c", e="e", f="e", g="e", h="h", i="h", j="h", x="h"))
    assert parts == dict(a="", b="test", c="val", d="", e="train", f="train", g="", h="", i="", j="test", k="val")


# ---- the folder


@pytest.mark.parametrize("source, train", [("isic17", 7), ("isic18", 4 + 2)], indirect=["source"])
def test_archives_and_folders_give_the_same_files(source, train, tmp_path):
    assert prepare(options(source, tmp_path / "a")) == {"train": train, "val": 10 - train}
    prepare(options(zipped(source), tmp_path / "b"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    for row in read_rows(tmp_path / "a" / "split.csv"):
        for kind in ("image", "mask"):
            content = (tmp_path / "a" / row[kind]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row[f"{kind}_sha256"]
            assert content == next(source.rglob(Path(row[kind]).name)).read_bytes()
            assert row[kind].startswith(row["paper"])


def test_one_folder_serves_both_protocols(source, tmp_path):
    out = tmp_path / "out"
    prepare(options(source, out))
    stems = {
        (protocol, part): {stem for stem, _, _ in find_split(out, part, isic_config(out, protocol=protocol))}
        for protocol, part in [
            ("paper", "train"),
            ("paper", "val"),
            *(("holdout", p) for p in ("train", "val", "test")),
        ]
    }
    assert stems["holdout", "test"] == stems["paper", "val"]
    assert stems["holdout", "train"] | stems["holdout", "val"] == stems["paper", "train"]
    assert not stems["holdout", "train"] & stems["holdout", "val"] and stems["holdout", "val"]


def test_official_sets_stay_as_they_are(source, tmp_path):
    assert prepare(options(source, tmp_path / "out", split="official")) == {"train": 7, "val": 3, "test": 2}
    assert not find_pairs(*(tmp_path / "out" / "test" / kind for kind in ("images", "masks")))[0][0].startswith(
        "ISIC_0"
    )
    shutil.rmtree(source / OFFICIAL["isic18"]["test"][0])
    shutil.rmtree(source / OFFICIAL["isic18"]["test"][1])
    with pytest.raises(FileNotFoundError, match="--split official .*ISIC2018_Task1-2_Test_Input"):
        prepare(options(source, tmp_path / "other", split="official"))


def test_links_point_to_the_unpacked_files(source, tmp_path):
    prepare(options(source, tmp_path / "out", link=True))
    assert all(p.is_symlink() and p.resolve().is_relative_to(source) for p in (tmp_path / "out").rglob("*.jpg"))
    with pytest.raises(ValueError, match="--link.*zip"):
        prepare(options(zipped(source), tmp_path / "other", link=True))


def test_resized_files_hold_what_the_filter_makes(source, tmp_path):
    prepare(options(source, tmp_path / "out", resize=16, filter="lanczos"))
    row = read_rows(tmp_path / "out" / "split.csv")[0]
    official = next(source.rglob(f"{row['id']}.jpg"))
    expected = Image.open(official).resize((16, 16), Image.Resampling.LANCZOS)
    assert torch.equal(read_image(tmp_path / "out" / row["image"]).permute(1, 2, 0), torch.tensor(np.array(expected)))
    assert row["official_image_sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()
    mask = read_mask(tmp_path / "out" / row["mask"])
    # rows 4..11 in pairs, columns 5..15 in threes: of the first and the last three only one is lesion
    expected = torch.zeros(16, 16, dtype=torch.uint8)
    expected[2:6, 2:5] = 255
    assert torch.equal(mask[0], expected)


# ---- stopped, repeated, mixed


def test_a_killed_run_is_completed(source, tmp_path):
    """SIGKILL while files are written; nothing but whole files has a name, and the repetition ends as one run does."""
    out = tmp_path / "out"
    code = (
        "import sys, time; from datasets import prepare_isic as p; real = p.decode\n"
        "def slow(*args): time.sleep(0.3); return real(*args)\n"
        "p.decode = slow; p.available_cpus = lambda: 1\n"
        "p.prepare(p.PrepareISIC(source=sys.argv[1], out=sys.argv[2], seed=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(out)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob("*/masks/*.png"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    placed = list(out.glob("*/*/ISIC*"))
    assert 2 <= len(placed) < 20 and not (out / "split.csv").exists()
    assert all(path.read_bytes() == next(source.rglob(path.name)).read_bytes() for path in placed)
    prepare(options(source, out))
    prepare(options(source, tmp_path / "whole"))
    assert tree(out) == tree(tmp_path / "whole")


def test_a_repetition_mends_an_altered_file(source, tmp_path):
    out = tmp_path / "out"
    prepare(options(source, out))
    before = tree(out)
    next(out.rglob("*.jpg")).write_bytes(b"something else")
    assert tree(out) != before
    prepare(options(source, out))
    assert tree(out) == before


@pytest.mark.parametrize("changes", [dict(seed=2), dict(resize=16), dict(split="official"), dict(link=True)])
def test_another_preparation_does_not_mix_with_the_first(source, tmp_path, changes):
    out = tmp_path / "out"
    prepare(options(source, out))
    before = tree(out)
    with pytest.raises(ValueError, match=rf"out.*{next(iter(changes))}: found .*--out"):
        prepare(options(source, out, **changes))
    assert tree(out) == before


def test_other_files_are_not_mixed_with(source, tmp_path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="out.*--out"):
        prepare(options(source, tmp_path / "out"))
    prepare(options(source, tmp_path / "other"))
    write_pair(*(tmp_path / "other" / "val" / kind for kind in ("images", "masks")), "ISIC_7777777", 5)
    with pytest.raises(ValueError, match="val .*1 .*: ISIC_7777777"):
        prepare(options(source, tmp_path / "other"))


# ---- duplicates


def test_duplicates_on_both_sides_are_named(source, tmp_path, capsys):
    prepare(options(source, tmp_path / "before"))
    parts = {row["id"]: row["holdout"] for row in read_rows(tmp_path / "before" / "split.csv")}
    learned, tested = (min(id for id, part in parts.items() if part == wanted) for wanted in ("train", "test"))
    shutil.copy(next(source.rglob(f"{learned}.jpg")), next(source.rglob(f"{tested}.jpg")))
    capsys.readouterr()
    prepare(options(source, tmp_path / "out"))
    printed = capsys.readouterr().out
    first, second = sorted((learned, tested))
    assert re.search(f"same pixels.*paper.*{first}.*{second}", printed)
    (row,) = read_rows(tmp_path / "out" / "duplicates.csv")
    assert (row["first"], row["second"], row["kind"]) == (first, second, "same pixels")
    after = {row["id"]: row["holdout"] for row in read_rows(tmp_path / "out" / "split.csv")}
    assert after == parts | {learned: ""}


def test_a_known_lesion_on_both_sides_is_named_and_listed(source, tmp_path, capsys, monkeypatch):
    prepare(options(source, tmp_path / "before"))
    parts = {row["id"]: row["paper"] for row in read_rows(tmp_path / "before" / "split.csv")}
    assert not read_rows(tmp_path / "before" / "same_lesion.csv")
    first, second = (min(id for id in parts if parts[id] == part) for part in ("train", "val"))
    rows = [dict(first=first, second=second), dict(first=second, second="ISIC_7777777")]
    write_rows(tmp_path / "list.csv", rows)
    monkeypatch.setattr(prepare_isic, "LISTED", tmp_path / "list.csv")
    monkeypatch.setattr(prepare_isic, "lesion_of", lambda: lesion_of(tmp_path / "list.csv"))
    capsys.readouterr()
    prepare(options(source, tmp_path / "out"))
    assert re.search(f"same lesion.*paper split, 1 pairs: {first} = {second}", capsys.readouterr().out)
    assert read_rows(tmp_path / "out" / "same_lesion.csv") == rows
    split = {row["id"]: row for row in read_rows(tmp_path / "out" / "split.csv")}
    assert split[first]["grouped"] == split[second]["grouped"]
    assert (split[first]["holdout"], split[second]["holdout"]) == ("", "test")
    counts = prepare(options(source, tmp_path / "grouped", split="grouped"))
    assert counts == Counter(row["grouped"] for row in split.values())


# ---- what is wrong


def test_what_is_missing_is_named(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="--source .*nowhere: found nothing of this name"):
        prepare(options(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty.* ISIC-2017"):
        prepare(options(tmp_path / "empty", tmp_path / "out"))
    masks = source / OFFICIAL["isic18"]["training"][1]
    next(masks.iterdir()).unlink()
    with pytest.raises(ValueError, match=f"1 .*ISIC2018_Task1-2_Training_Input.*{masks.name}: ISIC"):
        prepare(options(source, tmp_path / "out"))
    masks.rename(source / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"source.*{masks.name}"):
        prepare(options(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_two_years_need_a_choice(source, tmp_path):
    for folder in OFFICIAL["isic17"]["training"]:
        (source / folder).mkdir()
    write_pair(*(source / folder for folder in OFFICIAL["isic17"]["training"]), "ISIC_5555555", 5)
    with pytest.raises(ValueError, match="source.*--dataset isic17 or --dataset isic18"):
        prepare(options(source, tmp_path / "out"))
    prepare(options(source, tmp_path / "out", dataset="isic18"))
    assert json.loads((tmp_path / "out" / "preparation.json").read_text(encoding="utf-8"))["dataset"] == "isic18"


def test_a_broken_or_mismatched_pair_is_named_by_its_origin(source, tmp_path):
    image = next((source / OFFICIAL["isic18"]["training"][0]).glob("*.jpg"))
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    with pytest.raises(ValueError, match=str(image)):
        prepare(options(source, tmp_path / "out"))
    image.write_bytes(whole)
    Image.new("L", (20, 32)).save(next(source.rglob(f"{image.stem}_segmentation.png")))
    with pytest.raises(ValueError, match=f"{image} .*48x32 .*_segmentation.png .*20x32"):
        prepare(options(source, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob(image.name)) and not (tmp_path / "out" / "split.csv").exists()


@pytest.mark.parametrize("name", ["../../evil/ISIC_0000099.jpg", "/tmp/ISIC_0000099.jpg", "../ISIC_00000999.jpg"])
def test_members_of_an_archive_cannot_leave_the_folder(source, tmp_path, name):
    zips = zipped(source)
    images, masks = (zips / f"{folder}.zip" for folder in OFFICIAL["isic18"]["training"])
    with zipfile.ZipFile(images, "a") as archive:
        archive.writestr(name, next(source.rglob("*.jpg")).read_bytes())
    with zipfile.ZipFile(masks, "a") as archive:
        archive.writestr("ISIC_0000099_segmentation.png", next(source.rglob("*_segmentation.png")).read_bytes())
    before = set(tmp_path.iterdir())
    if "ISIC_0000099.jpg" in name:
        prepare(options(zips, tmp_path / "out"))
    else:  # not an official name
        with pytest.raises(ValueError, match="1 .*ISIC2018_Task1"):
            prepare(options(zips, tmp_path / "out"))
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "out"} and not Path("/tmp/ISIC_0000099.jpg").exists()


def test_damaged_encrypted_and_huge_members_are_refused(source, tmp_path, monkeypatch):
    zips = zipped(source)
    path = zips / f"{OFFICIAL['isic18']['training'][0]}.zip"
    content = bytearray(path.read_bytes())
    content[400] ^= 255  # in the data of the first member
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Training_Input.zip/.*jpg"):
        prepare(options(zips, tmp_path / "a"))
    monkeypatch.setattr("datasets.downloads.LIMIT", 100)
    with pytest.raises(ValueError, match="source.* 0 MB"):
        prepare(options(source, tmp_path / "b"))
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="Training_Input.zip"):
        prepare(options(zips, tmp_path / "c"))


def test_masks_that_need_others_to_be_understood_are_refused(source, tmp_path):
    """Of colours, whose order in a palette may differ from mask to mask, and of one value that is neither 0 nor 255."""
    path = next((source / OFFICIAL["isic18"]["training"][1]).glob("*.png"))
    coloured = Image.fromarray(np.asarray(Image.open(path)) // 255)
    coloured.putpalette((255, 0, 0, 0, 0, 0))
    for mask, word in ((coloured, "#ff0000"), (Image.new("L", (48, 32), 1), "--mask-values")):
        mask.save(path)
        with pytest.raises(ValueError, match=f"{path.name}.*{word}"):
            prepare(options(source, tmp_path / "out", resize=16))


def test_options_that_cannot_be(source, tmp_path):
    with pytest.raises(ValueError, match="--link and --resize"):
        prepare(options(source, tmp_path / "out", link=True, resize=32))
    with pytest.raises(ValueError, match="--resize.* 4, .* 16 to 4096"):
        prepare(options(source, tmp_path / "out", resize=4))
