"""Prediction: the masks of the training scripts' test, in the input's own size and geometry, and files that survive."""

import json
import locale
import os
import re
import signal

import h5py
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from datasets.intensities import scale_hu
from inference.inputs import find_inputs, unique_names
from predict import PredictConfig, Prediction, Predictor
from tests.inference.networks import SIZE, SMALL, save_trained
from utils.files import read_rows


def run(checkpoint, *inputs, output, **options):
    options = {"device": "cpu"} | options
    predict.main(
        PredictConfig(checkpoint=str(checkpoint), inputs=tuple(map(str, inputs)), output=str(output), **options)
    )


def read(path):
    with Image.open(path) as picture:
        return np.array(picture)


# ---- the same as the training scripts


def test_masks_of_images_are_those_of_the_training_scripts_test(folder, binary, tmp_path):
    config = ISICConfig(**SMALL, data_path=str(folder / "isic"), work_dir=str(tmp_path / "runs"), test_only=str(binary))
    train.main(config)
    run(binary, folder / "isic/val/images", output=tmp_path / "out", batch_size=4)
    (tested,) = (tmp_path / "runs").glob("*/predictions")
    names = sorted(path.name for path in tested.glob("*.png") if "overlay" not in path.name)
    assert len(names) == 5 and names == sorted(path.name for path in (tmp_path / "out/masks").iterdir())
    shares = []
    for name in names:
        mask = read(tmp_path / "out/masks" / name)
        np.testing.assert_array_equal(mask, read(tested / name))
        shares.append((mask > 0).mean())
    assert 0 < np.mean(shares) < 1


FITS = {
    "zoomed": {},
    "padded": dict(slice_fit="pad", image_size=64),
    "larger than the network's size": dict(slice_fit="pad"),
    "with context": dict(context=1),
    "with context, padded": dict(context=2, input_channels=5, slice_fit="pad", image_size=64),
}


@pytest.mark.parametrize("case", FITS)
def test_masks_of_volumes_are_those_of_the_training_scripts_test(folder, tmp_path, case):
    data, values = folder / "synapse", SMALL | FITS[case]
    organs = save_trained(tmp_path, SynapseConfig(**values))
    config = SynapseConfig(**values, data_path=str(data), work_dir=str(tmp_path / "runs"), test_only=str(organs))
    train_synapse.main(config)
    (tested,) = (tmp_path / "runs").glob("*/predictions/*_pred.nii.gz")
    case = tested.name.removesuffix("_pred.nii.gz")
    options = dict(batch_size=4, scan_backend=SMALL["scan_backend"])  # a tie must not depend on rounding
    run(organs, data / "test_vol_h5" / f"{case}.npy.h5", output=tmp_path / "out", **options)
    found, expected = nibabel.load(tmp_path / f"out/masks/{case}.nii.gz"), nibabel.load(tested)
    np.testing.assert_array_equal(found.dataobj, expected.dataobj)
    np.testing.assert_allclose(found.affine, expected.affine)  # the spacing of the h5 file
    assert len(np.unique(found.dataobj)) > 1
    with h5py.File(data / "test_vol_h5" / f"{case}.npy.h5") as file:
        ml = np.prod(file.attrs["spacing"]) / 1000
    for row in read_rows(tmp_path / "out/structures.csv"):
        count = np.count_nonzero(np.asarray(found.dataobj) == int(row["class"]))
        assert int(row["pixels"]) == count and float(row["volume_ml"]) == pytest.approx(count * ml)


@pytest.mark.parametrize("case", [case for case in FITS if case != "zoomed"])
def test_probabilities_and_views_of_slices_are_at_their_place(folder, tmp_path, case):
    path = save_trained(tmp_path, SynapseConfig(**SMALL | FITS[case], volume_resize="logits"))
    (scan,) = (folder / "synapse/test_vol_h5").glob("case0003*")
    single, views = (Predictor(path, device="cpu", probabilities=True, tta=tta) for tta in ("none", "flips"))
    first, averaged = single.predict(scan), views.predict(scan)
    assert first.probabilities.shape == averaged.probabilities.shape == (9, *first.mask.shape)
    assert (first.probabilities.argmax(0) == first.mask).mean() > 0.99
    assert averaged.disagreement.shape == first.mask.shape


