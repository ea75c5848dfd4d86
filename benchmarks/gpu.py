"""The scan on a GPU: checked against double precision, timed beside the other backends, tuned, and in the model.

    python benchmarks/gpu.py --check --time --output FOLDER     (also --others --tune --model --compile; default: all
                                                                 but --tune; --backend triton instead of cuda)

Prints a table for each part and writes everything to FOLDER/gpu.json (default: $OUT or the current folder). A part that
fails says so and the next one runs. Times are medians of device time between events; at batch 1 of a CUDA graph's
replay, because launching costs more than the work. `GPU_NOTES.md` has the predictions and what came out.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_CACHE_DIR", "/tmp/vmunet-triton-cache")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself to the bit only so
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import triton  # noqa: E402

from benchmarks.common import Report  # noqa: E402
from benchmarks.on_gpu.ceilings import measure_ceilings  # noqa: E402
from benchmarks.on_gpu.checks import (  # noqa: E402
    cases,
    check_determinism,
    check_gated,
    check_graphs,
    check_layers,
    check_scan,
)
from benchmarks.on_gpu.inputs import STAGES, shape_of  # noqa: E402
from benchmarks.on_gpu.model import time_model  # noqa: E402
from benchmarks.on_gpu.times import time_others, time_stages  # noqa: E402
from benchmarks.on_gpu.tuning import Job, compile_all, tune  # noqa: E402
from models.cross_scan import backends  # noqa: E402

PARTS = ("check", "time", "others", "tune", "model", "compile")
H100_EXP2 = 3.7  # 10^12 a second, where it could not be measured


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--backends", default="cuda,triton,mamba_ssm,torch", help="backends of --model")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "triton"), help="of --check and --time")
    parser.add_argument("--output", default=os.environ.get("OUT", "."), help="folder of gpu.json")
    options = parser.parse_args()
    options.parts = [part for part in PARTS if getattr(options, part)] or [part for part in PARTS if part != "tune"]
    return options


def environment() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    return {"device": card.name, "multiprocessors": card.multi_processor_count, **versions}


def jobs_of(parts: list[str], backend: str) -> list[Job]:
    """What to compile before the parts run."""
    jobs: list[Job] = []
    if "check" in parts:
        jobs += [(shape, dtype, backend, {}) for shape, dtypes in cases() for dtype in dtypes]
    if "time" in parts or "model" in parts:
        shapes = [shape_of(stage, b) for stage in STAGES for b in (32, 1)]
        jobs += [(shape, dtype, backend, {}) for shape in shapes for dtype in (torch.bfloat16, torch.float32)]
    return jobs


def main() -> None:
    options = parse_options()
    torch.backends.cuda.matmul.allow_tf32 = True
    scan, names = backends.load(options.backend), options.backends.split(",")
    report = Report(Path(options.output, "gpu.json"), environment())

    def attempt(function: Callable, *arguments: Any) -> Any:
        """A part that fails must not stop the others."""
        start = time.time()
        try:
            return function(*arguments)
        except Exception:
            traceback.print_exc()
            report.add("failed", function.__name__)
        finally:
            print(f"[{function.__name__}: {time.time() - start:.0f} s]", flush=True)

    exp2_rate = attempt(measure_ceilings, report) or H100_EXP2
    jobs = jobs_of(options.parts, options.backend)
    if jobs:
        attempt(compile_all, jobs)
    if "check" in options.parts:
        attempt(check_scan, scan, report)
        attempt(check_gated, scan, report)
        attempt(check_determinism, scan, report)
        attempt(check_layers, report)
        attempt(check_graphs, scan, report)
    if "time" in options.parts:
        attempt(time_stages, scan, exp2_rate, report)
    if "others" in options.parts:
        attempt(time_others, report)
    if "tune" in options.parts:
        attempt(tune, report)
    if "model" in options.parts:
        attempt(time_model, names, False, report)
    if "compile" in options.parts:
        attempt(time_model, names, True, report)


if __name__ == "__main__":
    main()
