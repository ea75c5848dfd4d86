import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets.image_reading import read_image
from datasets.isic import ISICDataset, find_pairs
from datasets.masks import read_mask
from datasets.transforms import ISICTransform
from inference.image_files import read_picture
from inference.inputs import Input

COLOURS = BLACK, RED, BLUE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def make_folder(root, images, masks):
    """Files of 4x4 pixels under root/images and root/masks."""
    for kind, names in (("images", images), ("masks", masks)):
        (root / kind).mkdir(parents=True)
        for name in names:
            if name.endswith((".txt", ".db")):
                (root / kind / name).write_text("not an image")
            else:
                Image.new("L", (4, 4)).save(root / kind / name)
    return root / "images", root / "masks"


def lesion_mask():
    mask = np.zeros((6, 8), np.uint8)
    mask[2:5, 3:7] = 1
    return mask


def palette_mask(indices, colours):
    mask = Image.fromarray(np.asarray(indices, np.uint8))
    mask.putpalette(np.array(colours, np.uint8).tobytes())
    return mask


# ---- pairs


def test_files_are_paired_by_stem(tmp_path):
    images = ["b.jpg", "a.png", "c.JPG", "d.bmp", "e.tif", "f.jpeg"]
    masks = ["c_segmentation.png", "a.png", "b_segmentation.png", "d.bmp", "e.tif", "f.png"]
    pairs = find_pairs(*make_folder(tmp_path, images, masks))
    assert [stem for stem, _, _ in pairs] == list("abcdef")
    assert [(image.name, mask.name) for _, image, mask in pairs][1:3] == [
        ("b.jpg", "b_segmentation.png"),
        ("c.JPG", "c_segmentation.png"),
    ]


def test_what_is_not_a_pair_is_ignored(tmp_path):
    images = ["a.jpg", "a_superpixels.png", "._a.jpg", "Thumbs.db", "ATTRIBUTION.txt"]
    assert len(find_pairs(*make_folder(tmp_path, images, ["a_segmentation.png", ".hidden.png"]))) == 1


def test_an_image_may_itself_end_in_segmentation(tmp_path):
    pairs = find_pairs(*make_folder(tmp_path, ["a_segmentation.png", "b.png"], ["a_segmentation.png", "b.png"]))
    assert [stem for stem, _, _ in pairs] == ["a_segmentation", "b"]


def test_files_without_a_partner_are_named(tmp_path):
    folders = make_folder(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["b.png", "x.png"])
    with pytest.raises(ValueError, match="3 files.*images/a.jpg, images/c.jpg, masks/x.png"):
        find_pairs(*folders)


def test_of_many_files_the_first_are_named(tmp_path):
    folders = make_folder(tmp_path, [f"i{n:02d}.jpg" for n in range(15)], ["i00.png"])
    with pytest.raises(ValueError, match="14 files.*images/i10.jpg and 4 more"):
        find_pairs(*folders)


