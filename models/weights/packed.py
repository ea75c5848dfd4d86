"""Weights in half the size: the format of the networks in pretrained_weights/.

One HDF5 file, which holds numbers and text and nothing that could run:

    weights/<parameter name>   float16 for matrices and kernels, float32 for vectors (biases, norms); shuffled, gzip
    attributes                 `format` and `version`; `sha256` of all names, shapes and values as stored; `config` and
                               `about` as JSON: the run's configuration; what it was trained on and how it scored

Rounding to float16 moves a weight by at most 2^-11 of itself (2^-25 in all below 6e-5). Shuffling puts the bytes with
the exponents, which are much alike, side by side, where gzip finds them.
"""

import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

FORMAT, VERSION = "vmunet weights", 1
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
LARGEST = 2**31  # bytes of all weights in float32: beyond any network here
GZIP: dict[str, Any] = dict(shuffle=True, compression="gzip", compression_opts=9)
FILTERS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]  # of GZIP, as HDF5 lists them


def is_packed(content: bytes) -> bool:
    return content.startswith(HDF5_SIGNATURE)


def pack_weights(weights: Mapping[str, torch.Tensor], config: dict, about: dict) -> bytes:
    """Return the file of a network's weights; the same weights always give the same bytes.

    config  plain values, as a checkpoint holds them; about  plain values for readers, such as data, scores, licence

    Raises ValueError for a weight that is not finite before or after rounding."""
    arrays = {name: _rounded(name, tensor) for name, tensor in weights.items()}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        file.attrs["version"] = VERSION
        texts = dict(format=FORMAT, sha256=_digest(arrays), config=json.dumps(config), about=json.dumps(about))
        for name, text in texts.items():
            file.attrs[name] = np.bytes_(text)  # of fixed length: HDF5 reads damaged ones of free length for ever
        for name, array in sorted(arrays.items()):
            packing = GZIP | {"chunks": array.shape} if array.size > 1 else {}
            file.create_dataset(f"weights/{name}", data=array, track_times=False, **packing)
    return buffer.getvalue()


def _rounded(name: str, tensor: torch.Tensor) -> np.ndarray:
    dtype = torch.float16 if tensor.ndim > 1 else torch.float32
    array = tensor.detach().to("cpu", dtype).contiguous().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found a value that is not finite in {array.dtype}, expected numbers below 65504")
    return array


def read_packed_weights(content: bytes, path: str | Path) -> tuple[dict[str, torch.Tensor], dict, dict]:
    """Return (weights in float32 by name, config, about) of a file's bytes; `path` is for messages.

    Raises ValueError for another format or version, for values that have changed since they were written, are not
    finite or lie outside the file, and for more than LARGEST bytes, before any value is read."""
    try:
        arrays, config, about = _read(content)
    except Exception as error:  # for damaged files HDF5's library raises more kinds than it documents
        raise ValueError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
    return {name: torch.from_numpy(np.asarray(a, np.float32)) for name, a in arrays.items()}, config, about


def _read(content: bytes) -> tuple[dict[str, np.ndarray], dict, dict]:
    _check_heaps(content)
    with h5py.File(io.BytesIO(content)) as file:
        found = [_text(file, "format"), file.attrs.get("version")]
        if found != [FORMAT, VERSION]:
            raise ValueError(f"found {found[0]!r} version {found[1]}, expected {FORMAT!r} version {VERSION}")
        config, about = (named_values(_text(file, name), name) for name in ("config", "about"))
        datasets = _datasets(file)
        arrays = {name: dataset[()] for name, dataset in datasets.items()}
        if _digest(arrays) != _text(file, "sha256"):
            raise ValueError("the SHA-256 of its values is not the one stored in it: the file was altered")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name}: found a value that is not finite")
    return arrays, config, about


def _check_heaps(content: bytes) -> None:
    """Raise ValueError for an altered heap of texts (from older versions) in which HDF5 would read for ever. HDF5 steps
    from object to object by their sizes, and stays in place if an altered size is no step forward.

    A heap: GCOL, version, 3 bytes, size; for each object: number, uses, 4 bytes, size, and as many bytes, rounded up to
    8. The free space at the end is object 0, whose size includes these 16 bytes."""
    for start in (match.start() for match in re.finditer(b"GCOL\x01", content)):
        size = int.from_bytes(content[start + 8 : start + 16], "little")
        place, end = start + 16, start + size
        while place + 16 <= end <= len(content):  # HDF5 itself refuses a heap beyond the end
            number = int.from_bytes(content[place : place + 2], "little")
            size = int.from_bytes(content[place + 8 : place + 16], "little")
            step = 16 + (size + 7) // 8 * 8 if number else size
            if not 16 <= step <= end - place:
                raise ValueError(f"found an altered heap at byte {start}, expected objects that fill it")
            place += step


def _text(file: h5py.File, name: str) -> str:
    """Return a text attribute, "" if there is none."""
    value = file.attrs.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)


def named_values(text: str | bytes, place: str | Path) -> dict:
    """Return the JSON of a text. Raises ValueError, which names the place, for JSON that is not names and values."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: found no JSON, expected names and values") from error
    if not isinstance(values, dict):
        raise ValueError(f"{place}: found {type(values).__name__}, expected names and values")
    return values


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the datasets of the weights without reading them. Raises ValueError for any that `pack_weights` does not
    write: it could refer to another file, or unpack to more memory than there is."""
    if not isinstance(file.get("weights", getlink=True), h5py.HardLink) or not isinstance(file["weights"], h5py.Group):
        raise ValueError("found no weights, expected a group of them")
    datasets, total = {}, 0
    for name in file["weights"]:
        if not isinstance(file["weights"].get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name}: found a link, expected values in the file itself")
        dataset = file["weights"][name]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype not in (np.float16, np.float32):
            raise ValueError(f"{name}: found {getattr(dataset, 'dtype', 'a group')}, expected float16 or float32")
        datasets[name], total = dataset, total + 4 * math.prod(dataset.shape)
    if total > LARGEST:
        raise ValueError(f"found weights of {total} bytes, expected at most {LARGEST}")
    for name, dataset in datasets.items():
        if not _lies_in_file(dataset):
            raise ValueError(f"{name}: found values stored in an unknown way, expected them as they are written")
    return datasets


def _lies_in_file(dataset: h5py.Dataset) -> bool:
    """Return whether all values of a dataset lie in the file itself, unpacked or in gzipped chunks of the right size.
    HDF5 does not check that size, and lets a chunk of a few kilobytes fill the memory."""
    if dataset.is_virtual or dataset.external:
        return False
    if dataset.chunks is None:
        return dataset.id.get_storage_size() == dataset.nbytes
    layout = dataset.id.get_create_plist()
    filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
    grid = [math.ceil(side / part) for side, part in zip(dataset.shape, dataset.chunks, strict=True)]
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if filters != FILTERS or size > dataset.nbytes or dataset.id.get_num_chunks() != math.prod(grid):
        return False
    for part in dataset.iter_chunks():
        skipped_filters, packed = dataset.id.read_direct_chunk(tuple(side.start for side in part))
        if skipped_filters or len(zlib.decompressobj().decompress(packed, size + 1)) != size:
            return False
    return True


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
