import h5py
import numpy as np
import pytest
import torch

from datasets.intensities import scale_hu
from datasets.synapse import SynapseSlices, SynapseVolumes, read_list
from datasets.transforms import RandomGenerator
from tests.tiny import write_slice


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
