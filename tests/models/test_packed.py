"""Packed weights: what is written is read back, rounded as stated; nothing else is read."""

import io
import zlib

import h5py
import numpy as np
import pytest
import torch

from models.vmunet import VMUNet
from models.weights import packed
from models.weights.packed import FORMAT, is_packed, pack_weights, read_packed_weights
from tests.tiny import NETWORK, write_packed_weights
from utils.runs.named_weights import load_checkpoint_weights, read_checkpoint

CONFIG, ABOUT = {"network": "vmunet", "dims": [8, 16]}, {"metrics": {"dsc": 0.9}}


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return VMUNet(**NETWORK).state_dict()


@pytest.fixture
def content():
    generator = torch.Generator().manual_seed(0)
    weights = {"a.weight": torch.randn(40, 30, generator=generator), "a.bias": torch.ones(40), "b": torch.tensor(3)}
    return pack_weights(weights, CONFIG, ABOUT)


def altered(content, change):
    """The bytes of a file after `change(file)`, whose digest is brought up to date, as an attacker would do."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def with_digest(file):
    arrays = {name: dataset[()] for name, dataset in file["weights"].items()}
    file.attrs["sha256"] = packed._digest(arrays)


def replace(file, name, **dataset):
    del file[f"weights/{name}"]
    return file.create_dataset(f"weights/{name}", **dataset)


# ---- what is read back


def test_weights_come_back_rounded_and_the_rest_exact(weights, tmp_path):
    path = tmp_path / "a.h5"
    sha256 = write_packed_weights(path, weights, CONFIG, ABOUT)
    content = path.read_bytes()
    found, config, about = read_packed_weights(content, path)
    assert is_packed(content) and (config, about) == (CONFIG, ABOUT)
    assert list(found) == sorted(weights) and {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name, tensor in weights.items():
        if tensor.ndim <= 1:
            assert torch.equal(found[name], tensor), name
        else:
            assert ((found[name] - tensor).abs() <= tensor.abs() * 2**-11 + 2**-25).all(), name
    assert read_checkpoint(path).sha256 == sha256
    assert pack_weights(found, CONFIG, ABOUT) == content  # rounding twice is rounding once


def test_a_network_takes_the_file_as_any_checkpoint(weights, tmp_path):
    write_packed_weights(tmp_path / "best.pth", weights, CONFIG, ABOUT)  # the content counts, not the name
    network = VMUNet(**NETWORK)
    load_checkpoint_weights(network, tmp_path / "best.pth")
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=2**-11, atol=2**-25)
    checkpoint = read_checkpoint(tmp_path / "best.pth")
    assert (checkpoint.config, checkpoint.about) == (CONFIG, ABOUT)


def test_it_is_less_than_half_the_size():
    weights = {"a": torch.randn(500, 400, generator=torch.Generator().manual_seed(0)) * 0.02}
    assert len(pack_weights(weights, {}, {})) < 0.47 * 4 * 500 * 400


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_a_weight_that_float16_can_not_hold_is_not_written(value, tmp_path):
    with pytest.raises(ValueError, match="b.weight: .*float16"):
        write_packed_weights(tmp_path / "a.h5", {"b.weight": torch.full((2, 2), value)}, {}, {})
    assert not list(tmp_path.iterdir())


# ---- what is refused


def set_attribute(**values):
    return lambda file: file.attrs.update(values)


def change_a_value(file):
    file["weights/a.bias"][3] = 2


def put_nan(file):
    file["weights/a.bias"][3] = np.nan
    with_digest(file)


def put_integers(file):
    replace(file, "a.bias", data=np.ones(40, np.int64))
    with_digest(file)


def put_too_many(file):
    replace(file, "a.weight", shape=(2**15, 2**15), dtype="f2", chunks=(2**10, 2**10), compression="gzip", shuffle=True)


def put_nothing(file):
    """A gigabyte of zeros that is nowhere."""
    replace(file, "a.weight", shape=(2**14, 2**14), dtype="f4", chunks=(2**7, 2**7), compression="gzip", shuffle=True)


def put_a_deflate_bomb(file):
    dataset = replace(file, "a.weight", shape=(4, 4), dtype="f4", chunks=(4, 4), compression="gzip", shuffle=True)
    dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**24), 9))


def put_another_filter(file):
    replace(file, "a.weight", data=np.ones((9, 9), np.float32), compression="lzf")
    with_digest(file)


def put_external(file):
    replace(file, "a.bias", shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)])


def put_virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (4,))
    del file["weights/a.bias"]
    file.create_virtual_dataset("weights/a.bias", layout)


def link_to_another_file(file):
    del file["weights/a.bias"]
    file["weights/a.bias"] = h5py.ExternalLink("other.h5", "secret")


def link_all_to_another_file(file):
    del file["weights"]
    file["weights"] = h5py.ExternalLink("other.h5", "weights")


def put_a_group(file):
    file.create_group("weights/c")


REFUSED = {
    "another format": (set_attribute(format="weights of others"), "found 'weights of others' version 1, expected"),
    "another version": (set_attribute(version=2), f"found '{FORMAT}' version 2, expected '{FORMAT}' version 1"),
    "an altered value": (change_a_value, "SHA-256"),
    "another shape": (lambda file: replace(file, "a.bias", data=np.ones((40, 1), np.float32)), "SHA-256"),
    "a tensor removed": (lambda file: file["weights"].pop("a.bias"), "SHA-256"),
    "NaN": (put_nan, "a.bias: found a value"),
    "integers": (put_integers, "a.bias: found int64, expected float16 or float32"),
    "too many values": (put_too_many, "found weights of 4294967460 bytes, expected at most 2147483648"),
    "values that are nowhere": (put_nothing, "a.weight: found values"),
    "a deflate bomb": (put_a_deflate_bomb, "a.weight: found values"),
    "another filter": (put_another_filter, "a.weight: found values"),
    "an external file": (put_external, "a.bias: found values"),
    "a virtual dataset": (put_virtual, "a.bias: found values"),
    "a link to another file": (link_to_another_file, "a.bias: found a link"),
    "weights in another file": (link_all_to_another_file, "found no weights"),
    "a group": (put_a_group, "c: found a group, expected float16 or float32"),
    "no weights": (lambda file: file.pop("weights"), "found no weights"),
    "no config": (lambda file: file.attrs.pop("config"), "config: found no JSON"),
    "a config that is a list": (set_attribute(config="[1]"), "config: found list"),
    "a config that is no JSON": (set_attribute(config="{"), "config: found no JSON"),
    "a config that is deep": (set_attribute(config=100_000 * "["), "config: found no JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_file_is_refused_in_a_sentence_that_names_it(what, content, tmp_path, monkeypatch):
    change, words = REFUSED[what]
    monkeypatch.chdir(tmp_path)
    with h5py.File("other.h5", "w") as other:  # what links could find
        other["secret"] = np.ones(4, np.float32)
        other["weights/a"] = np.ones(4, np.float32)
    path = tmp_path / "a.h5"
    path.write_bytes(altered(content, change))
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    said = str(error.value)
    assert str(path) in said and words in said and "\n" not in said


def test_a_bomb_does_not_go_off(content, monkeypatch):
    """Never more than one byte beyond the chunk's own size is unpacked."""
    sizes, make = [], zlib.decompressobj

    class Counting:
        def decompress(self, data, limit):
            sizes.append(len(make().decompress(data, limit)))
            return bytes(sizes[-1])

    monkeypatch.setattr(packed.zlib, "decompressobj", Counting)
    with pytest.raises(ValueError, match="a.h5.*a.weight: found values"):
        read_packed_weights(altered(content, put_a_deflate_bomb), "a.h5")
    assert max(sizes) <= 4 * 40 * 30 and 65 in sizes


