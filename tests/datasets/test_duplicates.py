import io

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import duplicates
from datasets.duplicates import find_duplicates, fingerprint
from datasets.synthetic import lesion


def picture(number, size=64):
    return torch.from_numpy(lesion(np.random.default_rng(number), size)[0]).permute(2, 0, 1)


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=quality)
    return to_tensor(Image.open(file))


def found(**images):
    return [
        (pair.first, pair.second, pair.kind) for pair in find_duplicates({n: fingerprint(i) for n, i in images.items()})
    ]


def test_equal_pixels_are_found_whatever_the_name():
    images = {f"i{number}": picture(number) for number in range(6)}
    assert found(**images) == []
    assert found(**images, copy=picture(3)) == [("copy", "i3", "same pixels")]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: jpeg(image, 60),
        lambda image: image.flip(2),
        lambda image: image.rot90(1, (1, 2)),
        lambda image: image.flip(1).rot90(3, (1, 2)),
        lambda image: to_tensor(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 80))),
        lambda image: (image * 0.8 + 20).to(torch.uint8),
    ],
)
def test_similar_pictures_are_found(change):
    images = {f"i{number}": picture(number) for number in range(12)}
    assert found(**images, copy=change(picture(5))) == [("copy", "i5", "similar")]


def test_pixels_of_another_size_are_not_the_same():
    image = torch.arange(48, dtype=torch.uint8).reshape(3, 2, 8)
    assert fingerprint(image).pixels != fingerprint(image.permute(1, 2, 0).reshape(4, 4, 3).permute(2, 0, 1)).pixels


def test_pictures_without_content_resemble_nothing():
    flat = {f"flat{grey}": torch.full((3, 20, 20), grey, dtype=torch.uint8) for grey in (0, 100, 255)}
    noisy = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    noisy[0, 0, 0] = 101
    assert found(**flat, noisy=noisy) == []
    assert found(**flat, copy=flat["flat0"].clone()) == [("copy", "flat0", "same pixels")]


def test_the_table_may_be_cut_anywhere(monkeypatch):
    images = {f"i{number}": picture(number % 5) for number in range(11)}
    whole = found(**images)
    monkeypatch.setattr(duplicates, "ROWS", 3)
    assert found(**images) == whole and len(whole) == 7  # 0 three times, the others twice
