"""The scan compared with double precision, with itself, and with CUDA graphs."""

import time
from types import ModuleType

import torch
import torch.nn.functional as F

from benchmarks.common import Report
from benchmarks.on_gpu.scan_inputs import DTYPES, EPS, Shape, make_inputs, row_or_failure, shape_of
from engine import Compute
from models.compile_ahead import compile_ahead
from models.cross_scan import torch_loop
from models.cross_scan.problems import GatedInputs, ScanInputs
from models.cuda_graphs import GraphedModel
from models.family import NETWORKS, build_network
from models.kernels.conv_silu import convolve, convolve_backward
from models.kernels.layer_norm import layer_norm, layer_norm_backward

LAYER_BOUND = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}

ODD_SHAPES = [  # b, H, W, I, R, N
    (1, 7, 13, 40, 3, 16),
    (2, 1, 33, 96, 6, 16),
    (3, 37, 5, 72, None, 16),
    (1, 33, 1, 33, 7, 8),
    (2, 20, 24, 64, 4, 32),
    (1, 9, 40, 32, 2, 64),
    (1, 1, 1, 16, 1, 16),
    (1, 25, 40, 192, 6, 1),
]
TOLERANCE = {torch.float32: (5e-7, 2e-6), torch.bfloat16: (5e-3, 5e-3)}  # of y, of gradients


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference relative to that of `expected`."""
    expected = expected.double()
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def errors_by_name(found: ScanInputs | GatedInputs, expected: ScanInputs | GatedInputs) -> dict[str, float]:
    """Return the relative error of each gradient."""
    pairs = zip(found._fields, found, expected, strict=True)
    return {name: relative(gradient, exact) for name, gradient, exact in pairs if gradient is not None}


def worst_of(errors: dict[str, float]) -> str:
    """Return the name with the largest error. NaN counts as largest."""
    return max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))


def poison(size: int) -> None:
    """Fill the memory of the next allocations with NaN, so that an unwritten output can't pass."""
    for n in (size, 4 * size, 1 << 20, 1 << 16):
        torch.full((n,), float("nan"), device="cuda")


def in_double(inputs: ScanInputs) -> ScanInputs:
    return ScanInputs._make(None if t is None else t.double() for t in inputs)


def cases() -> list[tuple[Shape, tuple[torch.dtype, ...]]]:
    """Return shapes and dtypes: the four stages, with chunks and without, then odd shapes, most in one dtype only."""
    both, single = (torch.float32, torch.bfloat16), (torch.float32,)
    stages = [shape_of(stage, b) for stage, b in ((0, 1), (1, 32), (2, 8), (3, 32))]
    return [(shape, both) for shape in stages + ODD_SHAPES[:2]] + [(shape, single) for shape in ODD_SHAPES[2:]]


def check_scan(scan: ModuleType, report: Report) -> None:
    """Compare y and all gradients with the torch loop in double precision, which tests compare with the definition."""
    rows = []
    for shape, dtypes in cases():
        row = dict(zip(("b", "H", "W", "I", "R", "N"), shape, strict=True))
        rows.append(row | row_or_failure(check_shape, scan, shape, dtypes, report))
    report.table("agreement with double precision (relative norms)", rows)


def check_shape(scan: ModuleType, shape: Shape, dtypes: tuple[torch.dtype, ...], report: Report) -> dict:
    """Return the cells of one shape's row. All errors go to `errors` in the report."""
    start = time.time()
    torch.manual_seed(5)
    grad_kept = torch.randn(shape[:4], device="cuda").bfloat16()
    exact = in_double(make_inputs(shape, torch.float32))
    exact_y, exact_saved = torch_loop.forward(exact)
    exact_grads = torch_loop.backward(grad_kept.double(), exact_saved, exact)
    torch.cuda.synchronize()
    row: dict = {"reference_s": time.time() - start}
    for dtype in dtypes:
        inputs, grad_y = make_inputs(shape, dtype), grad_kept.to(dtype)
        poison(inputs.x.numel())
        y, saved = scan.forward(inputs)
        unsaved, _ = scan.forward(inputs, save=False)
        poison(inputs.x.numel())
        grads = scan.backward(grad_y, saved, inputs)
        torch.cuda.synchronize()
        forward, errors = relative(y, exact_y), errors_by_name(grads, exact_grads)
        worst, (forward_limit, backward_limit) = worst_of(errors), TOLERANCE[dtype]
        good = forward <= forward_limit and errors[worst] <= backward_limit and torch.equal(y, unsaved)
        name = DTYPES[dtype]
        row |= {name: "ok" if good else "BAD", f"{name} y": forward, f"{name} worst": f"{errors[worst]:.1e} {worst}"}
        report.add("errors", {"shape": shape, "dtype": name, "y": forward, "gradients": errors})
    return row


