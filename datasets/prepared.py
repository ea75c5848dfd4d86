"""The folder that datasets.prepare_isic or datasets.prepare_synapse writes, marked with what it is made of."""

import hashlib
import json
from pathlib import Path
from typing import Any

from utils.files import reading, write_atomically

RECORD = "preparation.json"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def claim_folder(out: str | Path, record: dict[str, Any]) -> Path:
    """Makes the folder, if it is not there, with `record` as its RECORD; returns its path.

    Raises ValueError if it holds files that are not prepared, or prepared under another record."""
    out = Path(out)
    path = out / RECORD
    if path.is_file():
        with reading(path):
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        other = [key for key in record if before.get(key) != record[key]]
        if other:
            changes = ", ".join(f"{key} {before.get(key)} instead of {record[key]}" for key in other)
            raise ValueError(f"{out} was prepared otherwise ({changes}); remove it or give another --out")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds files that this tool has not prepared; remove them or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1).encode() + b"\n")
    return out
