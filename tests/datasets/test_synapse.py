import h5py
import numpy as np
import pytest
import torch

from datasets.demo import make_demo_synapse
from datasets.intensities import scale_hu
from datasets.synapse import SynapseSlices, SynapseVolumes, neighbours, read_list
from datasets.transforms import RandomGenerator
from datasets.volume_loaders import build_synapse_loaders
from tests.tiny import synapse_config, write_slice
from utils.volume import with_context


def write_volume(folder, name, shape=(3, 20, 24), **attributes):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    image, label = rng.random(shape, dtype=np.float32), rng.integers(0, 9, shape).astype(np.float32)
    with h5py.File(folder / f"{name}.npy.h5", "w") as file:
        file["image"], file["label"] = image, label
        file.attrs.update(attributes)
    return image, label


def write_list(folder, name, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def slices(tmp_path):
    for number in range(3):
        write_slice(tmp_path, f"case0001_slice00{number}")
    write_list(tmp_path, "train.txt", ["case0001_slice000", "case0001_slice002"])
    return SynapseSlices(tmp_path, tmp_path, RandomGenerator(16))


def test_listed_slices_are_read(slices):
    image, label, name = slices[1]
    assert len(slices) == 2 and name == "case0001_slice002"
    assert image.shape == (1, 16, 16) and image.dtype == torch.float32
    assert label.shape == (16, 16) and label.dtype == torch.int64 and 0 <= label.min() and label.max() <= 8


def test_randomness_depends_on_seed_epoch_and_index_only(slices):
    images = [slices[epoch, 1][0] for epoch in range(8)]
    assert all(torch.equal(image, slices[epoch, 1][0]) for epoch, image in reversed(list(enumerate(images))))
    assert not all(torch.equal(images[0], image) for image in images[1:])
    assert torch.equal(slices[1][0], images[0])


def test_preloaded_slices_are_the_same(slices):
    before = slices[2, 0]
    slices.preload()
    for path in slices.files:
        path.unlink()
    assert torch.equal(slices[2, 0][0], before[0]) and torch.equal(slices[2, 0][1], before[1])


# ---- the slices around a slice


def test_neighbours_are_of_the_same_case_and_the_outermost_is_repeated():
    names = ["b_slice1", "a_slice_010", "a_slice_009", "b_slice0", "a_slice_008", "b_slice3"]
    assert neighbours(names, 1) == [[3, 0, 0], [2, 1, 1], [4, 2, 1], [3, 3, 0], [4, 4, 2], [5, 5, 5]]
    assert neighbours(names, 2)[2] == [4, 4, 2, 1, 1]
    with pytest.raises(ValueError, match="--context 1: found the slice case0005, expected .*case0005_slice012"):
        neighbours(["case0005"], 1)


@pytest.fixture
def volume(tmp_path):
    """A case's slices as training reads them, and as a volume."""
    volume = np.random.default_rng(0).random((5, 20, 24), dtype=np.float32)
    for number, image in enumerate(volume):
        np.savez(tmp_path / f"case1_slice{number:03d}.npz", image=image, label=np.full((20, 24), number))
    write_list(tmp_path, "train.txt", [f"case1_slice{number:03d}" for number in (3, 0, 4, 1, 2)])
    return volume


@pytest.mark.parametrize("context", [1, 2])
def test_a_slice_has_the_same_context_in_training_and_in_prediction(volume, tmp_path, context):
    slices = SynapseSlices(tmp_path, tmp_path, lambda image, label, *draws: (image, label), context=context)
    for image, label, name in (slices[i] for i in range(5)):
        number = int(name[-3:])
        np.testing.assert_array_equal(image, with_context(volume, context, [number])[0])
        np.testing.assert_array_equal(image[context], volume[number])
        assert (label == number).all()


def test_no_slice_is_decoded_twice_once_they_are_in_memory(volume, tmp_path, monkeypatch):
    slices, decoded = SynapseSlices(tmp_path, tmp_path, RandomGenerator(16), context=1), []
    decode = slices.decode
    monkeypatch.setattr(slices, "decode", lambda index: decoded.append(index) or decode(index))
    before = [slices[1, i][0] for i in range(5)]
    decoded.clear()
    slices.preload()
    assert all(torch.equal(slices[1, i][0], before[i]) for i in range(5))
    assert sorted(decoded) == [0, 1, 2, 3, 4] and slices.cache[0][0].shape == (20, 24)


def test_slices_of_two_sizes_in_a_case_are_named(volume, tmp_path):
    write_slice(tmp_path, "case1_slice002", shape=(20, 25))
    slices = SynapseSlices(tmp_path, tmp_path, RandomGenerator(16), context=1)
    with pytest.raises(ValueError, match=r"case1_slice002\.npz: .*\(20, 25\), .*one size in a case"):
        slices[3]


@pytest.mark.parametrize("augmentation", ["published", "strong"])
def test_batches_have_the_context_as_channels(tmp_path, augmentation):
    data = make_demo_synapse(tmp_path / "data", size=40, train=2, val=1, test=1, slices=4)
    changes = dict(context=1, slice_fit="pad", augmentation=augmentation)
    loader, _ = build_synapse_loaders(synapse_config(data, **changes))
    images, labels, _ = next(iter(loader))
    assert images.shape == (4, 3, 32, 32) and labels.shape == (4, 32, 32)
    assert not torch.equal(images[:, 0], images[:, 1])


def test_missing_slices_are_named(tmp_path):
    write_slice(tmp_path, "case0001_slice000")
    write_list(tmp_path, "train.txt", [f"case0001_slice{number:03d}" for number in range(13)])
    with pytest.raises(FileNotFoundError, match="12 of 13 .*slice001.npz, .* and 2 more"):
        SynapseSlices(tmp_path, tmp_path, RandomGenerator(16))


def test_missing_and_empty_lists_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.txt"):
        read_list(tmp_path, "train.txt")
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="train.txt"):
        read_list(tmp_path, "train.txt")