def test_nothing_is_read_before_all_sizes_are_known(content, monkeypatch):
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="expected at most"):
        read_packed_weights(altered(content, put_too_many), "a.h5")


def test_an_altered_heap_of_texts_does_not_hang(content):
    """HDF5 would read for ever and hold Python's lock."""
    content = bytearray(altered(content, set_attribute(format=FORMAT)))
    start = content.index(b"GCOL")
    content[start + 16 : start + 32] = bytes(16)  # an object that is no step forward
    with pytest.raises(ValueError, match=f"a.h5.* byte {start}"):
        read_packed_weights(bytes(content), "a.h5")


def test_texts_of_free_length_are_read_too(content):
    """As h5py writes them unasked."""
    found = read_packed_weights(altered(content, set_attribute(format=FORMAT, config='{"a": "ä"}')), "a.h5")
    assert found[1:] == ({"a": "ä"}, ABOUT)


@pytest.mark.parametrize("cut", [9, 100, 2000])
def test_a_truncated_file_is_refused(content, cut, tmp_path):
    (tmp_path / "a.h5").write_bytes(content[:-cut])
    with pytest.raises(ValueError, match="a.h5"):
        read_checkpoint(tmp_path / "a.h5")


def test_files_in_several_chunks_are_read(content):
    """As h5py lays them out unasked."""

    def rechunk(file):
        values = file["weights/a.weight"][()]
        dataset = replace(
            file, "a.weight", data=values, chunks=(16, 16), shuffle=True, compression="gzip", compression_opts=9
        )
        assert dataset.id.get_num_chunks() == 6

    found, _, _ = read_packed_weights(altered(content, rechunk), "a.h5")
    torch.testing.assert_close(found, read_packed_weights(content, "a.h5")[0], rtol=0, atol=0)
