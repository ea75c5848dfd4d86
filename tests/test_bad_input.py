"""A user's mistake ends with one sentence that names it, exit status 2 and no traceback.

Input that is unusual but valid is read correctly."""

import dataclasses
import json
import os
import shutil
import signal
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import train
import train_synapse
import training
from configs.check import check_config
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.demo import make_demo_isic, make_demo_synapse
from datasets.isic import ISICDataset
from tests.tiny import TRAINING_FLAGS
from utils.runs.command_line import run
from utils.runs.run_folder import start_run, stop_log

SMALL = ["--dataset", "own", "--epochs", "1", *TRAINING_FLAGS]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_demo_isic(folder / "isic", size=40, train=5, val=2, test=1)
    make_demo_synapse(folder / "synapse", size=40, train=1, val=0, test=1, slices=5)
    return folder


@pytest.fixture
def isic(made, tmp_path):
    return Path(shutil.copytree(made / "isic", tmp_path / "isic"))


@pytest.fixture
def synapse(made, tmp_path):
    return Path(shutil.copytree(made / "synapse", tmp_path / "synapse"))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, caplog):
    """Runs a script's command line in this process: (exit status, its error message)."""

    def run_script(script, *flags):
        with_defaults = [] if "--resume" in flags else [*SMALL, "--work-dir", str(tmp_path / "results")]
        monkeypatch.setattr(sys, "argv", [script.__name__, *with_defaults, *map(str, flags)])
        config_class = ISICConfig if script is train else SynapseConfig
        status = 0
        try:
            run(script.main, config_class, resolve)
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr().err + caplog.text
        assert "Traceback" not in said
        return status, said[said.rfind("error: ") :] if "error: " in said else said

    return run_script


def refused(command, script, data, *words, flags=()):
    """Asserts that the script refuses the data, in one sentence with these words."""
    status, said = command(script, "--data-path", data, *flags)
    assert status == 2
    for word in words:
        assert word in said
    assert said.count("\n") <= 1, "more than one sentence"


def test_a_missing_folder_is_named_before_weights_are_downloaded(command, tmp_path, monkeypatch):
    monkeypatch.setattr("training.load_initial_weights", lambda *args: pytest.fail("the weights come after the data"))
    for script in (train, train_synapse):
        refused(command, script, tmp_path / "none", "none is not a folder", flags=["--dataset", "own"])


# ---- images and masks

IMAGE, MASK = "train/images/DEMO_0000002.jpg", "train/masks/DEMO_0000002_segmentation.png"


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def put(root, picture, name="DEMO_0000002.png", **options):
    """Puts a picture, a Pillow image or bytes, in place of the third training image."""
    (root / IMAGE).unlink()
    path = root / "train" / "images" / name
    path.write_bytes(picture) if isinstance(picture, bytes) else picture.save(path, **options)


