"""The scan on a GPU: checked against double precision, timed beside the other backends, tuned, and in the model.

    python benchmarks/gpu.py --check --time --output FOLDER     (also --others --tune --model --compile; default: all
                                                                 but --tune; --backend triton instead of cuda)

Prints a table for each part and writes everything to FOLDER/gpu.json (default: $OUT or the current folder). A part that
fails says so and the next one runs. Times are medians of device time between events; at batch 1 of a CUDA graph's
replay, because launching costs more than the work. `GPU_NOTES.md` has the predictions and what came out.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("TRITON_CACHE_DIR", "/tmp/vmunet-triton-cache")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from models.cross_scan import backends, cuda_scan, reference, torch_loop, triton_scan  # noqa: E402

scan = cuda_scan  # what is checked and timed; --backend changes it (--tune varies Triton's settings)

STAGES = {0: (64, 192, 6, 3), 1: (32, 384, 12, 4), 2: (16, 768, 24, 4), 3: (8, 1536, 48, 4)}  # side, I, R, blocks
N = 16
ODD_CASES = [  # b, H, W, I, R, N
    (1, 7, 13, 40, 3, 16), (2, 1, 33, 96, 6, 16), (3, 37, 5, 72, None, 16), (1, 33, 1, 33, 7, 8),
    (2, 20, 24, 64, 4, 32), (1, 9, 40, 32, 2, 64), (1, 1, 1, 16, 1, 16), (1, 25, 40, 192, 6, 1),
]  # fmt: skip
NAMES = ("x", "dt", "B", "C", "A", "D", "dt_bias", "dt_weight")
TOLERANCE = {torch.float32: (5e-7, 2e-6), torch.bfloat16: (5e-3, 5e-3), torch.float16: (5e-3, 5e-3)}
report = {}


def shape(stage, b):
    side, I, R, _ = STAGES[stage]
    return b, side, side, I, R, N


def short(dtype):
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def relative(found, expected):
    expected = expected.double()
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def make_inputs(b, H, W, I, R, dtype, N=N, seed=0):
    """Inputs drawn on the GPU, rounded to bfloat16 so that all dtypes see the same numbers; dt, B, C are views."""
    torch.manual_seed(seed)
    small = reference.make_inputs(1, 1, 1, I, N, R, seed=seed)[4:]
    rank = R or I
    x = torch.randn(b, H, W, I, device="cuda").bfloat16().to(dtype)
    product = torch.randn(b, H, W, 4, rank + 2 * N, device="cuda").bfloat16().to(dtype)
    return x, *product.split([rank, N, N], -1), *(None if t is None else t.cuda() for t in small)


def poison(size):
    """Leaves NaN in the memory that the next allocations get, so that an unwritten output can't pass."""
    for n in (size, 4 * size, 1 << 20, 1 << 16):
        torch.full((n,), float("nan"), device="cuda")


