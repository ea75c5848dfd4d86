"""Read MetaImage and NRRD files with SimpleITK, in a child process.

A damaged file can crash SimpleITK's native readers, and the process that called them: a fuzzer found MetaImage files
that corrupt memory. This file is also the program of the child process.
"""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def read_itk_image(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file: the array (i, j, k) or (i, j), and its affine (4, 4) in mm, to the patient's left, back and head.

    Raises ValueError if SimpleITK rejects the file or crashes."""
    child = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, check=False)
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        ended = f"SimpleITK ended with status {child.returncode}, probably because the file is damaged"
        raise ValueError(lines[-1] if child.returncode == 1 and lines else ended)
    output = io.BytesIO(child.stdout)
    geometry = json.loads(output.readline())
    n, affine = len(geometry["spacing"]), np.eye(4)
    affine[:n, :n] = np.reshape(geometry["direction"], (n, n)) * geometry["spacing"]
    affine[:n, 3] = geometry["origin"]
    return np.load(output, allow_pickle=False).T, affine


def main(path: str) -> None:
    """Write a line of geometry and the array, in numpy's format, to standard output."""
    import SimpleITK  # in the child process only

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