def check_gated(scan: ModuleType, report: Report) -> None:
    """Compare the scan with norm and gate."""
    rows = []
    for shape in (shape_of(2, 8), ODD_SHAPES[0]):
        for dtype in (torch.float32, torch.bfloat16):
            inputs, I = make_inputs(shape, dtype), shape[3]
            both = torch.randn(*shape[:3], 2 * I, device="cuda").bfloat16().to(dtype)
            weight, bias = 1 + 0.1 * torch.randn(I, device="cuda"), 0.1 * torch.randn(I, device="cuda")
            gated = inputs.gated(both[..., I:], weight, bias)
            grad = torch.randn(shape[:4], device="cuda").bfloat16().to(dtype)
            exact_out, exact_grads = gated_in_double(gated, grad)
            poison(inputs.x.numel())
            out, y, saved = scan.gated_forward(gated, EPS)
            poison(inputs.x.numel())
            errors = errors_by_name(scan.gated_backward(grad, y, saved, gated, EPS), exact_grads)
            worst = worst_of(errors)
            row = dict(zip(("b", "H", "W", "I"), shape[:4], strict=True)) | {"dtype": DTYPES[dtype]}
            rows.append(row | {"out": relative(out, exact_out), "worst": errors[worst], "of": worst})
    report.table("norm and gate", rows)


def gated_in_double(inputs: GatedInputs, grad: torch.Tensor) -> tuple[torch.Tensor, GatedInputs]:
    """Return output and gradients of the scan with norm and gate, by the torch loop and autograd in float64."""
    exact = in_double(inputs.scan())
    y, saved = torch_loop.forward(exact)
    leaves = [t.double().requires_grad_() for t in (y, inputs.z, inputs.norm_weight, inputs.norm_bias)]
    y, z, weight, bias = leaves
    out = F.layer_norm(y, y.shape[-1:], weight, bias, EPS) * F.silu(z)
    dy, *others = torch.autograd.grad(out, leaves, grad.double())
    return out, torch_loop.backward(dy, saved, exact).gated(*others)


def check_determinism(scan: ModuleType, report: Report) -> None:
    """Compare 20 runs bit for bit, with chunks and without."""
    rows = []
    for shape in (shape_of(0, 1), shape_of(2, 8)):
        inputs, runs = make_inputs(shape, torch.bfloat16), []
        for _ in range(20):
            y, saved = scan.forward(inputs)
            runs.append((y, *scan.backward(inputs.x, saved, inputs)))
        same = all(torch.equal(a, e) for run in runs[1:] for a, e in zip(run, runs[0], strict=True))
        rows.append({"b": shape[0], "side": shape[1], "I": shape[3], "runs": len(runs), "bit_identical": same})
    report.table("determinism", rows)


