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
from pathlib import Path

import h5py
import numpy as np
import torch

from utils.files import reading, write_atomically

FORMAT, VERSION = "vmunet weights", 1
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
LARGEST = 2**31  # bytes of all tensors, stored and read: beyond any network here


def is_packed(content: bytes) -> bool:
    return content.startswith(HDF5_SIGNATURE)


def write_packed_weights(path: str | Path, weights: dict[str, torch.Tensor], config: dict, about: dict) -> str:
    """Writes the weights of a network, in one step, and returns the file's SHA-256.

    config  plain values, as a checkpoint holds them; about  plain values for readers, such as data, scores, licence"""
    arrays = {name: _stored(tensor) for name, tensor in weights.items()}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        file.attrs.update(
            format=FORMAT, version=VERSION, sha256=_digest(arrays), config=json.dumps(config), about=json.dumps(about)
        )
        for name, array in arrays.items():
            packing = dict(compression="gzip", compression_opts=9, shuffle=True) if array.size > 1 else {}
            file.create_dataset(f"weights/{name}", data=array, track_times=False, **packing)
    content = buffer.getvalue()
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_packed_weights(content: bytes, path: str | Path) -> tuple[dict[str, torch.Tensor], dict, dict]:
    """(weights in float32 by name, config, about) of a file's bytes; `path` is for messages.

    Raises ValueError for a file of another format or version, or one whose values are not those it was written with."""
    with reading(path), h5py.File(io.BytesIO(content)) as file:
        if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
            found = f"{file.attrs.get('format')!r} version {file.attrs.get('version')}"
            raise ValueError(f"{path}: found {found}, expected {FORMAT!r} version {VERSION}")
        arrays: dict[str, np.ndarray] = {}
        total = 0
        for name in file["weights"]:
            if not isinstance(file["weights"].get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path}: {name} is not in the file itself")
            dataset = file["weights"][name]
            if dataset.dtype not in (np.float16, np.float32) or dataset.is_virtual or dataset.external:
                raise ValueError(f"{path}: found {name} in {dataset.dtype}, expected float16 or float32, in the file")
            total += dataset.nbytes
            if total > LARGEST:
                raise ValueError(f"{path}: found more than {LARGEST} bytes of weights")
            arrays[name] = dataset[()]
        if _digest(arrays) != file.attrs.get("sha256"):
            raise ValueError(f"{path}: the SHA-256 of its values is not the one stored in it: the file was altered")
        config, about = (json.loads(file.attrs[name]) for name in ("config", "about"))
    weights = {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for name, array in arrays.items()}
    return weights, config, about


def _stored(tensor: torch.Tensor) -> np.ndarray:
    dtype = torch.float16 if tensor.ndim > 1 else torch.float32
    array = tensor.detach().to("cpu", dtype).contiguous().numpy()
    if not np.isfinite(array).all():
        raise ValueError("found a weight that is not finite, or too large for float16, expected numbers below 65504")
    return array


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