def png(width, height, bits, rows):
    """An RGB PNG, made by hand: Pillow writes neither damaged files nor colours of 16 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def rename(root, name):
    os.rename(root / IMAGE, os.path.join(os.fsencode(root / "train/images"), os.fsencode(name) + b".jpg"))
    os.rename(root / MASK, os.path.join(os.fsencode(root / "train/masks"), os.fsencode(name) + b".png"))


def empty_all_masks(root):
    for path in (root / "train" / "masks").iterdir():
        Image.new("L", (40, 40)).save(path)


def transparent_in_places():
    return Image.fromarray(np.dstack([noise(40, 40, 3), np.arange(1600).reshape(40, 40) % 256]).astype(np.uint8))


DAMAGE = {
    "a missing folder": (shutil.rmtree, ["isic"]),
    "an empty folder": (lambda r: [p.unlink() for p in (r / "train/images").iterdir()], ["train/images"]),
    "no partner": (lambda r: (r / MASK).unlink(), ["DEMO_0000002.jpg"]),
    "another size": (lambda r: put(r, Image.fromarray(noise(40, 50, 3))), ["50x40", "40x40", "DEMO_0000002"]),
    "a folder": (lambda r: ((r / IMAGE).unlink(), (r / IMAGE).mkdir()), ["DEMO_0000002.jpg"]),
    "no image": (lambda r: put(r, b"GIF or something else"), ["DEMO_0000002.png ", "PNG, JPEG"]),
    "truncated": (lambda r: os.truncate(r / IMAGE, 500), ["DEMO_0000002.jpg ", "runcated"]),
    "truncated mask": (lambda r: os.truncate(r / MASK, 60), ["DEMO_0000002_segmentation.png "]),
    "zero bytes": (lambda r: os.truncate(r / IMAGE, 0), ["DEMO_0000002.jpg "]),
    "CMYK": (
        lambda r: put(r, Image.new("CMYK", (40, 40), 7), "DEMO_0000002.jpg"),
        ["DEMO_0000002.jpg ", "CMYK", "RGB"],
    ),
    "16 bits a colour": (
        lambda r: put(r, png(40, 40, 16, os.urandom(40 * 241))),
        ["DEMO_0000002.png ", "16", "expected 8"],
    ),
    "RGBA": (lambda r: put(r, transparent_in_places()), ["DEMO_0000002.png ", "transparent"]),
    "animated": (
        lambda r: put(r, Image.new("L", (40, 40)), save_all=True, append_images=[Image.new("L", (40, 40), 9)]),
        ["DEMO_0000002.png", " 2 "],
    ),
    "several pages": (
        lambda r: put(
            r, Image.new("L", (40, 40)), "DEMO_0000002.tif", save_all=True, append_images=[Image.new("L", (40, 40))]
        ),
        ["DEMO_0000002.tif", " 2 "],
    ),
    "1x1": (lambda r: put(r, Image.new("RGB", (1, 1))), ["DEMO_0000002.png"]),
    "20000x20000": (lambda r: put(r, png(20000, 20000, 8, bytes(1000))), ["DEMO_0000002.png", "400000000"]),
    "9000x9000": (lambda r: put(r, png(9000, 9000, 8, bytes(1000))), ["DEMO_0000002.png ", "9000x9000", "67108864"]),
    "a program for Ghostscript": (
        lambda r: put(r, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"),
        ["DEMO_0000002.png ", "PNG, JPEG"],
    ),
    "NaN": (
        lambda r: put(r, Image.fromarray(np.full((40, 40), np.nan, np.float32)), "DEMO_0000002.tiff"),
        ["DEMO_0000002.tiff", "NaN"],
    ),
    "constant image": (lambda r: put(r, Image.new("RGB", (40, 40), "red").convert("L")), ["DEMO_0000002.png"]),
    "values of a mask": (
        lambda r: Image.fromarray(noise(40, 40) // 100 * 50).save(r / MASK),
        ["DEMO_0000002_segmentation.png ", "0, 50, 100"],
    ),
    "all masks empty": (empty_all_masks, ["all 5 "]),
    "duplicate names": (
        lambda r: shutil.copy(r / IMAGE, (r / IMAGE).with_suffix(".png")),
        ["DEMO_0000002"],
    ),
    "a long name": (lambda r: rename(r, "x" * 245), ["245 ", "240"]),
}
FAST = {"a missing folder", "no partner", "another size", "no image", "truncated", "values of a mask"}


def cases(names, fast):
    """Test parameters; those that are not in `fast` are slow."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("what", cases(DAMAGE, FAST))
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_image_or_mask_is_named(what, command, isic):
    damage, words = DAMAGE[what]
    damage(isic)
    refused(command, train, isic, *words)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name themselves")
def test_a_name_that_is_no_text_is_refused(command, isic):
    rename(isic, b"lesion\xff")
    refused(command, train, isic, "lesion\\udcff", "UTF-8")


def test_what_is_only_unusual_is_read(command, isic, tmp_path):
    """Names of any script and 200 bytes, opaque RGBA, grey of 16 bits, 1-bit masks, a mask without a lesion."""
    rename(isic, "皮肤 ñ 'quoted' & <b>" + "x" * 170)
    opaque = np.dstack([noise(40, 40, 3), np.full((40, 40), 255, np.uint8)])
    for number, picture in enumerate((noise(40, 40, dtype=np.uint16) * 200, opaque)):
        (isic / f"train/images/DEMO_000000{number}.jpg").unlink()
        Image.fromarray(picture).save(isic / f"train/images/DEMO_000000{number}.png")
    Image.new("1", (40, 40)).save(isic / "train/masks/DEMO_0000000_segmentation.png")
    os.rename(isic / "val/images/DEMO_0000005.jpg", isic / "val/images/ünï.jpg")
    os.rename(isic / "val/masks/DEMO_0000005_segmentation.png", isic / "val/masks/ünï.png")
    status, said = command(train, "--data-path", isic)
    assert status == 0, said
    (folder,) = (tmp_path / "results").iterdir()
    assert (folder / "predictions" / "ünï_overlay.png").exists()
    assert "ünï" in (folder / "test_images.csv").read_text(encoding="utf-8")


def test_a_bad_file_that_a_worker_finds_is_one_sentence_too(command, isic):
    os.truncate(isic / IMAGE, 500)
    flags = ["--cache", "off", "--num-workers", "1", "--batch-size", "5"]
    refused(command, train, isic, f"error: {isic / IMAGE}", "runcated", flags=flags)


# ---- slices and volumes


