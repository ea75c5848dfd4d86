"""An exported network in ONNX Runtime, with and without the fast scan, beside this code: one image of 256 x 256.

    python export.py isic17 --custom-op INCLUDE      # without --custom-op the row of the compiled operator is missing
    python -m benchmarks.exported results/isic17.onnx isic17

Arguments: the file, and the checkpoint that it was made from.
"""

import numpy as np
import onnxruntime
import torch

from benchmarks.common import SIDE, make_images, medians, start
from inference.trained import load_trained
from models import onnx
from utils.machine.device import available_cpus

ROUNDS = 15


def main():
    report = start(__doc__, "exported", "file", "checkpoint")
    file, threads = report.options.file, available_cpus()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = make_images(1, SIDE)
    network = load_trained(str(report.options.checkpoint)).network

    def predict():
        with torch.inference_mode():
            return network.predict(images).numpy()

    def of_session(session):
        return lambda: session.run(None, {"images": images.numpy()})[0]

    def plain(library=None, spinning="1"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        if library is not None:
            options.register_custom_ops_library(str(library.resolve()))
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    runs = {"this code": predict, "ONNX Runtime, the file alone": of_session(plain())}
    runs["vmunet.onnx.session"] = of_session(onnx.session(file, threads))
    if (library := file.with_suffix(".so")).exists():
        runs["compiled operator"] = of_session(plain(library))
        runs["compiled operator, threads wait asleep"] = of_session(plain(library, spinning="0"))
    expected = predict()
    times, rows = medians(runs, ROUNDS), []
    for name, run in runs.items():
        error = float(np.abs(run() - expected).max())
        rows.append({"": name, "ms": times[name], "ratio": times[name] / times["this code"], "difference": error})
    report.table("Exported network", rows)


if __name__ == "__main__":
    main()
