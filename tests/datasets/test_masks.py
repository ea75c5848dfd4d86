import numpy as np
import pytest
from PIL import Image

from datasets.masks import MaskReader, parse_mask_values, read_mask
from tests.datasets.test_isic import BLACK, BLUE, COLOURS, RED, lesion_mask, palette_mask, save

# ---- binary masks


@pytest.mark.parametrize("low, high", [(0, 1), (0, 255), (1, 2), (17, 200)])
def test_binary_mask_of_any_two_values(tmp_path, low, high):
    path = save(tmp_path / "m.png", np.where(lesion_mask(), high, low).astype(np.uint8))
    assert np.array_equal(read_mask(path)[0].numpy(), lesion_mask() * 255)


def test_binary_mask_of_one_bit(tmp_path):
    path = save(tmp_path / "m.png", lesion_mask().astype(bool))
    assert np.array_equal(read_mask(path)[0].numpy(), lesion_mask() * 255)


@pytest.mark.parametrize(
    "palette, indices",
    [((0, 0, 0, 128, 0, 0), (0, 1)), ((255, 255, 255, 0, 0, 0), (1, 0)), ((9, 0, 0, 0, 0, 0), (0, 1))],
)
def test_binary_mask_of_a_palette(tmp_path, palette, indices):
    """Two greys count by their brightness, two colours by their indices."""
    image = Image.new("P", (8, 6))
    image.putdata(np.array(indices, np.uint8)[lesion_mask()].flatten().tolist())
    image.putpalette(palette)
    image.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png")[0].numpy(), lesion_mask() * 255)


def test_binary_mask_of_rgb_and_of_16_bits(tmp_path):
    rgb = save(tmp_path / "rgb.png", np.repeat(lesion_mask()[..., None] * 255, 3, 2))
    deep = save(tmp_path / "deep.png", lesion_mask().astype(np.uint16) * 65535)
    for path in (rgb, deep):
        assert np.array_equal(read_mask(path)[0].numpy(), lesion_mask() * 255)


@pytest.mark.parametrize("value, expected", [(0, 0), (1, 255), (255, 255)])
def test_constant_mask(tmp_path, value, expected):
    path = save(tmp_path / "m.png", np.full((4, 4), value, np.uint8))
    assert (read_mask(path) == expected).all()


def test_ambiguous_masks_are_refused(tmp_path):
    constant = save(tmp_path / "constant.png", np.full((4, 4), 128, np.uint8))
    with pytest.raises(ValueError, match="constant.png.* 128;.*--mask-values"):
        read_mask(constant)
    assert (read_mask(constant, mask_values=(0, 128)) == 255).all()
    classes = save(tmp_path / "classes.png", np.arange(16, dtype=np.uint8).reshape(4, 4) % 3)
    with pytest.raises(ValueError, match="classes.png.* 0, 1, 2;.*--mask-values"):
        read_mask(classes)
    many = save(tmp_path / "many.png", np.arange(25, dtype=np.uint8).reshape(5, 5))
    with pytest.raises(ValueError, match="many.png.* 0, 1, .* and 15 more"):
        read_mask(many)