@pytest.mark.parametrize(
    "images, masks", [(["a.jpg", "a.png"], ["a.png"]), (["a.jpg"], ["a.png", "a_segmentation.png"])]
)
def test_a_stem_that_occurs_twice_is_named(tmp_path, images, masks):
    with pytest.raises(ValueError, match=r"(images|masks).*: a\.\w+, a"):
        find_pairs(*make_folder(tmp_path, images, masks))


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="images .*data/README.md"):
        find_pairs(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(ValueError, match="images .*.png"):
        find_pairs(*make_folder(tmp_path, [], ["a.png"]))


def test_names_are_paired_in_any_unicode_form(tmp_path):
    composed, decomposed = "l\u00e4sion.png", "la\u0308sion.png"
    assert [stem for stem, *_ in find_pairs(*make_folder(tmp_path, [composed], [decomposed]))] == ["l\u00e4sion"]
    with pytest.raises(ValueError, match="images holds several"):
        find_pairs(*make_folder(tmp_path / "both", [composed, decomposed], [composed]))


# ---- images


def test_every_kind_of_image_is_read_as_rgb(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert torch.equal(read_image(save(tmp_path / "grey.png", grey)), torch.from_numpy(grey).expand(3, 6, 8))
    rgba = np.dstack([grey, grey + 1, grey + 2, np.full_like(grey, 9)])
    assert torch.equal(read_image(save(tmp_path / "rgba.png", rgba))[2], torch.from_numpy(grey + 2))
    deep = read_image(save(tmp_path / "deep.png", grey.astype(np.uint16) * 80 + 1000))
    assert deep.dtype == torch.uint8 and deep.min() == 0 and deep.max() == 255 and len(deep.unique()) == 48


def transparent_pictures():
    """{name: (picture, options of saving)}: colours that nobody sees, of each kind that Pillow reads."""
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    half = np.where(grey < 24, 0, 255).astype(np.uint8)
    rgba = np.dstack([grey, grey, grey, half])
    palette = Image.fromarray(grey)
    palette.putpalette(np.arange(768, dtype=np.uint8).tobytes())
    return {
        "rgba": (Image.fromarray(rgba), {}),
        "nothing": (Image.fromarray(rgba * np.array([1, 1, 1, 0], np.uint8)), {}),
        "la": (Image.fromarray(rgba).convert("LA"), {}),
        "palette": (palette, {"transparency": 5}),
        "colour": (Image.fromarray(rgba[..., :3]), {"transparency": (7, 7, 7)}),
        "deep": (Image.fromarray(grey.astype(np.uint16)), {"transparency": 7}),
    }


@pytest.mark.parametrize("name", transparent_pictures())
def test_transparent_images_are_refused_in_training_and_prediction(tmp_path, name):
    picture, options = transparent_pictures()[name]
    picture.save(tmp_path / "a.png", **options)
    for read in (read_image, lambda path: read_picture(Input(path, "image"))):
        with pytest.raises(ValueError, match="a.png.* transparent"):
            read(tmp_path / "a.png")
    picture.save(tmp_path / "mask.png", **options)
    if name == "palette":  # of a mask the indices count
        assert read_mask(tmp_path / "mask.png", 48).max() == 47


def test_a_large_profile_or_text_of_a_png_costs_nothing_but_a_bomb_is_refused(tmp_path):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    picture.save(tmp_path / "plain.png", icc_profile=np.random.default_rng(0).bytes(2**21))
    text = PngInfo()
    text.add_text("notes", "x" * 2**22, zip=True)
    picture.save(tmp_path / "text.png", pnginfo=text)
    for name in ("plain.png", "text.png"):
        assert np.array_equal(read_image(tmp_path / name)[0].numpy(), np.asarray(picture))
    picture.save(tmp_path / "bomb.png", icc_profile=bytes(2**26 + 1))
    with pytest.raises(ValueError, match="bomb.png"):
        read_image(tmp_path / "bomb.png")


def test_a_broken_file_is_named(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(ValueError, match="a.png"):
        read_image(path)


def write_tiff(path, pixels, photometric, orientation=1):
    """A TIFF file of an array (H, W) or (H, W, 3) of any depth, which Pillow does not write."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("<"))
    height, width, *bands = pixels.shape
    bands = bands[0] if bands else 1
    bits = pixels.dtype.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (274, orientation)]
    tags += [(277, bands), (278, height), (279, pixels.nbytes), (284, 1)]
    extra = struct.pack("<3H", *[bits] * 3) if bands == 3 else b""
    data = pixels.tobytes() + extra
    content = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags))
    for tag, value in tags:
        count, kind = (3, 3) if tag == 258 and extra else (1, 4)
        content += struct.pack("<HHII", tag, kind, count, 8 + pixels.nbytes if count == 3 else value)
    path.write_bytes(content + struct.pack("<I", 0))
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_as_zero_is_heeded_at_any_depth(tmp_path, dtype):
    """A bright square on black, stored both ways, as image and as mask."""
    highest = np.iinfo(dtype).max
    square = lesion_mask().astype(dtype) * highest
    for name, values, photometric in (("black0.tif", square, 1), ("white0.tif", highest - square, 0)):
        path = write_tiff(tmp_path / name, values, photometric)
        assert np.array_equal(read_image(path)[0].numpy(), lesion_mask() * 255), name
        assert np.array_equal(read_mask(path)[0].numpy(), lesion_mask() * 255), name


def test_colours_of_16_bits_are_refused_by_what_the_file_says(tmp_path):
    colours = np.random.default_rng(0).integers(0, 2**16, (30, 55, 3)).astype(np.uint16)
    with pytest.raises(ValueError, match="deep.tif.* 16 bits.* 8"):
        read_image(write_tiff(tmp_path / "deep.tif", colours, 2))
    content = bytearray(save_png_bytes(np.zeros((4, 4, 3), np.uint8)))
    content[24] = 16  # the bit depth
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "deep.png").write_bytes(content)
    with pytest.raises(ValueError, match="deep.png.* 16 bits.* 8"):
        read_image(tmp_path / "deep.png")
    # 2160 bytes a row, and strips of 1602 and more bytes: only their numbers hold a 16
    eight = np.random.default_rng(0).integers(0, 256, (8, 720, 3), dtype=np.uint8)
    assert read_image(save(tmp_path / "w720.bmp", eight)).shape == (3, 8, 720)
    for width in range(50, 60):
        Image.fromarray(eight[:, :width]).save(tmp_path / "lzw.tif", compression="tiff_lzw")
        assert np.array_equal(read_image(tmp_path / "lzw.tif").permute(1, 2, 0).numpy(), eight[:, :width])


def save_png_bytes(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def test_a_phones_jpeg_with_extras_is_its_first_picture(tmp_path):
    """Many phones store a depth or brightness map behind the photograph, which Pillow calls MPO."""
    first, extra = Image.new("RGB", (20, 10), (200, 30, 30)), Image.new("RGB", (10, 5))
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[extra])
    image = read_image(tmp_path / "phone.jpg")
    assert image.shape == (3, 10, 20) and image[0].float().mean() > 190


def test_files_that_training_does_not_use_are_named(tmp_path, caplog):
    images, masks = make_folder(tmp_path, ["a.jfif", "b.webp", "c.gif"], ["a.png", "b.png"])
    (masks / "more").mkdir()
    assert [stem for stem, _, _ in find_pairs(images, masks)] == ["a", "b"]
    assert re.search("images: 1 .*c.gif", caplog.text) and re.search("masks: 1 .*more", caplog.text)


# ---- the data set


def make_dataset(root, count=4, augment=True, **options):
    rng = np.random.default_rng(1)
    for number in range(count):
        save(root / "train" / "images" / f"i{number}.png", rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        save(root / "train" / "masks" / f"i{number}_segmentation.png", np.roll(lesion_mask(), number, 1) * 255)
    return ISICDataset(root, "train", ISICTransform(16, angle=20.0), augment=augment, **options)


def test_items(tmp_path):
    dataset = make_dataset(tmp_path)
    image, mask, name = dataset[2]
    assert len(dataset) == 4 and name == "i2"
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 255
    assert mask.shape == (1, 16, 16) and mask.dtype == torch.float32


def test_randomness_depends_on_seed_epoch_and_index_only(tmp_path):
    dataset = make_dataset(tmp_path)
    first = [dataset[3, index][0] for index in range(4)]
    again = [dataset[3, index][0] for index in reversed(range(4))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    epochs = [torch.cat([dataset[epoch, index][0] for index in range(4)]) for epoch in range(4)]
    assert not all(torch.equal(epochs[0], other) for other in epochs[1:])
    assert torch.equal(dataset[1][0], dataset[0, 1][0])  # a plain index belongs to epoch 0


def test_without_augmentation_epochs_are_equal(tmp_path):
    dataset = make_dataset(tmp_path, augment=False)
    assert all(torch.equal(dataset[0, 1][0], dataset[epoch, 1][0]) for epoch in range(1, 6))


def test_preloaded_items_are_the_same(tmp_path):
    dataset = make_dataset(tmp_path)
    before = [dataset[1, index] for index in range(4)]
    assert dataset.decoded_bytes() == 4 * 4 * 6 * 8
    dataset.preload()
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    for (image, mask, name), index in zip(before, range(4), strict=True):
        assert torch.equal(dataset[1, index][0], image) and torch.equal(dataset[1, index][1], mask)
        assert dataset[1, index][2] == name


def test_a_mask_of_other_size_is_named(tmp_path):
    dataset = make_dataset(tmp_path)
    save(tmp_path / "train" / "masks" / "i1_segmentation.png", np.zeros((6, 9), np.uint8))
    with pytest.raises(ValueError, match="i1.png.* 8x6 .*i1_segmentation.png.* 9x6"):
        dataset[1]


def test_a_data_set_compares_the_masks_of_all_its_parts(tmp_path):
    """Training has black and red, and in validation is one mask that is stored the other way around."""
    dataset = make_dataset(tmp_path)
    for path in (tmp_path / "train" / "masks").iterdir():
        palette_mask(lesion_mask(), [BLACK, RED]).save(path)
    for kind, picture in (("images", Image.open(tmp_path / "train" / "images" / "i1.png")), ("masks", None)):
        (tmp_path / "val" / kind).mkdir(parents=True)
        (picture or palette_mask(1 - lesion_mask(), [RED, BLACK])).save(tmp_path / "val" / kind / "v.png")
    val = ISICDataset(tmp_path, "val", dataset.transform)
    assert np.array_equal(val.decode(0)[1][0].numpy(), lesion_mask() * 255)