def median_ms(function, repeats=20, warmup=3):
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def graph_ms(function, calls=10, repeats=20):
    """Time of one call inside a CUDA graph of several."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    return median_ms(graph.replay, repeats) / calls


def cell(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(title, rows):
    print(f"\n## {title}", flush=True)
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = [columns] + [[cell(row.get(c, "")) for c in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*text, strict=True)]
        for line in text:
            print("  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)), flush=True)
    report[title] = rows


# ------------------------------------------------------------------------------------------------------------- ceilings


def ceilings():
    """Bandwidth of a copy, rate of a bf16 product and of exp2, as measured here."""
    import triton

    from benchmarks import gpu_kernels

    def copy_rate(a, b):
        return 2 * a.numel() * 4 / median_ms(lambda: b.copy_(a)) / 1e6

    copy = copy_rate(torch.randn(1 << 29, device="cuda"), torch.empty(1 << 29, device="cuda"))
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = 2 * 8192**3 / median_ms(lambda: m @ m) / 1e9
    out = torch.empty(132 * 16 * 1024, device="cuda")
    rounds, per_round = 200, 8
    ms = median_ms(lambda: gpu_kernels.exp2_kernel[(132 * 16,)](out, rounds, BLOCK=1024, PER=per_round, num_warps=8))
    properties = torch.cuda.get_device_properties(0)
    rates = dict(
        device=properties.name, torch=torch.__version__, triton=triton.__version__,
        multiprocessors=properties.multi_processor_count, copy_GBps=copy, bf16_TFLOPs=product,
        exp2_Tps=out.numel() * rounds * per_round / ms / 1e9,
    )  # fmt: skip
    table("ceilings", [rates])
    return rates


# --------------------------------------------------------------------------------------------------------------- checks


def double_reference(inputs, grad_y):
    """y and gradients in double precision by the torch loop (which the tests hold to the definition)."""
    doubles = [None if t is None else t.double() for t in inputs]
    y, saved = torch_loop.forward(*doubles)
    return y, torch_loop.backward(grad_y.double(), saved, *doubles)


def check_cases():
    """The four stages, with chunks and without, in both dtypes, then odd shapes: most in one dtype, to compile less."""
    both, single = (torch.float32, torch.bfloat16), (torch.float32,)
    stages = [shape(stage, b) for stage, b in ((0, 1), (1, 32), (2, 8), (3, 32))]
    return [(case, both) for case in stages + ODD_CASES[:2]] + [(case, single) for case in ODD_CASES[2:]]


def check(limit_s=90):
    rows = []
    begin = time.time()
    for (b, H, W, I, R, states), dtypes in check_cases():
        row = dict(b=b, H=H, W=W, I=I, R=R, N=states)
        rows.append(row)
        if time.time() - begin > limit_s:
            row["failed"] = f"not run: {limit_s} s were over"
            continue
        try:
            start = time.time()
            torch.manual_seed(5)
            grad_kept = torch.randn(b, H, W, I, device="cuda").bfloat16()
            expected = double_reference(make_inputs(b, H, W, I, R, torch.float32, states), grad_kept)
            torch.cuda.synchronize()
            row["reference_s"] = time.time() - start
            for dtype in dtypes:
                inputs = make_inputs(b, H, W, I, R, dtype, states)
                grad_y = grad_kept.to(dtype)
                poison(b * H * W * I)
                y, saved = scan.forward(*inputs)
                unsaved, _ = scan.forward(*inputs, save=False)
                poison(b * H * W * I)
                grads = scan.backward(grad_y, saved, *inputs)
                torch.cuda.synchronize()
                forward = relative(y, expected[0])
                errors = {
                    name: relative(a, e) for name, a, e in zip(NAMES, grads, expected[1], strict=True) if a is not None
                }
                worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else 9e9)
                good = forward <= TOLERANCE[dtype][0] and errors[worst] <= TOLERANCE[dtype][1]
                good = good and torch.equal(y, unsaved)
                row |= {short(dtype): "ok" if good else "BAD", f"{short(dtype)} y": forward}
                row[f"{short(dtype)} worst"] = f"{errors[worst]:.1e} {worst}"
                details = dict(case=[b, H, W, I, R, states], dtype=short(dtype), y=forward, **errors)
                report.setdefault("errors", []).append(details)
        except Exception as error:  # one case must not stop the others
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}"[:80]
        torch.cuda.empty_cache()
    table("agreement with double precision (relative norms)", rows)


def check_gated():
    rows = []
    for (b, H, W, I, R), dtype in itertools.product(
        [(8, 16, 16, 768, 24), (1, 7, 13, 40, 3)], (torch.float32, torch.bfloat16)
    ):
        inputs = make_inputs(b, H, W, I, R, dtype)
        both = torch.randn(b, H, W, 2 * I, device="cuda").bfloat16().to(dtype)
        z, weight, bias = both[..., I:], 1 + 0.1 * torch.randn(I, device="cuda"), 0.1 * torch.randn(I, device="cuda")
        grad = torch.randn(b, H, W, I, device="cuda").bfloat16().to(dtype)
        doubles = [t.double() for t in inputs]
        y, saved = torch_loop.forward(*doubles)
        leaves = [t.double().requires_grad_() for t in (y, z, weight, bias)]
        expected = F.layer_norm(leaves[0], (I,), leaves[2], leaves[3], 1e-5) * F.silu(leaves[1])
        dy, *others = torch.autograd.grad(expected, leaves, grad.double())
        scan_grads = torch_loop.backward(dy, saved, *doubles)
        poison(b * H * W * I)
        out, y, saved = scan.gated_forward(inputs[0], z, *inputs[1:], weight, bias, 1e-5)
        poison(b * H * W * I)
        found = scan.gated_backward(grad, y, saved, inputs[0], z, *inputs[1:], weight, bias, 1e-5)
        wanted = [scan_grads[0], others[0], *scan_grads[1:], *others[1:]]
        names = ("x", "z", *NAMES[1:], "norm_weight", "norm_bias")
        errors = {name: relative(a, e) for name, a, e in zip(names, found, wanted, strict=True)}
        worst = max(errors, key=errors.get)
        row = dict(b=b, H=H, W=W, I=I, dtype=short(dtype), out=relative(out, expected), worst=errors[worst], of=worst)
        rows.append(row)
    table("norm and gate", rows)


def determinism():
    rows = []
    for b, side, I, R in ((1, 64, 192, 6), (8, 16, 768, 24)):  # with chunks and without
        inputs = make_inputs(b, side, side, I, R, torch.bfloat16)
        grad_y = torch.randn_like(inputs[0])
        runs = []
        for _ in range(20):
            y, saved = scan.forward(*inputs)
            runs.append((y, *scan.backward(grad_y, saved, *inputs)))
        same = all(torch.equal(a, e) for run in runs[1:] for a, e in zip(run, runs[0], strict=True))
        rows.append(dict(b=b, side=side, I=I, runs=20, bit_identical=same))
    table("determinism", rows)


def check_graphs():
    """Losses of four training steps and of inference, as usual and through CUDA graphs: the same to the bit."""
    from models.cuda_graphs import GraphedModel
    from models.vmunet import VMUNet

    images = torch.randn(4, 3, 64, 64, device="cuda")
    masks = torch.rand(4, 1, 64, 64, device="cuda").round()
    losses = []
    for wrap in (lambda model: model, GraphedModel):
        torch.manual_seed(0)
        run = wrap(VMUNet(scan_backend=scan.NAME).cuda())
        optimizer = torch.optim.AdamW(run.parameters(), lr=1e-3, fused=True)
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                logits = run.train()(images)
            loss = F.binary_cross_entropy_with_logits(logits.float(), masks)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            losses[-1].append(run.eval()(images).float().square().mean().item())
    table("CUDA graphs", [dict(usual=a, graphs=b, same=a == b) for a, b in zip(*losses, strict=True)])


# -------------------------------------------------------------------------------------------------------------- timings


def gate_inputs(x):
    I = x.shape[-1]
    return torch.randn_like(x), torch.ones(I, device="cuda"), torch.zeros(I, device="cuda")


def kernel_times(function, calls=5):
    """Device time of each kernel in one call of the function, in ms."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    times = {}
    for event in profiled.key_averages():
        ms = getattr(event, "self_device_time_total", 0) / 1e3 / calls
        if ms > 0:
            name = event.key.split("<")[0].split("(")[0][-36:]
            times[name] = times.get(name, 0) + ms
    return times


