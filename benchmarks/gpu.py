"""The scan on a GPU: compared with double precision, timed, and in the network, there beside the other backends. The
network beside others.

    python benchmarks/gpu.py --check --time --output FOLDER       (also --model, --peers; default: all;
                                                                   --backend triton instead of cuda)

Prints a table for each part and writes all of them to FOLDER/gpu.json (default: $OUT or the current folder). After a
part that fails the next one runs. Times are medians of device time between events; at batch 1 of a CUDA graph's replay,
because launching costs more than the work. `notes/gpu_scan.md` has the predictions and the results.
"""

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_CACHE_DIR", "/tmp/vmunet-triton-cache")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import triton  # noqa: E402

from benchmarks.common import STAGES, Report  # noqa: E402
from benchmarks.on_gpu import correctness  # noqa: E402
from benchmarks.on_gpu.network_times import time_network  # noqa: E402
from benchmarks.on_gpu.peer_times import time_peers  # noqa: E402
from benchmarks.on_gpu.scan_inputs import EPS, Shape, forward_backward, make_gated_inputs, shape_of  # noqa: E402
from benchmarks.on_gpu.scan_times import time_stages  # noqa: E402
from models.cross_scan import backends  # noqa: E402


def compile_one(shape: Shape, dtype: torch.dtype, backend: str) -> None:
    scan, inputs = backends.load(backend), make_gated_inputs(shape, dtype)
    scan.gated_forward(inputs, EPS, save=False)
    forward_backward(scan, inputs)
    torch.cuda.synchronize()


def compile_all(jobs: Iterable[tuple[Shape, torch.dtype]], backend: str) -> None:
    """Compile kernels into the cache on disk in several processes. One after the other would take longer than the
    measurements."""
    workers = min(12, max(1, (os.cpu_count() or 2) - 2))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, result in [(job, pool.submit(compile_one, *job, backend)) for job in jobs]:
            if error := result.exception():
                print(f"compiling {job}: {type(error).__name__}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("check", "time", "model", "peers")
    for name in names:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--backends", default="cuda,triton,mamba_ssm,torch", help="backends of --model")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "triton"), help="of --check and --time")
    parser.add_argument("--output", default=os.environ.get("OUT", "."), help="folder of gpu.json")
    options = parser.parse_args()
    chosen = [name for name in names if getattr(options, name)] or names

    torch.backends.cuda.matmul.allow_tf32 = True
    scan, card = backends.load(options.backend), torch.cuda.get_device_properties(0)
    machine = {"device": card.name, "multiprocessors": card.multi_processor_count}
    report = Report(
        Path(options.output, "gpu.json"), machine | {"torch": torch.__version__, "triton": triton.__version__}
    )

    def attempt(function: Callable, *arguments: Any) -> None:
        """Run a part. Its failure must not stop the others."""
        start = time.time()
        try:
            function(*arguments)
        except Exception:
            traceback.print_exc()
            report.add("failed", function.__name__)
        finally:
            print(f"[{function.__name__}: {time.time() - start:.0f} s]", flush=True)

    jobs: set[tuple[Shape, torch.dtype]] = set()
    if "check" in chosen:
        jobs |= {(shape, dtype) for shape, dtypes in correctness.cases() for dtype in dtypes}
    if "time" in chosen or "model" in chosen:
        shapes = [shape_of(stage, b) for stage in STAGES for b in (32, 1)]
        jobs |= {(shape, dtype) for shape in shapes for dtype in (torch.bfloat16, torch.float32)}
    attempt(compile_all, jobs, options.backend)
    if "check" in chosen:
        attempt(correctness.check_scan, scan, report)
        attempt(correctness.check_gated, scan, report)
        attempt(correctness.check_determinism, scan, report)
        attempt(correctness.check_layers, report)
        attempt(correctness.check_graphs, scan, report)
    if "time" in chosen:
        attempt(time_stages, scan, report)
    if "model" in chosen:
        attempt(time_network, options.backends.split(","), report)
    if "peers" in chosen:
        attempt(time_peers, report)


if __name__ == "__main__":
    main()