def test_networks_of_other_contexts_are_not_averaged(folder, tmp_path):
    paths = []
    for context in (0, 1):
        (tmp_path / str(context)).mkdir()
        torch.manual_seed(context)
        paths.append(
            save_trained(tmp_path / str(context), SynapseConfig(**SMALL | dict(context=context, d_state=2 + context)))
        )
    with pytest.raises(ValueError, match="--context 1, expected 0"):
        Predictor(paths, device="cpu")


# ---- volumes


@pytest.fixture(scope="module")
def scan(tmp_path_factory, folder):
    """The same CT as NIfTI in two orientations, as DICOM and as h5: {kind: path}, and its spacing."""
    sitk = pytest.importorskip("SimpleITK")
    scans = tmp_path_factory.mktemp("scan")
    path = min((folder / "synapse/test_vol_h5").glob("*.npy.h5"))
    with h5py.File(path) as file:
        hu = (file["image"][:, :, :36] * 600 - 200).round().astype(np.int16)  # (S, H, W)
    affine = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 80.5], [0, 0, 2.5, -300], [0, 0, 0, 1]])
    for name in ("h5", "placed"):
        with h5py.File(scans / f"{name}.npy.h5", "w") as file:
            file["image"] = scale_hu(hu)
            if name == "placed":
                file.attrs.update(affine=affine, spacing=(2.5, 0.8, 0.7))
    lps = nibabel.Nifti1Image(hu.transpose(2, 1, 0), affine)
    nibabel.save(lps, scans / "lps.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(lps), scans / "ras.nii")
    (scans / "series").mkdir()
    spoken = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, pixels in enumerate(hu):
        image = sitk.GetImageFromArray(pixels)
        image.SetSpacing((0.7, 0.8))
        tags = {
            "0008|0060": "CT",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{i + 1}",
            "0020|0032": f"-90\\-80.5\\{2.5 * i - 300}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(i),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(scans / "series" / f"IM{9 - i}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, spoken)  # the writer sets it to C for the whole process, and text files to ASCII
    return scans


def test_a_scan_gets_one_mask_from_any_file_in_its_own_geometry(organs, scan, tmp_path):
    run(organs, scan, output=tmp_path, probabilities=True)
    masks = {kind: nibabel.load(tmp_path / f"masks/{kind}.nii.gz") for kind in ("lps", "ras", "series", "h5", "placed")}
    for kind, ending in (("lps", ".nii.gz"), ("ras", ".nii")):
        stored = nibabel.load(scan / (kind + ending))
        assert masks[kind].shape == stored.shape and masks[kind].get_data_dtype() == np.uint8
        np.testing.assert_array_equal(masks[kind].affine, stored.affine)
    for kind in ("series", "placed"):
        np.testing.assert_allclose(masks[kind].affine, masks["lps"].affine, atol=1e-4)
    canonical = {kind: nibabel.as_closest_canonical(mask) for kind, mask in masks.items()}
    for kind in ("lps", "series", "h5", "placed"):
        np.testing.assert_array_equal(canonical[kind].dataobj, canonical["ras"].dataobj)
    probs = nibabel.load(tmp_path / "probabilities/lps.nii.gz")
    assert probs.shape == (*masks["lps"].shape, 9)
    np.testing.assert_allclose(np.asarray(probs.dataobj).sum(-1), 1, atol=1e-3)
    volumes = {row["name"]: row["volume_ml"] for row in read_rows(tmp_path / "structures.csv") if row["class"] == "5"}
    assert volumes["h5"] == "" and float(volumes["series"]) == pytest.approx(float(volumes["lps"]), rel=1e-4)


def test_a_series_with_a_slice_missing_is_refused(organs, scan, tmp_path):
    for path in (scan / "series").iterdir():
        if path.name != "IM7.dcm":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}.* 2.5 to 5 mm"):
        Predictor(organs, device="cpu").predict(tmp_path)


def test_unknown_scaling_must_be_stated(folder, scan):
    path = save_trained(folder, SynapseConfig(**SMALL | {"dataset": "mri"}))
    with pytest.raises(ValueError, match="lps.nii.gz .*-200 .*400.*--window"):
        Predictor(path, device="cpu").predict(scan / "lps.nii.gz")
    stated = Predictor(path, device="cpu", window=(-125, 275)).predict(scan / "lps.nii.gz")
    np.testing.assert_array_equal(stated.mask, Predictor(path, device="cpu").predict(scan / "h5.npy.h5").mask)