def times_by_stage(rates):
    """Forward and backward of the gated scan for every stage; `us/image` at batch 32 is of one block."""
    rows, kernels = [], []
    for (stage, (side, I, R, blocks)), b, dtype in itertools.product(
        STAGES.items(), (32, 1), (torch.bfloat16, torch.float32)
    ):
        if b == 1 and dtype == torch.float32:
            continue
        try:
            inputs = make_inputs(b, side, side, I, R, dtype)
            z, weight, bias = gate_inputs(inputs[0])
            args = (inputs[0], z, *inputs[1:], weight, bias, 1e-5)
            _, y, saved = scan.gated_forward(*args)
            grad = torch.randn_like(y)
            measure = graph_ms if b == 1 else median_ms
            infer = measure(lambda: scan.gated_forward(*args, save=False))  # noqa: B023
            forward = measure(lambda: scan.gated_forward(*args))  # noqa: B023
            backward = measure(lambda: scan.gated_backward(grad, y, saved, *args))  # noqa: B023
            exps = b * side * side * 4 * I * N / rates["exp2_Tps"] / 1e9
            rows.append(dict(
                stage=stage, b=b, dtype=short(dtype), infer_ms=infer, forward_ms=forward, backward_ms=backward,
                exp_floor_ms=exps, forward_share=exps / infer, us_image_fwd=infer * 1e3 / b,
                us_image_train=(forward + backward) * 1e3 / b, blocks=blocks,
            ))  # fmt: skip
            if dtype == torch.bfloat16:
                both = kernel_times(
                    lambda: scan.gated_backward(grad, *scan.gated_forward(*args)[1:], *args)  # noqa: B023
                )
                longest = sorted(both.items(), key=lambda x: -x[1])[:12]
                kernels += [dict(stage=stage, b=b, kernel=name, ms=ms) for name, ms in longest]
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
    table("gated scan by stage", rows)
    table("kernels of one forward and backward", kernels)
    sums = []
    for b, dtype in ((32, "bf16"), (32, "fp32"), (1, "bf16")):
        these = [row for row in rows if (row["b"], row["dtype"]) == (b, dtype)]
        infer, train = (sum(row[key] * row["blocks"] for row in these) for key in ("us_image_fwd", "us_image_train"))
        sums.append(dict(b=b, dtype=dtype, infer_us=infer, train_us=train))
    table("all 15 scans, us an image", sums)


