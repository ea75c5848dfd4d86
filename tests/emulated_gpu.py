"""Runs the CUDA kernels' own source on a CPU: compiled by g++, `emulated_gpu.cuh` in place of `instructions.cuh`."""

import ctypes
import functools
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from models.kernels import nvrtc

OLDEST = 12  # g++, for _Float16
OPTIONS = ("-std=c++17", "-O1", "-march=native", "-fno-strict-aliasing", "-ffp-contract=off", "-w", "-shared", "-fPIC")
LAUNCHER = """
extern "C" const char* launch_{name}(void** arguments, int count, const int* grid, int threads, int order) {{
    return launch({name}, arguments, count, grid, threads, order);
}}
"""


def why_not() -> str | None:
    """None if it can run here, otherwise why not."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "needs g++ on Linux"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, encoding="utf-8", check=True).stdout
    return None if int(version.split(".")[0]) >= OLDEST else f"needs g++ {OLDEST} or later, found {version.strip()}"


class EmulatedGPU:
    """Takes the place of `nvrtc.functions` and `nvrtc.launch`; tensors are the CPU's."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reversed = False  # the order of a block's threads
        self.functions = functools.cache(self._functions)

    def _functions(self, source, names, defines, device_index, shared_bytes=0):
        name = "_".join([source.stem, *(str(value) for _, value in defines)])
        folder = self.folder / name
        folder.mkdir(parents=True)
        for header in nvrtc.HEADERS:
            shutil.copy(header, folder)
        shutil.copy(Path(__file__).with_suffix(".cuh"), folder / "instructions.cuh")
        launchers = "".join(LAUNCHER.format(name=name) for name in names)
        (folder / "kernels.cpp").write_text(source.read_text(encoding="utf-8") + launchers, encoding="utf-8")
        macros = [f"-D{name}={value}" for name, value in defines]
        command = ["g++", *OPTIONS, *macros, "kernels.cpp", "-o", "kernels.so"]
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        library = ctypes.CDLL(str(folder / "kernels.so"))
        kernels = {name: getattr(library, f"launch_{name}") for name in names}
        for kernel in kernels.values():
            kernel.restype = ctypes.c_char_p
        return kernels

    def launch(self, kernel, grid, threads, arguments, shared_bytes=0):
        values = [
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else nvrtc.TYPES[type(a)](a) for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        error = kernel(pointers, len(values), (ctypes.c_int * 3)(*grid), threads, int(self.reversed))
        assert error is None, error.decode()