def test_a_network_of_images_takes_the_slices_of_a_volume(binary, scan):
    with pytest.raises(ValueError, match="lps.nii.gz .*--insist"):
        Predictor(binary, device="cpu").predict(scan / "lps.nii.gz")
    result = Predictor(binary, device="cpu", insist=True).predict(scan / "lps.nii.gz")
    slices = np.asarray(nibabel.load(scan / "lps.nii.gz").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(result.mask[2], Predictor(binary, device="cpu").predict(slices[2]).mask)


# ---- images


def test_images_of_every_kind_and_size_get_a_mask_of_their_own_size(binary, colours, tmp_path):
    grey, images = colours[..., 0], tmp_path / "images"
    images.mkdir()
    Image.fromarray(colours).save(images / "rgb.png")
    Image.fromarray(np.dstack([colours, np.full_like(grey, 255)])).save(images / "rgba.png")
    Image.fromarray(colours).save(images / "colour.bmp")
    Image.fromarray(grey).save(images / "grey.tif")
    Image.fromarray(grey.astype(np.uint16) * 257).save(images / "deep.png")
    Image.fromarray(grey / np.float32(7)).save(images / "float.tiff")
    Image.fromarray(colours).quantize(16).save(images / "palette.png")
    (images / "deeper").mkdir()
    Image.fromarray(colours).resize((1, 1)).save(images / "deeper" / "tiny.jpg")
    run(binary, images, output=tmp_path / "out", batch_size=3)
    masks = {path.stem: read(path) for path in (tmp_path / "out/masks").iterdir()}
    assert masks.pop("tiny").shape == (1, 1)
    assert len(masks) == 7 and {mask.shape for mask in masks.values()} == {(50, 70)}
    assert set(np.unique(masks["rgb"])) == {0, 255}
    for same in (("rgb", "rgba", "colour"), ("grey", "deep", "float")):  # min-max does not see a scale
        for name in same[1:]:
            assert (masks[name] == masks[same[0]]).mean() > 0.999
    overlay = read(tmp_path / "out/overlays/rgb.png")
    assert overlay.shape == (50, 70, 3) and (overlay == (255, 60, 40)).all(-1).any()


def test_a_photograph_and_its_mask_are_turned_alike_by_viewers(binary, colours, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "photo.png", exif=exif)
    run(binary, tmp_path / "photo.png", output=tmp_path / "out")
    for kind in ("masks", "overlays"):
        with Image.open(tmp_path / "out" / kind / "photo.png") as picture:
            assert picture.size == (70, 50) and picture.getexif()[0x0112] == 6


def test_a_tiff_is_turned_once(binary, colours, tmp_path):
    """Pillow turns its pixels as the tag says; the tag must not be passed on too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "photo.tif", exif=exif)
    run(binary, tmp_path / "photo.tif", output=tmp_path / "out")
    turned = np.ascontiguousarray(np.rot90(colours, -1))
    with Image.open(tmp_path / "out/masks/photo.png") as picture:
        assert 0x0112 not in picture.getexif()
        np.testing.assert_array_equal(np.array(picture) > 0, Predictor(binary, device="cpu").predict(turned).mask)


def test_the_library_takes_arrays_and_paths(binary, colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / "a.png")
    predictor = Predictor(binary, device="cpu", probabilities=True)
    result = predictor.predict(colours)
    np.testing.assert_array_equal(result.mask, predictor.predict(tmp_path / "a.png").mask)
    np.testing.assert_array_equal(result.mask, result.probabilities[0] >= 0.5)
    assert result.overlay().size == (70, 50)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\)"):
        predictor.predict(np.zeros((2, 3, 4, 5)))


def test_the_threshold_and_the_probabilities_fit_the_mask(binary, colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / "a.png")
    run(binary, tmp_path / "a.png", output=tmp_path / "out", threshold=0.6, probabilities=True)
    probs = read(tmp_path / "out/probabilities/a_foreground.png") / 65535
    mask = read(tmp_path / "out/masks/a.png") > 0
    assert (probs[mask] > 0.6 - 1e-4).all() and (probs[~mask] < 0.6 + 1e-4).all() and mask.any() and not mask.all()
    assert json.loads((tmp_path / "out/prediction.json").read_text(encoding="utf-8"))["network"]["threshold"] == 0.6


def test_classes_of_images_are_a_palette(folder, colours, tmp_path):
    path = save_trained(folder, ISICConfig(**SMALL | {"dataset": "own"}, num_classes=3))
    Image.fromarray(colours).save(tmp_path / "a.png")
    run(path, tmp_path / "a.png", output=tmp_path / "out")
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.mode == "P"
        mask = np.array(mask)
    np.testing.assert_array_equal(mask, Predictor(path, device="cpu").predict(colours).mask)
    assert len(np.unique(mask)) > 1
    assert [row["structure"] for row in read_rows(tmp_path / "out/structures.csv")] == ["class 1", "class 2"]


def test_areas_and_volumes_by_hand():
    mask = np.zeros((4, 5), np.uint8)
    mask[1, :3], mask[2, 0] = 1, 2
    first, second = Prediction(mask, None, ["a", "b"], None, np.array([0.5, 2.0])).structures()
    assert (first["pixels"], first["share"], first["area_mm2"], first["volume_ml"]) == (3, 3 / 20, 3.0, "")
    assert (second["structure"], second["class"], second["area_mm2"]) == ("b", 2, 1.0)
    (row,) = Prediction(np.ones((2, 5, 10), np.uint8), None, ["a"], None, np.array([5.0, 1, 2])).structures()
    assert (row["pixels"], row["area_mm2"], row["volume_ml"]) == (100, "", 1.0)
    (row,) = Prediction(np.ones((2, 5), np.uint8), None, ["a"], None, None).structures()
    assert (row["area_mm2"], row["volume_ml"]) == ("", "")


# ---- views, windows, batches


def test_views_make_the_prediction_turn_with_the_image(binary):
    image = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for tta, turned in (("flips", image[::-1]), ("flips_rotations", np.rot90(image))):
        predictor = Predictor(binary, device="cpu", probabilities=True, tta=tta)
        plain = Predictor(binary, device="cpu", probabilities=True)
        undo = (lambda p: p[:, ::-1]) if tta == "flips" else (lambda p: np.rot90(p, -1, (1, 2)))
        straight, back = predictor.predict(image).probabilities, undo(predictor.predict(turned).probabilities)
        np.testing.assert_allclose(straight, back, atol=1e-5)
        assert np.abs(plain.predict(image).probabilities - undo(plain.predict(turned).probabilities)).max() > 1e-4


def test_windows_see_the_image_at_its_own_scale(binary, colours, caplog, monkeypatch):
    pytest.importorskip("monai")
    whole = Predictor(binary, device="cpu", probabilities=True)
    assert "--sliding-window" not in caplog.text
    windows = Predictor(binary, device="cpu", probabilities=True, sliding_window=True)
    assert re.search(f"--sliding-window: .*whole images.*{SIZE}", caplog.text)
    monkeypatch.setattr("inference.progress.INTERVAL", -1)  # a line for each batch of windows
    small = np.ascontiguousarray(colours[:SIZE, :SIZE])
    np.testing.assert_allclose(windows.predict(small).probabilities, whole.predict(small).probabilities, atol=1e-5)
    # a network that looks at single pixels gives the same wherever the windows lie
    windows.network.model = lambda x: x[:, :1] / 255 - 0.5
    result = windows.predict(colours)
    expected = torch.sigmoid(torch.tensor((colours - colours.min()) / np.ptp(colours) - 0.5))[..., 0]
    np.testing.assert_allclose(result.probabilities[0], expected, atol=1e-5)
    counts = re.findall(r"(\d+) of (\d+) windows", caplog.text)
    assert int(counts[-1][0]) == int(counts[-1][1]) > 4  # 50 x 70 pixels


def test_without_memory_the_batches_shrink(binary, folder, monkeypatch):
    inputs = find_inputs([folder / "isic/val/images"])
    expected = [result.mask for _, result in Predictor(binary, device="cpu", batch_size=1).predict_all(inputs)]
    predictor = Predictor(binary, device="cpu", batch_size=4)
    views, sizes = predictor.network.average_views, []

    def limited(images):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError
        return views(images)

    monkeypatch.setattr(predictor.network, "average_views", limited)
    found = [result.mask for _, result in predictor.predict_all(inputs)]
    assert sizes[:3] == [4, 2, 1] and predictor.network.batch_size == 1
    np.testing.assert_array_equal(found, expected)


# ---- files


def test_inputs_of_one_stem_get_names_of_their_own(tmp_path):
    for name in ("a/x.png", "b/x.png", "x.jpg", "X.png", "y.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = find_inputs([tmp_path, tmp_path / "y.tif"])  # given twice, predicted once
    names = unique_names(inputs)
    assert len(inputs) == 5 and len({name.casefold() for name in names}) == 5
    assert dict(zip((i.path.relative_to(tmp_path).as_posix() for i in inputs), names, strict=True))["y.tif"] == "y"


def test_results_are_never_overwritten_unasked(binary, folder, tmp_path):
    images = sorted((folder / "isic/val/images").iterdir())
    run(binary, images[0], output=tmp_path)
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "no.pth", images[0], output=tmp_path / "untouched")
    assert not (tmp_path / "untouched").exists()
    before = (tmp_path / "masks" / f"{images[0].stem}.png").stat().st_mtime_ns
    with pytest.raises(ValueError, match=f"--output {tmp_path}: .*--existing skip"):
        run(binary, images[0], output=tmp_path)
    run(binary, *images, output=tmp_path, existing="skip")
    assert (tmp_path / "masks" / f"{images[0].stem}.png").stat().st_mtime_ns == before
    assert len(read_rows(tmp_path / "structures.csv")) == len(list((tmp_path / "masks").iterdir())) == 5
    run(binary, images[0], output=tmp_path, existing="overwrite")
    assert (tmp_path / "masks" / f"{images[0].stem}.png").stat().st_mtime_ns > before
    assert re.search(f"{tmp_path} .* 4 .*{images[1].stem}", (tmp_path / "log.txt").read_text(encoding="utf-8"))
    other = tmp_path / "other" / images[1].name
    other.parent.mkdir()
    other.write_bytes(images[1].read_bytes())
    run(binary, images[1], output=tmp_path, existing="skip")
    with pytest.raises(ValueError, match=f"--output {tmp_path}: .*{images[1].stem}"):
        run(binary, other, output=tmp_path, existing="skip")
    with pytest.raises(ValueError, match="--existing skip: .*threshold"):
        run(binary, *images, output=tmp_path, existing="skip", threshold=0.7)


@pytest.fixture
def ctrl_c():
    """Python's own answer to it; the tests may run in the background of a shell, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_stop_leaves_whole_files_and_can_be_continued(ctrl_c, binary, folder, tmp_path, monkeypatch):
    save = Prediction.save

    def interrupted(self, output, name, *args):
        save(self, output, name, *args)
        if name.endswith("3"):  # of 1 to 5
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Prediction, "save", interrupted)
        with pytest.raises(SystemExit) as stop:
            run(binary, folder / "isic/val/images", output=tmp_path, batch_size=1)
    assert stop.value.code == 130
    saved = {row["name"] for row in read_rows(tmp_path / "structures.csv")}
    assert saved <= {path.stem for path in (tmp_path / "masks").iterdir()} and len(saved) >= 2
    for path in [*(tmp_path / "masks").iterdir(), *(tmp_path / "overlays").iterdir()]:
        read(path)
    assert not list(tmp_path.rglob("*.tmp"))
    run(binary, folder / "isic/val/images", output=tmp_path, existing="skip")
    assert len(read_rows(tmp_path / "structures.csv")) == len(list((tmp_path / "masks").iterdir())) == 5