def times_of_others():
    """The other backends, forward and forward+backward, beside ours."""
    from models.cross_scan import mamba

    rows = []
    for stage, (side, I, R, _) in STAGES.items():
        for name in ("torch", "mamba_ssm"):
            try:
                inputs = make_inputs(32, side, side, I, R, torch.bfloat16)
                if name == "torch":
                    y, saved = torch_loop.forward(*inputs)
                    grad = torch.randn_like(y)
                    forward = median_ms(lambda: torch_loop.forward(*inputs, save=False), 2, 1)  # noqa: B023
                    backward = median_ms(lambda: torch_loop.backward(grad, saved, *inputs), 2, 1)  # noqa: B023
                else:
                    reason = mamba.why_not(torch.device("cuda"), torch.bfloat16)
                    if reason:
                        print(f"mamba_ssm: {reason}")
                        continue
                    inputs = [t.detach().requires_grad_() for t in inputs]
                    with torch.no_grad():
                        forward = median_ms(lambda: mamba.scan(*inputs), 10)  # noqa: B023
                    y = mamba.scan(*inputs)
                    grad = torch.randn_like(y)
                    backward = median_ms(lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True), 10)  # noqa: B023
                rows.append(dict(stage=stage, b=32, backend=name, forward_ms=forward, backward_ms=backward))
            except Exception:
                traceback.print_exc()
            torch.cuda.empty_cache()
    table("other backends, scan alone, bf16", rows)


# --------------------------------------------------------------------------------------------------------------- tuning


def compile_one(job):
    """In a process of its own: compiles what one setting needs, into the cache on disk."""
    (b, H, W, I, R, states), dtype, settings = job
    configure(settings)
    inputs = make_inputs(b, H, W, I, R, dtype, states)
    z, weight, bias = gate_inputs(inputs[0])
    args = (inputs[0], z, *inputs[1:], weight, bias, 1e-5)
    _, y, saved = scan.gated_forward(*args)
    scan.gated_forward(*args, save=False)
    scan.gated_backward(torch.zeros_like(y), y, saved, *args)
    torch.cuda.synchronize()


def configure(settings):
    global scan
    scan = backends.load(settings.get("backend", scan.NAME))
    triton_scan.TUNING.update({k: v for k, v in settings.items() if k in triton_scan.TUNING})
    triton_scan.SEGMENT = settings.get("segment", triton_scan.SEGMENT)


