"""MetaImage and NRRD files, read by SimpleITK in a process of its own.

Its readers are native code that a damaged file can bring to its end, and with it whoever called them: a fuzzer found
MetaImage files after which the memory is corrupt. This file is also the program of that process.
"""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

MISSING = "MetaImage and NRRD files need SimpleITK; pip install -r requirements-extra.txt"


class Image(NamedTuple):
    """An image as SimpleITK reads it; lengths are in mm."""

    array: np.ndarray  # (i, j, k) or (i, j), the first axis the fastest in memory
    spacing: list[float]
    origin: list[float]
    direction: np.ndarray  # a column for each axis, in directions that grow to the patient's left, back and head


def read_image(path: Path) -> Image:
    """Raises ValueError for what SimpleITK refuses or can't survive, and if it is not installed."""
    child = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, check=False)
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        ended = f"SimpleITK ended with status {child.returncode}, probably because the file is damaged"
        raise ValueError(lines[-1] if child.returncode == 1 and lines else ended)
    output = io.BytesIO(child.stdout)
    geometry = json.loads(output.readline())
    direction = np.reshape(geometry.pop("direction"), (len(geometry["spacing"]),) * 2)
    return Image(np.load(output, allow_pickle=False).T, direction=direction, **geometry)


def main(path: str) -> None:
    """Writes a line of geometry and the array, as numpy stores it, to the standard output."""
    try:
        import SimpleITK
    except ModuleNotFoundError:
        sys.exit(MISSING)
    try:
        image = SimpleITK.ReadImage(path)
    except RuntimeError as error:
        sys.exit(str(error).strip().rsplit("\n", 1)[-1])
    if image.GetNumberOfComponentsPerPixel() > 1:
        sys.exit(f"found {image.GetNumberOfComponentsPerPixel()} values a pixel, expected grey values")
    geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    sys.stdout.buffer.write(json.dumps(geometry).encode() + b"\n")
    np.save(sys.stdout.buffer, SimpleITK.GetArrayViewFromImage(image), allow_pickle=False)


if __name__ == "__main__":
    main(sys.argv[1])