def test_unreadable_files_are_left_out_and_named(binary, folder, tmp_path):
    image = min((folder / "isic/val/images").iterdir())
    Image.open(image).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    broken = {"cut.png": content[:-200], "bad.png": content[:60] + b"xxxx" + content[64:], "no.jpg": b"not an image"}
    broken |= {
        "a.nii.gz": b"not gzip",
        "b.nii": b"0" * 400,
        "c.dcm": b"0" * 128 + b"DICM",
        "d.h5": b"no",
        "e.mha": b"no",
    }
    for name, part in broken.items():
        (tmp_path / name).write_bytes(part)
    with pytest.raises(ValueError, match="8 of 9 ") as error:
        run(binary, *(tmp_path / name for name in broken), image, output=tmp_path / "out")
    assert all(name in str(error.value) for name in broken)
    assert [path.stem for path in (tmp_path / "out/masks").iterdir()] == [image.stem]


# ---- mistakes


def test_mistakes_are_named(binary, organs, colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no input")
    with pytest.raises(ValueError, match="a.png .*--insist"):
        Predictor(organs, device="cpu").predict(tmp_path / "a.png")
    with pytest.raises(ValueError, match="--threshold: .*volumes"):
        Predictor(organs, device="cpu", threshold=0.3)
    for wrong in (dict(overlap=1), dict(orientation="LRS"), dict(window=(1, 0)), dict(pixel_size=0.1)):
        with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
            Predictor(organs, device="cpu", **wrong)
    with pytest.raises(ValueError, match="notes.txt .*expected .png"):
        find_inputs([tmp_path / "notes.txt"])
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        find_inputs([tmp_path / "nowhere.png"])