def check_layers(report: Report) -> None:
    """Compare LayerNorm and the convolution with SiLU with double precision."""
    rows = []
    for channels in (8, 24, 40, 96, 384, 768, 1536, 3072):
        for x_type, y_type in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16,) * 2):
            rows.append(check_layer_norm((37, channels), x_type, y_type, "cuda"))
    for shape in ((2, 7, 5, 70), (3, 1, 9, 32), (2, 64, 64, 192), (1, 8, 8, 1536)):
        rows += [check_convolution(shape, dtype, "cuda") for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    report.table("layers", rows)


def check_layer_norm(shape: tuple[int, int], x_type: torch.dtype, y_type: torch.dtype, device: str) -> dict:
    """Return a row of relative errors for x of the shape (rows, channels)."""
    x = (3 + 2 * torch.randn(shape, device=device)).to(x_type)
    weight, bias = torch.randn(2, shape[1], device=device)
    y = layer_norm(x, weight, bias, EPS, y_type)
    grad = torch.randn_like(y)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = F.layer_norm(leaves[0], shape[1:], *leaves[1:], EPS)
    return layer_row("LayerNorm", x, (y, *layer_norm_backward(grad, x, weight, EPS)), exact, grad, leaves)


def check_convolution(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> dict:
    """Return a row of relative errors for x of the shape (b, H, W, channels)."""
    channels = shape[-1]
    x = torch.randn(shape, device=device).to(dtype)
    weight, bias = torch.randn(channels, 1, 3, 3, device=device), torch.randn(channels, device=device)
    grad = torch.randn_like(x)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    maps = leaves[0].permute(0, 3, 1, 2)
    exact = F.silu(F.conv2d(maps, *leaves[1:], padding=1, groups=channels)).permute(0, 2, 3, 1)
    found = (convolve(x, weight, bias), *convolve_backward(grad, x, weight, bias))
    return layer_row("conv, SiLU", x, found, exact, grad, leaves)


def layer_row(name: str, x: torch.Tensor, found: tuple, exact: torch.Tensor, grad: torch.Tensor, leaves: list) -> dict:
    """Compare the output and the gradients that were `found` with the exact ones."""
    wanted = exact, *torch.autograd.grad(exact, leaves, grad.double())
    errors = [relative(f, e) for f, e in zip(found, wanted, strict=True)]
    ok = all(error < LAYER_BOUND[f.dtype] for error, f in zip(errors, found, strict=True))
    row = {"layer": name, "shape": str(tuple(x.shape)), "dtype": DTYPES[x.dtype], "ok": "ok" if ok else "WRONG"}
    return row | dict(zip(("y", "dx", "d_weight", "d_bias"), errors, strict=True))


def check_graphs(scan: ModuleType, report: Report) -> None:
    """Compare eager execution with CUDA graphs: losses of nine training steps with batches of several sizes, then
    inference, for each network. They agree bit for bit if eager execution `repeats` itself. VM-UNetV2 need not: the
    backward of PyTorch's adaptive pooling adds in any order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    images = torch.randn(4, 3, 64, 64, device="cuda")
    masks = torch.rand(4, 1, 64, 64, device="cuda").round()
    autocast = Compute(torch.device("cuda"), "bf16").autocast
    sizes = (4, 4, 3, 4, 3, 1, 1, 3, 4)  # two are recorded when they come again, the third never

    def losses(network: str, graphed: bool) -> list[float]:
        torch.manual_seed(0)
        model = build_network({"network": network, "scan_backend": scan.NAME}).cuda()
        model = GraphedModel(model) if graphed else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        found = []
        for size in sizes:
            optimizer.zero_grad()
            with autocast():
                logits = model.train()(images[:size])
            loss = F.binary_cross_entropy_with_logits(logits.float(), masks[:size])
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        with torch.inference_mode(), autocast():
            found += [model.eval()(images[:size]).float().square().mean().item() for size in sizes]
        return found

    for network in NETWORKS:  # all at once; one after the other takes minutes
        model = build_network({"network": network, "scan_backend": scan.NAME})
        compile_ahead(model, torch.bfloat16, torch.device("cuda"), trains=True)
    rows = []
    for network in NETWORKS:
        runs = [losses(network, graphed) for graphed in (False, False, True)]
        for usual, again, graph in zip(*runs, strict=True):
            row = {"network": network, "usual": usual, "graphs": graph}
            rows.append(row | {"repeats": usual == again, "same": usual == graph})
    torch.use_deterministic_algorithms(False)
    report.table("CUDA graphs", rows)