def change_npz(root, **changes):
    path = next((root / "train_npz").glob("*_slice002.npz"))
    arrays = {**np.load(path), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def change_h5(root, **changes):
    (path,) = (root / "test_vol_h5").iterdir()
    with h5py.File(path, "r+") as file:
        for name, array in changes.items():
            del file[name]
            if array is not None:
                file[name] = array


def listed(root, edit):
    path = root / "lists/list_Synapse/train.txt"
    path.write_text(edit(path.read_text(encoding="utf-8")))


ONE, NAN, INF = np.ones((40, 40)), np.full((40, 40), np.nan), np.full((40, 40), np.inf)
VOLUMES = {
    "NaN": (lambda r: change_npz(r, image=NAN), ["_slice002.npz", "image", "NaN"]),
    "infinite": (lambda r: change_npz(r, image=INF), ["_slice002.npz", "image", "infinite"]),
    "NaN label": (lambda r: change_npz(r, label=NAN), ["_slice002.npz", "label", "nan"]),
    "no label": (lambda r: change_npz(r, label=None), ["_slice002.npz", "image", "label"]),
    "text": (lambda r: change_npz(r, image=ONE.astype("U3")), ["_slice002.npz", "image", "<U3"]),
    "objects": (lambda r: change_npz(r, label=ONE.astype(object)), ["_slice002.npz", "label", "object"]),
    "complex": (lambda r: change_npz(r, label=ONE * 1j), ["_slice002.npz", "label", "complex128"]),
    "three axes": (
        lambda r: change_npz(r, image=ONE[None], label=ONE[None]),
        ["(1, 40, 40)"],
    ),
    "another shape": (lambda r: change_npz(r, label=ONE[1:]), ["(39, 40)"]),
    "nothing": (lambda r: change_npz(r, image=ONE[:0], label=ONE[:0]), ["image", "(0, 40)"]),
    "labels": (lambda r: change_npz(r, label=9 * ONE), ["_slice002.npz", "9", "0..8"]),
    "all empty": (
        lambda r: [np.savez(p, image=np.load(p)["image"], label=0 * ONE) for p in (r / "train_npz").iterdir()],
        ["all 5 "],
    ),
    "absent": (lambda r: listed(r, lambda t: t + "case0099_slice001\n"), ["1 of 6 ", "case0099"]),
    "twice": (lambda r: listed(r, lambda t: t + t.split()[0]), ["train.txt", " 1 "]),
    "elsewhere": (lambda r: listed(r, lambda t: "../../secret"), ["train.txt", "'../../secret'"]),
    "no list": (
        lambda r: (r / "lists/list_Synapse/train.txt").write_bytes(b"\xff\xfe\0"),
        ["train.txt"],
    ),
    "NaN volume": (lambda r: change_h5(r, image=np.full((5, 40, 40), np.nan)), [".npy.h5", "image", "NaN"]),
    "no image": (lambda r: change_h5(r, image=None), [".npy.h5", "image", "label"]),
    "text volume": (lambda r: change_h5(r, image=["text"]), [".npy.h5", "image", "object"]),
    "shape of a volume": (lambda r: change_h5(r, image=np.zeros((4, 40, 40))), ["(4, 40, 40)"]),
    "another file": (
        lambda r: change_h5(r, image=h5py.ExternalLink("/etc/secret.h5", "image")),
        [".npy.h5", "image"],
    ),
    "truncated volume": (
        lambda r: [os.truncate(p, 3000) for p in (r / "test_vol_h5").iterdir()],
        [".npy.h5", "truncated"],
    ),
}


@pytest.mark.parametrize("what", cases(VOLUMES, {"NaN", "no label", "labels", "absent", "truncated volume"}))
def test_a_bad_slice_volume_or_list_is_named(what, command, synapse):
    damage, words = VOLUMES[what]
    damage(synapse)
    refused(command, train_synapse, synapse, *words)


def test_a_volume_too_large_for_any_memory_is_refused(command, synapse):
    """A few hundred bytes of h5 can claim any number of values."""
    (path,) = (synapse / "test_vol_h5").iterdir()
    with h5py.File(path, "w") as file:
        for name in ("image", "label"):
            file.create_dataset(name, (10**5, 10**5, 10**5), "f4", chunks=(1, 512, 512))
    refused(command, train_synapse, synapse, ".npy.h5", "(100000, 100000, 100000)")


def test_a_slice_too_large_for_any_memory_is_refused(command, synapse):
    path = next((synapse / "train_npz").iterdir())
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**9}, {10**9})}}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("image.npy", "label.npy"):
            archive.writestr(name, array)
    refused(command, train_synapse, synapse, path.name, "(1000000000, 1000000000)")


# ---- options


