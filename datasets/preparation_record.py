"""preparation.json: how a data folder was prepared. Its options keep a folder from being filled twice differently."""

import hashlib
import json
from pathlib import Path
from typing import Any

from utils.files import read_json, write_atomically

RECORD = "preparation.json"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def claim_folder(out: str | Path, record: dict[str, Any]) -> Path:
    """Create the folder with `record` as its RECORD, if it does not exist; return its path.

    Raises ValueError if it holds files of another origin, or was prepared with other options."""
    out = Path(out)
    path = out / RECORD
    if path.is_file():
        before = read_json(path)
        other = [key for key in record if before.get(key) != record[key]]
        if other:
            changes = ", ".join(f"{key}: found {before.get(key)}, expected {record[key]}" for key in other)
            raise ValueError(f"{out} was prepared with other options ({changes}); remove it or give another --out")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds files that this command has not prepared; remove them or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1).encode() + b"\n")
    return out