def compile_all(jobs):
    """Compiles in several processes at once; compiling one after the other would cost more than the measurements."""
    start = time.time()
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(12, len(jobs), max(1, (os.cpu_count() or 2) - 2))) as pool:
        for job, result in [(job, pool.apply_async(compile_one, (job,))) for job in jobs]:
            try:
                result.get(timeout=240)
            except Exception as error:
                print(f"compiling {job}: {type(error).__name__}: {error}", flush=True)
    print(f"compiled {len(jobs)} settings in {time.time() - start:.0f} s", flush=True)


def tune():
    """A row for each setting: inference, forward and backward of the gated scan in ms at each stage, and of all 15."""
    before = scan.NAME
    default = dict(triton_scan.TUNING, segment=triton_scan.SEGMENT, backend="triton")
    large = [dict(default, forward_warps=w, backward_warps=w, segment=s)
             for w, s in ((1, 16), (2, 16), (4, 16), (1, 32), (2, 32), (1, 64))]  # fmt: skip
    large += [dict(default, enough_warps=e, shortest_chunk=c) for e, c in ((1024, 64), (1024, 2048), (2048, 64))]
    small = [dict(default, enough_warps=e, shortest_chunk=c) for e, c in
             ((0, 64), (256, 64), (512, 32), (512, 64), (512, 128), (1024, 32), (1024, 64))]  # fmt: skip
    compile_all([(shape(stage, b), torch.bfloat16, v) for v, b in
                 [(v, 32) for v in large[:7]] + [(v, 1) for v in small[:2]] for stage in STAGES])  # fmt: skip
    rows = []
    for b, settings in [(32, v) for v in large] + [(1, v) for v in small]:
        configure(settings)
        row, sums = dict(b=b, **settings), [0.0, 0.0, 0.0]
        rows.append(row)
        for stage, (side, I, R, blocks) in STAGES.items():
            try:
                inputs = make_inputs(b, side, side, I, R, torch.bfloat16)
                z, weight, bias = gate_inputs(inputs[0])
                args = (inputs[0], z, *inputs[1:], weight, bias, 1e-5)
                _, y, saved = scan.gated_forward(*args)
                grad = torch.randn_like(y)
                functions = (
                    lambda: scan.gated_forward(*args, save=False),  # noqa: B023
                    lambda: scan.gated_forward(*args),  # noqa: B023
                    lambda: scan.gated_backward(grad, y, saved, *args),  # noqa: B023
                )
                times = [graph_ms(f) if b == 1 else median_ms(f, 10) for f in functions]
                sums = [total + blocks * ms for total, ms in zip(sums, times, strict=True)]
                row[f"stage {stage}"] = " ".join(f"{ms:.3f}" for ms in times)
            except Exception as error:
                row[f"stage {stage}"] = f"{type(error).__name__}: {error}"[:40]
                sums = [float("nan")] * 3
            torch.cuda.empty_cache()
        row["all 15"] = " ".join(f"{ms:.2f}" for ms in sums)
    configure(default | {"backend": before})
    table("tuning (inference, forward, backward ms)", rows)


# ---------------------------------------------------------------------------------------------------------------- model


