"""PNG files, read back by Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from utils.png import encode_png


def opened(content):
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # the sums of all chunks
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 1), (40, 30), (1, 1, 3), (40, 30, 3), (5, 301, 3)])
def test_pixels_are_kept(shape):
    picture = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    image = opened(encode_png(picture))
    assert image.mode == ("RGB" if len(shape) == 3 else "L")
    assert np.array_equal(np.asarray(image), picture)


def test_parts_of_arrays_are_kept():
    picture = np.random.default_rng(0).integers(256, size=(20, 30, 4), dtype=np.uint8)
    for part in (picture[::2, ::-1, :3], picture[..., 1].T):
        assert np.array_equal(np.asarray(opened(encode_png(part))), part)


def test_sixteen_bits_are_kept():
    picture = np.random.default_rng(0).integers(65536, size=(20, 30), dtype=np.uint16)
    image = opened(encode_png(picture))
    assert image.mode == "I;16" and np.array_equal(np.asarray(image), picture)


def test_class_numbers_are_kept_beside_their_colours():
    labels = np.random.default_rng(0).integers(3, size=(20, 30), dtype=np.uint8)
    colours = [(0, 0, 0), (213, 94, 0), (1, 2, 255)]
    image = opened(encode_png(labels, colours))
    assert image.mode == "P" and np.array_equal(np.asarray(image), labels)
    assert np.array_equal(np.asarray(image.convert("RGB")), np.array(colours)[labels])


def test_exif_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode_png(np.zeros((2, 3), np.uint8), exif=exif.tobytes())
    assert opened(content).getexif()[0x0112] == 6
    assert content.partition(b"eXIf")[2][:2] in (b"II", b"MM")  # without what begins it in a JPEG file


def test_a_mask_takes_little_space():
    mask = np.zeros((1024, 1024), np.uint8)
    mask[300:700, 200:900] = 255
    assert len(encode_png(mask)) < 20_000


@pytest.mark.parametrize(
    ("picture", "palette"),
    [
        (np.zeros((4, 4), np.int64), ()),
        (np.zeros((4, 4, 4), np.uint8), ()),
        (np.zeros((0, 4), np.uint8), ()),
        (np.zeros((4, 4, 3), np.uint16), ()),
        (np.zeros((4, 4), np.uint8), [(0, 0, 0)] * 257),
        (np.zeros((4, 4, 3), np.uint8), [(0, 0, 0)]),
    ],
)
def test_what_is_no_picture_is_refused(picture, palette):
    with pytest.raises(ValueError, match=f"{picture.dtype}"):
        encode_png(picture, palette)