@pytest.mark.parametrize("value", [9, -1, 0.5])
def test_unexpected_labels_are_named(tmp_path, value):
    label = np.zeros((20, 24), np.float32)
    label[3, 4] = value
    write_slice(tmp_path, "case0001_slice000", label=label)
    write_list(tmp_path, "train.txt", ["case0001_slice000"])
    with pytest.raises(ValueError, match=r"case0001_slice000.npz.* 0\.\.8"):
        SynapseSlices(tmp_path, tmp_path, RandomGenerator(16))[0]


def test_broken_files_are_named(tmp_path):
    write_slice(tmp_path, "case0001_slice000")
    write_list(tmp_path, "train.txt", ["case0001_slice000"])
    for broken in (b"PK\x03\x04 broken", b"not an archive at all", b""):
        (tmp_path / "case0001_slice000.npz").write_bytes(broken)
        with pytest.raises(ValueError, match="case0001_slice000.npz"):
            SynapseSlices(tmp_path, tmp_path, RandomGenerator(16))[0]
    np.savez(tmp_path / "case0001_slice000.npz", picture=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="case0001_slice000.npz.* picture; .*image and label"):
        SynapseSlices(tmp_path, tmp_path, RandomGenerator(16))[0]


def test_volumes_are_read_and_their_files_closed(tmp_path):
    image, label = write_volume(tmp_path, "case0008")
    write_list(tmp_path, "test_vol.txt", ["case0008"])
    volumes = SynapseVolumes(tmp_path, tmp_path)
    read_image, read_label, name, spacing = volumes[0]
    assert len(volumes) == 1 and name == "case0008" and spacing is None
    assert np.array_equal(read_image, image) and read_image.dtype == np.float32
    assert np.array_equal(read_label, label) and read_label.dtype == np.uint8
    with h5py.File(tmp_path / "case0008.npy.h5", "a"):  # fails on a file that is still open for reading
        pass


def test_spacing_comes_from_the_file(tmp_path):
    write_volume(tmp_path, "case0008", spacing=(3.0, 0.75, 0.8))
    write_list(tmp_path, "test_vol.txt", ["case0008"])
    assert SynapseVolumes(tmp_path, tmp_path)[0][3].tolist() == [3.0, 0.75, 0.8]


def test_a_broken_volume_is_named(tmp_path):
    write_list(tmp_path, "test_vol.txt", ["case0008"])
    (tmp_path / "case0008.npy.h5").write_bytes(b"broken")
    with pytest.raises(ValueError, match="case0008.npy.h5"):
        SynapseVolumes(tmp_path, tmp_path)[0]


def test_missing_volumes_are_named(tmp_path):
    write_list(tmp_path, "test_vol.txt", ["case0008", "case0022"])
    with pytest.raises(FileNotFoundError, match="2 of 2 .*case0008.npy.h5, case0022.npy.h5"):
        SynapseVolumes(tmp_path, tmp_path)


def test_hounsfield_units_are_clipped_and_scaled_as_transunet_does():
    scaled = scale_hu(np.array([-1024, -125, 75, 275, 3000], dtype=np.int16))
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, np.array([0, 0, 0.5, 1, 1], dtype=np.float32))