def test_grey_outline_stays_soft(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    assert np.array_equal(read_mask(save(tmp_path / "m.png", ramp))[0].numpy(), ramp)
    jpeg = save(tmp_path / "m.jpg", np.kron(lesion_mask() * 255, np.ones((8, 8), np.uint8)))
    assert (
        np.abs(read_mask(jpeg)[0].numpy().astype(int) - np.kron(lesion_mask() * 255, np.ones((8, 8), int))).max() < 60
    )


# ---- several classes


def class_map():
    return np.array([[0, 0, 1], [1, 2, 2]], np.uint8)


@pytest.mark.parametrize("values", [(0, 128, 255), (255, 128, 0), (0, 1, 2), (7, 3, 5)])
def test_classes_by_grey_value(tmp_path, values):
    path = save(tmp_path / "m.png", np.array(values, np.uint8)[class_map()])
    assert np.array_equal(read_mask(path, 3, values)[0].numpy(), class_map())


def test_classes_by_colour_and_by_palette_index(tmp_path):
    rgb = save(tmp_path / "rgb.png", np.array(COLOURS, np.uint8)[class_map()])
    image = Image.new("P", (3, 2))
    image.putdata(class_map().flatten().tolist())
    image.putpalette([part for colour in COLOURS for part in colour])
    image.save(tmp_path / "palette.png")
    for path, values in ((rgb, COLOURS), (tmp_path / "palette.png", COLOURS), (tmp_path / "palette.png", ())):
        assert np.array_equal(read_mask(path, 3, values)[0].numpy(), class_map())


def test_a_jpeg_mask_of_zeros_and_ones_is_refused_or_told_apart(tmp_path):
    """Compression adds noise, so that the values are no longer two, and none of them is foreground."""
    large = np.kron(lesion_mask(), np.ones((8, 8), np.uint8))
    path = save(tmp_path / "m.jpg", large)
    with pytest.raises(ValueError, match="m.jpg.* 0 to [1-3],.*--mask-values 0 1"):
        read_mask(path)
    for values in ((0, 1), (1, 0)):
        mask = read_mask(path, 1, values)[0].numpy() >= 128
        assert (mask == (large > 0) ^ (values == (1, 0))).mean() > 0.97
    assert read_mask(save(tmp_path / "empty.jpg", 0 * large)).max() == 0
    assert (read_mask(save(tmp_path / "usual.jpg", 255 * large))[0].numpy() >= 128).sum() == pytest.approx(
        large.sum(), rel=0.03
    )


def test_unexpected_class_values_are_named(tmp_path):
    grey = save(tmp_path / "grey.png", np.array([[0, 128, 130]], np.uint8))
    with pytest.raises(ValueError, match=r"grey.png.* 130; .*\(0, 128, 255\)"):
        read_mask(grey, 3, (0, 128, 255))
    rgb = save(tmp_path / "rgb.png", np.array([[(0, 0, 0), (1, 2, 3)]], np.uint8))
    with pytest.raises(ValueError, match=r"rgb.png.* \(1, 2, 3\)"):
        read_mask(rgb, 3, COLOURS)


def test_mask_values_of_a_config():
    assert parse_mask_values((), 1) == ()
    assert parse_mask_values(("0", "128"), 2) == (0, 128)
    assert parse_mask_values(("#000000", "#ff0000", "#0000FF"), 3) == COLOURS
    with pytest.raises(ValueError, match="--mask-values.* 2, .* 3"):
        parse_mask_values(("0", "1"), 3)
    with pytest.raises(ValueError, match="--mask-values.*'red'"):
        parse_mask_values(("0", "red"), 2)
    for texts in (("0", "#ff0000"), ("5", "5")):
        with pytest.raises(ValueError, match=f"--mask-values.*{texts[1]}"):
            parse_mask_values(texts, 2)


# ---- one rule for all masks of a folder


def reader_of(folder, masks, *options, **named):
    """A MaskReader of files 0.png, 1.png, ... of pictures or arrays, and its files."""
    files = [folder / f"{number}.png" for number in range(len(masks))]
    for path, mask in zip(files, masks, strict=True):
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path)
    return MaskReader(files, *options, **named), files


@pytest.mark.parametrize("second", [(RED, BLACK), (BLACK, (9, 9, 9), RED)])
@pytest.mark.parametrize("number", [1, 2])
def test_colours_tell_the_classes_where_one_of_two_is_black(tmp_path, second, number):
    masks = [palette_mask([[0, len(colours) - 1]], colours) for colours in ((BLACK, RED), second)]
    reader, files = reader_of(
        tmp_path, [*masks, palette_mask([[0, 0]], [BLACK]), palette_mask([[0, 0]], [RED])], number
    )
    red = 255 if number == 1 else 1
    expected = [[0, red], [red, 0] if second == (RED, BLACK) else [0, red], [0, 0], [red, red]]
    assert [reader.read(path)[0, 0].tolist() for path in files] == expected


@pytest.mark.parametrize("second", [(RED, BLACK), (BLACK, BLUE), (BLACK, BLUE, RED)])
@pytest.mark.parametrize("number", [1, 3])
def test_palettes_of_another_order_are_refused_unless_colours_are_given(tmp_path, second, number):
    """Another order of colours, or only those that occur."""
    first = (RED, BLUE) if second == (RED, BLACK) else (BLACK, RED)
    masks = [palette_mask([[0, len(colours) - 1]], colours) for colours in (first, second)]
    reader, files = reader_of(tmp_path, [*masks, palette_mask([[0, 1, 2]], COLOURS)], number)
    for path in files:
        with pytest.raises(ValueError, match=r"(\d.png).*(?!\1)\d.png.*--mask-values.*\"#.*\" \"#"):
            reader.read(path)
    reader = MaskReader(files, 3, COLOURS)
    for path, colours in zip(files, (first, second), strict=False):
        assert reader.read(path)[0, 0].tolist() == [COLOURS.index(colours[index]) for index in (0, len(colours) - 1)]