def model_times(compiled, backends_wanted):
    """The whole network at 256x256: forward and training step, images/s and peak memory."""
    from models.vmunet import VMUNet

    rows = []
    settings = [("cuda", 32, "bf16"), ("cuda", 1, "bf16"), ("cuda", 32, "fp32"), ("cuda", 1, "fp32"),
                ("triton", 32, "bf16"), ("mamba_ssm", 32, "bf16"), ("mamba_ssm", 32, "fp32"),
                ("torch", 1, "bf16")]  # fmt: skip
    for backend, b, precision in settings:
        if backend not in backends_wanted or (compiled and backend != "cuda"):
            continue
        row = dict(backend=backend, b=b, precision=precision, mode="compiled" if compiled else "eager")
        try:
            torch.manual_seed(0)
            model = VMUNet(scan_backend=backend).cuda()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)
            images = torch.randn(b, 3, 256, 256, device="cuda")
            masks = torch.rand(b, 1, 256, 256, device="cuda").round()
            run = torch.compile(model) if compiled else model

            def forward(run=run, images=images, precision=precision):
                with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                    return run(images)

            def infer(forward=forward):
                with torch.no_grad():
                    return forward()

            def step(forward=forward, masks=masks, optimizer=optimizer):
                optimizer.zero_grad(set_to_none=True)
                loss = F.binary_cross_entropy_with_logits(forward().float(), masks)
                loss.backward()
                optimizer.step()
                return loss

            count = 2 if backend == "torch" else 10
            model.eval()
            torch.cuda.reset_peak_memory_stats()
            row["infer_ms"] = median_ms(infer, count)
            row["infer_GB"] = torch.cuda.max_memory_allocated() / 1e9
            if backend in backends.FUSED:
                row["infer_graph_ms"] = graph_ms(infer, 1)
            model.train()
            torch.cuda.reset_peak_memory_stats()
            row["train_ms"] = median_ms(step, count)
            row["train_GB"] = torch.cuda.max_memory_allocated() / 1e9
            if backend in backends.FUSED:
                row["train_graph_ms"] = graph_ms(step, 1)
            row["infer_img_s"] = b * 1e3 / min(row["infer_ms"], row.get("infer_graph_ms", 9e9))
            row["train_img_s"] = b * 1e3 / min(row["train_ms"], row.get("train_graph_ms", 9e9))
            if backend == "cuda" and b == 32 and precision == "bf16" and not compiled:
                times = kernel_times(lambda: step(), 2)  # noqa: B023
                table("kernels of a training step, batch 32, bf16",
                      [dict(kernel=k, ms=v) for k, v in sorted(times.items(), key=lambda x: -x[1])[:40]])  # fmt: skip
                times = kernel_times(lambda: infer(), 2)  # noqa: B023
                table("kernels of a forward, batch 32, bf16",
                      [dict(kernel=k, ms=v) for k, v in sorted(times.items(), key=lambda x: -x[1])[:25]])  # fmt: skip
        except Exception as error:
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}"[:80]
        rows.append(row)
        model = optimizer = None
        torch.cuda.empty_cache()
    table("VM-UNet at 256x256" + (", torch.compile" if compiled else ""), rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("check", "time", "others", "tune", "model", "compile")
    for part in parts:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--backends", default="cuda,triton,mamba_ssm,torch", help="backends of --model")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "triton"), help="of --check and --time")
    parser.add_argument("--output", default=os.environ.get("OUT", "."), help="folder of gpu.json")
    options = parser.parse_args()
    chosen = [part for part in parts if getattr(options, part)] or [part for part in parts if part != "tune"]
    torch.backends.cuda.matmul.allow_tf32 = True
    configure({"backend": options.backend})

    def attempt(function, *arguments):
        start = time.time()
        try:
            return function(*arguments)
        except Exception:
            traceback.print_exc()
            report.setdefault("failed", []).append(function.__name__)
        finally:
            print(f"[{function.__name__}: {time.time() - start:.0f} s]", flush=True)
            Path(options.output, "gpu.json").write_text(json.dumps(report, indent=1))

    rates = attempt(ceilings) or {"exp2_Tps": 3.7}
    chosen_backend = {"backend": options.backend}
    jobs = []
    if "check" in chosen:
        jobs += [(case, dtype, chosen_backend) for case, dtypes in check_cases() for dtype in dtypes]
    if {"time", "model"} & set(chosen):
        jobs += [(shape(stage, b), dtype, chosen_backend) for stage in STAGES for b in (32, 1)
                 for dtype in (torch.bfloat16, torch.float32)]  # fmt: skip
    if jobs:
        attempt(compile_all, jobs)
    if "check" in chosen:
        attempt(check)
        attempt(check_gated)
        attempt(determinism)
        attempt(check_graphs)
    if "time" in chosen:
        attempt(times_by_stage, rates)
    if "others" in chosen:
        attempt(times_of_others)
    if "tune" in chosen:
        attempt(tune)
    if "model" in chosen:
        attempt(model_times, False, options.backends.split(","))
    if "compile" in chosen:
        attempt(model_times, True, options.backends.split(","))


if __name__ == "__main__":
    main()
