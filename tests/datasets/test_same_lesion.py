import sys

import pytest
from PIL import Image, ImageEnhance

from datasets.same_lesion import FindSameLesion, find_candidates, find_images, main
from tests.tiny import ROOT
from utils.files import read_rows

SAMPLES = ROOT / "data" / "samples"


@pytest.fixture
def photographs(tmp_path):
    """Copies of the six samples, which show different lesions."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in (SAMPLES / "images").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def recoloured(image):
    red, green, blue = ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.7)).enhance(0.5).split()
    return Image.merge("RGB", (red, blue, green))


CHANGES = {
    "turned": (lambda image: image.rotate(37, Image.Resampling.BICUBIC), False),
    "smaller": (lambda image: image.crop((20, 10, 256, 246)).resize((180, 180)), False),
    "squeezed": (lambda image: image.resize((256, 192)), False),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(80), True),
    "recoloured": (recoloured, False),
}


def test_six_different_lesions_are_no_pair(photographs):
    assert find_candidates(find_images([photographs])) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(photographs, change):
    make, mirrored = CHANGES[change]
    original = sorted(photographs.iterdir())[2]
    with Image.open(original) as image:
        make(image).save(photographs / "copy.png")
    (pair,) = find_candidates(find_images([photographs]))
    assert (pair.first, pair.second, pair.mirrored) == (original.stem, "copy", mirrored) and pair.matches > 30


def test_the_command_writes_pairs_and_pictures_for_a_person(photographs, tmp_path, capsys):
    original = min(photographs.iterdir())
    with Image.open(original) as image:
        image.rotate(180).save(photographs / "copy.png")
    main(FindSameLesion(folders=(str(photographs), str(SAMPLES)), output=str(tmp_path / "out")))
    (row,) = read_rows(tmp_path / "out" / "same_lesion.csv")
    assert (row["pair"], row["first"], row["second"], row["mirrored"]) == ("1", original.stem, "copy", "False")
    assert "7 photographs: 1 pairs" in (printed := capsys.readouterr().out) and "candidates" in printed
    with Image.open(tmp_path / "out" / "pairs_0001.png") as sheet:
        assert sheet.width > 400
    with pytest.raises(ValueError, match="--output .*out: found same_lesion.csv, which may have been edited"):
        main(FindSameLesion(folders=(str(photographs),), output=str(tmp_path / "out")))


def test_files_of_one_name_are_named(photographs, tmp_path, capsys):
    first, second = sorted(photographs.iterdir())[:2]
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / first.name).write_bytes(second.read_bytes())
    assert find_images([photographs, tmp_path / "others"])[first.stem] == first
    assert f"1 names belong to several files, of which the first is read: {first.stem}" in capsys.readouterr().out
    assert find_images([photographs, photographs]) and not capsys.readouterr().out


def test_images_without_content_are_no_pair(tmp_path):
    for grey in (0, 128, 255):
        Image.new("RGB", (40, 30), (grey, grey, grey)).save(tmp_path / f"{grey}.png")
    assert find_candidates(find_images([tmp_path])) == []


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}.* no images"):
        find_images([SAMPLES, tmp_path])
    with pytest.raises(ValueError, match="no folder"):
        find_images([])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_images([tmp_path / "nowhere"])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="datasets.same_lesion.*'cv2'.*pip install -r requirements-extra.txt"):
        find_candidates(find_images([SAMPLES]))