def test_unused_colours_of_a_palette_change_nothing(tmp_path, caplog):
    white = (255, 255, 255)
    masks = [palette_mask(lesion_mask(), [BLACK, white]), palette_mask(1 - lesion_mask(), [white, BLACK, RED])]
    reader, files = reader_of(tmp_path, masks)
    assert all(np.array_equal(reader.read(path)[0].numpy(), lesion_mask() * 255) for path in files)


def test_a_value_that_is_alone_is_read_as_in_the_other_masks(tmp_path):
    reader, files = reader_of(tmp_path, [lesion_mask() + 1, np.full((6, 8), 1, np.uint8), np.full((6, 8), 2, np.uint8)])
    assert [int(reader.read(path).max()) for path in files] == [255, 0, 255]
    assert reader.read(files[2]).min() == 255
    alone = [np.full((6, 8), value, np.uint8) for value in (1, 2)]
    reader, files = reader_of(tmp_path, alone)  # together they are two values
    assert [int(reader.read(path).max()) for path in files] == [0, 255]
    one_bit = Image.new("1", (8, 6), 1)  # white
    reader, files = reader_of(tmp_path, [lesion_mask(), np.ones((6, 8), np.uint8), one_bit])
    assert [int(reader.read(path).min()) for path in files] == [0, 255, 255]


def test_values_that_mean_both_are_refused(tmp_path):
    reader, files = reader_of(tmp_path, [lesion_mask(), lesion_mask() + 1, np.full((6, 8), 1, np.uint8)])
    assert reader.read(files[0]).max() == 255
    for path in files[1:]:
        with pytest.raises(ValueError, match=rf"{path.name} .*--mask-values.*0, 1, 2"):
            reader.read(path)
    reader, files = reader_of(tmp_path, [lesion_mask() * 255, np.full((6, 8), 1, np.uint8)])
    with pytest.raises(ValueError, match=r"1.png.* 1;.*--mask-values.*0, 1, 255"):
        reader.read(files[1])


def test_the_ignore_label_stays_as_it_is(tmp_path):
    """The label is a grey value, an index of a palette, or the grey among colours."""
    void = np.array([[0, 1, 2, 255]], np.uint8)
    colours = [*COLOURS, *[(0, 9, 0)] * 252, (224, 224, 192)]
    in_colours = np.array([*COLOURS, (255, 255, 255)], np.uint8)[[[0, 1, 2, 3]]]
    cases = [
        (void, ()),
        (palette_mask(void, colours), ()),
        (in_colours, COLOURS),
    ]
    for mask, values in cases:
        reader, (path,) = reader_of(tmp_path, [mask], 3, values, ignore_label=255)
        assert reader.read(path)[0].tolist() == void.tolist()
    with pytest.raises(ValueError, match="0.png.* 255.*--ignore-label 255"):
        reader_of(tmp_path, [void], 3)[0].read(tmp_path / "0.png")
    with pytest.raises(ValueError, match="0.png.* 0, 1, 2, 255.*--num-classes 3 --ignore-label 255"):
        read_mask(tmp_path / "0.png")
    for label, number, values in ((255, 1, ()), (2, 3, ()), (256, 3, ()), (128, 3, (0, 128, 255))):
        with pytest.raises(ValueError, match=f"--ignore-label.* {label} .*--num-classes"):
            MaskReader([], number, values, label)


@pytest.mark.parametrize("name, options", [("m.jpg", {}), ("m.png", {"format": "JPEG"})])
def test_lossy_masks_are_told_by_their_content(tmp_path, name, options):
    """Compression blurs 0 and 1; the name of the file does not tell."""
    large = np.kron(lesion_mask(), np.ones((8, 8), np.uint8))
    Image.fromarray(large * 3).save(tmp_path / name, **options)
    with pytest.raises(ValueError, match=f"{name}.*--mask-values 0 1"):
        read_mask(tmp_path / name)
    Image.fromarray(large).save(tmp_path / "exact.webp", lossless=True)
    assert np.array_equal(read_mask(tmp_path / "exact.webp")[0].numpy(), large * 255)


@pytest.mark.parametrize("background, lesion", [((0, 255, 0), (255, 0, 0)), ((255, 255, 0), (0, 0, 255))])
def test_the_brightness_of_two_colours_tells_no_object(tmp_path, background, lesion):
    image = np.where(lesion_mask()[..., None], lesion, background).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png.* 2 colours.*--mask-values"):
        read_mask(tmp_path / "a.png")
    values = [background, lesion]
    assert np.array_equal(read_mask(tmp_path / "a.png", mask_values=values)[0] == 255, lesion_mask())
    Image.fromarray(np.where(lesion_mask()[..., None], lesion, 0).astype(np.uint8)).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png")[0] == 255, lesion_mask())
