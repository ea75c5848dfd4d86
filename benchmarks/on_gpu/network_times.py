"""The whole network at 256 x 256: forward and training step, images per second, peak memory."""

import torch
import torch.nn.functional as F

from benchmarks.common import Report
from benchmarks.on_gpu.scan_inputs import graph_ms, longest_kernels, median_ms, row_or_failure
from models.cross_scan import backends
from models.vmunet import VMUNet

SETTINGS = [  # backend, batch, precision
    ("cuda", 32, "bf16"),
    ("cuda", 1, "bf16"),
    ("cuda", 32, "fp32"),
    ("cuda", 1, "fp32"),
    ("triton", 32, "bf16"),
    ("mamba_ssm", 32, "bf16"),
    ("mamba_ssm", 32, "fp32"),
    ("torch", 1, "bf16"),
]


def time_network(names: list[str], report: Report) -> None:
    """Report a row for each of SETTINGS with one of these backends."""
    rows = []
    for backend, b, precision in SETTINGS:
        if backend in names:
            row = {"backend": backend, "b": b, "precision": precision}
            rows.append(row | row_or_failure(time_setting, backend, b, precision, report))
    report.table("VM-UNet at 256x256", rows)


def time_setting(backend: str, b: int, precision: str, report: Report) -> dict[str, float]:
    """Return the cells of a row: forward without gradients and training step, on one batch."""
    torch.manual_seed(0)
    model = VMUNet(scan_backend=backend).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)
    images = torch.randn(b, 3, 256, 256, device="cuda")
    masks = torch.rand(b, 1, 256, 256, device="cuda").round()

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            return model(images)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.binary_cross_entropy_with_logits(forward().float(), masks).backward()
        optimizer.step()

    repeats, row = 2 if backend == "torch" else 10, {}
    for name, function, count in (("infer", torch.no_grad()(forward), 25), ("train", step, 40)):
        model.train(name == "train")
        torch.cuda.reset_peak_memory_stats()
        row[f"{name}_ms"] = fastest = median_ms(function, repeats)
        row[f"{name}_GB"] = torch.cuda.max_memory_allocated() / 1e9
        if backends.is_fused(backend):
            row[f"{name}_graph_ms"] = graph_ms(function, 1)
            fastest = min(fastest, row[f"{name}_graph_ms"])
        row[f"{name}_img_s"] = b * 1e3 / fastest
        if (backend, b, precision) == ("cuda", 32, "bf16"):
            report.table(f"kernels, {name}, batch 32, bf16", longest_kernels(function, count, calls=2))
    return row