FLAGS = {
    "misspelt": (["--epoch-count", "3"], "--epoch-count"),
    "no number": (["--epochs", "many"], "--epochs"),
    "no epochs": (["--epochs", "0"], "--epochs: found 0, expected at least 1"),
    "negative rate": (["--lr", "-1"], "--lr: found -1.0"),
    "NaN as rate": (["--lr", "nan"], "--lr: found nan"),
    "threshold": (["--threshold", "2"], "--threshold: found 2.0, expected 0 to 1"),
    "small images": (["--image-size", "16"], "--image-size: found 16, expected 32"),
    "interval": (["--print-interval", "0"], "--print-interval: found 0"),
    "no loss": (["--loss-weight", "0", "0"], "--loss-weight: found (0"),
    "large batch": (["--batch-size", "6"], "--batch-size 6: found 5"),
    "unknown backend": (["--scan-backend", "magic"], "magic"),
    "backend not there": (["--scan-backend", "mamba_ssm"], "--scan-backend mamba_ssm"),
    "unknown device": (["--device", "gpu"], "--device: found 'gpu'"),
    "absent device": (["--device", "cuda:99"], "--device cuda:99"),
    "unknown optimizer": (["--opt", "Adamm"], "'Adamm'"),
    "contradiction": (["--resume", "x", "--test-only", "y"], "--test-only"),
    "resumed under other values": (["--resume", "x", "--seed", "9"], "--seed"),
    "values of classes": (["--num-classes", "3", "--mask-values", "0", "255"], "expected 3"),
    "no checkpoint": (["--load-ckpt-path", "nowhere.pth"], "nowhere.pth"),
    "nothing to test": (["--test-only", "nowhere.pth"], "nowhere.pth"),
    "no folder for results": (["--work-dir", "/proc/results"], "--work-dir /proc/results"),
}


@pytest.mark.parametrize("what", FLAGS)
def test_a_bad_option_is_named(what, command, made):
    flags, words = FLAGS[what]
    if "--resume" not in flags:
        flags = ["--data-path", made / "isic", *flags]
    status, said = command(train, *flags)
    assert status == 2 and words in said


@pytest.fixture
def stored(tmp_path):
    """The config.json of a run."""
    folder = start_run(ISICConfig(work_dir=str(tmp_path / "results"), dataset="own")).folder
    stop_log()
    return folder / "config.json"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"epcohs": 3}, "epcohs"),
        ({"epochs": "three"}, "epochs: found 'three', expected int"),
        ({"epochs": True}, "epochs: found True, expected int"),
        ({"depths": [2, 2, 2]}, "depths: found (2, 2, 2)"),
        ({"batch_size": -4}, "batch_size: found -4, expected at least 1"),
        ({"opt_args": {"eps": 1}}, "opt_args: found {'eps': 1}"),
        ({"precision": "fp8"}, "precision: found 'fp8', expected one of fp32, bf16, fp16"),
    ],
)
def test_a_stored_config_is_checked(change, words, stored, command):
    stored.write_text(json.dumps(json.loads(stored.read_text(encoding="utf-8")) | change))
    status, said = command(train, "--resume", stored.parent)
    assert status == 2 and words in said


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '{"epochs": NaN}'])
def test_a_file_that_is_no_config_is_named(content, stored, command):
    stored.write_text(content)
    status, said = command(train, "--resume", stored.parent)
    assert status == 2 and "config.json" in said


@pytest.mark.parametrize("kind", [ISICConfig, SynapseConfig])
def test_the_published_values_pass(kind):
    check_config(kind())
    check_config(dataclasses.replace(kind(), lr=1, clip_grad_norm=1, weight_decay=0, loss_weight=(1, 0)))


def test_debug_shows_where_an_error_comes_from(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys,
        "argv",
        ["train", "--debug", "--dataset", "nothing", "--work-dir", str(tmp_path), "--load-ckpt-path", "none"],
    )
    with pytest.raises(ValueError, match="nothing"):
        run(train.main, ISICConfig)


# ---- memory


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60), lambda: np.empty(2**50)])
def test_too_little_memory_ends_with_advice(allocate, command, made, monkeypatch):
    """More than PyTorch or NumPy can get."""
    monkeypatch.setattr(training, "build_model", lambda config: allocate())
    refused(command, train, made / "isic", "--batch-size", "--use-checkpoint")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_worker_killed_by_the_system_is_explained(command, made, monkeypatch):
    sample = ISICDataset.__getitem__

    def killed(self, index):  # the worker of the training, which alone augments; that of the validation has begun too
        return os.kill(os.getpid(), signal.SIGKILL) if self.augment else sample(self, index)

    monkeypatch.setattr(ISICDataset, "__getitem__", killed)
    flags = ["--num-workers", "1"]
    refused(command, train, made / "isic", "DataLoader worker (pid", "--num-workers", flags=flags)


def test_a_refused_value_leaves_no_run_folder(command, made, tmp_path):
    command(train, "--data-path", made / "isic", "--epochs", "0")
    assert not (tmp_path / "results").exists()
