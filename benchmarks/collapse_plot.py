"""Draw docs/collapse.png from the runs in results/isic17.

python -m benchmarks.collapse_plot
"""

from pathlib import Path

from matplotlib.figure import Figure

from utils.figures import save_figure
from utils.files import read_rows

RUNS = Path("results/isic17")
CURVES = {  # label: folder, colour
    "published, seed 42": ("published_42", "#d55e00"),
    "warm-up, one cosine, clipping, rate 1e-3, seed 43": ("collapse_43", "#e69f00"),
    "the same, seed 42": ("stable_at_1e-3_42", "#56b4e9"),
    "stable: the same at rate 5e-4, seed 43": ("stable_43", "#009e73"),
}
BLOCKS = {  # label: block of the trace, colour
    "encoder stage 1": ("encoder 0/1", "#56b4e9"),
    "encoder stage 2": ("encoder 1/1", "#0072b2"),
    "encoder stage 3": ("encoder 2/0", "#e69f00"),
    "encoder stage 4": ("encoder 3/1", "#d55e00"),
}


def main() -> None:
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    scores, steps, outputs = figure.subplots(1, 3)
    for label, (folder, colour) in CURVES.items():
        draw(scores, read_rows(RUNS / folder / "metrics.csv"), "miou", label=label, color=colour, linewidth=1.2)
    scores.set(title="mIoU on the 650 images", xlabel="epoch", ylim=(0, 0.9))
    for precision, style in (("bf16", "-"), ("fp32", "--")):
        trace = read_rows(RUNS / "collapse_43" / f"trace_{precision}.csv")
        for label, (block, colour) in BLOCKS.items():
            name = label if precision == "bf16" else f"{label}, fp32"
            draw(steps, trace, f"largest delta {block}", style, label=name, color=colour)
            draw(outputs, trace, f"output {block}", style, label=name, color=colour)
    steps.set(title="largest step size of the scan, rate 1e-3, seed 43", xlabel="epoch", yscale="log")
    steps.axhline(0.1, color="black", linewidth=0.8, linestyle=":", label="largest at the start")
    outputs.set(title="root mean square of the block's output", xlabel="epoch", yscale="log")
    for axes in (scores, steps, outputs):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    save_figure(Path("docs/collapse.png"), figure)


def draw(axes, rows: list[dict[str, str]], column: str, *style: str, **options) -> None:
    axes.plot([int(row["epoch"]) for row in rows], [float(row[column]) for row in rows], *style, **options)


if __name__ == "__main__":
    main()
