"""Rows of the paper's tables, run with several seeds and set beside the published numbers, and rows like them.

    python -m experiments isic17-none                        train.py with 3 seeds, then results/table.md
    python -m experiments acdc-none --protocol holdout       volumes that the paper does not have
    python -m experiments isic17-none isic17-unet-none       several rows, one after the other
    python -m experiments isic17-none --seeds 42 --epochs 1  every other flag goes to the training script
    python -m experiments isic17-none --recipe stable        the same row by another recipe
    python -m experiments isic17-none --dry-run              says what is finished and what would be run
    python -m experiments                                    makes the table anew from the runs that are there

The same command again goes on where it stopped: finished runs are recognised by their config.json, whoever started
them, and killed ones are resumed. Don't start it while one of these runs is still in training elsewhere.
"""

import argparse
import dataclasses
import logging
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from configs.base import BaseConfig
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.recipes import parse_config
from utils.files import write_atomically
from utils.report.published import ROWS, paper_number, row_name
from utils.repository import REPOSITORY, RESULTS, here_or_beside_the_code

if TYPE_CHECKING:
    from utils.report.groups import Group

log = logging.getLogger("vmunet")

ROOT = REPOSITORY
SEEDS = (42, 43, 44)
STOPPED = (75, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of a training that somebody stopped
VOLUMES = ("synapse", "acdc")
DATA_SETS = ("isic17", "isic18", *VOLUMES)
MORE = [("unet", "none"), ("unet", "imagenet"), ("ultralight", "none"), ("vmunetv2", "none"), ("vmunetv2", "vmamba-s")]
NAMES = [*ROWS, "acdc-none", "acdc-vmamba-s"]
NAMES += [f"{dataset}-{network}-{weights}" for dataset in DATA_SETS for network, weights in MORE]
WEIGHTS = {  # the first file that is there is taken
    "vmamba-s": ("vmamba_small_e238_ema.pth", "vssmsmall_dp03_ckpt_epoch_238.pth"),
    "vmamba-t": ("vssmtiny_dp01_ckpt_epoch_292.pth", "vmamba_tiny_e292.pth"),
}
COLUMNS = {  # scores in the tables, of volumes or not
    False: ("miou", "dsc"),
    True: ("dice_transunet", "hd95_transunet"),
}


# ---- what there is to run


def arguments_of(name: str, seed: int, work_dir: str, flags: list[str]) -> list[str]:
    """The flags of the training script for a row's run with one seed; `flags` are further ones.

    Raises ValueError for an unknown name."""
    if name not in NAMES:
        raise ValueError(f"found no experiment {name!r}, expected some of {', '.join(NAMES)}")
    dataset, _, rest = name.partition("-")
    network, _, weights = rest.partition("-")
    if network not in dict(MORE):
        network, weights = "vmunet", rest
    row = {"dataset": dataset, "network": network, "load-ckpt-path": weights_file(weights)}
    row |= {"seed": str(seed), "work-dir": work_dir}
    return [text for flag, value in row.items() for text in (f"--{flag}", value)] + flags


def config_of(name: str, seed: int, work_dir: str, flags: list[str]) -> BaseConfig:
    """The config of that run. Raises ValueError also for flags that make another row of it."""
    arguments = arguments_of(name, seed, work_dir, flags)
    config = parse_config(SynapseConfig if name.startswith(VOLUMES) else ISICConfig, arguments)
    found = row_name(dataclasses.asdict(config))
    if found != name or config.seed != seed or config.work_dir != work_dir:
        raise ValueError(
            f"{name}: found flags {shlex.join(flags)}, expected none of --dataset, --network, --seed (--seeds), "
            "--resume and --test-only, and --load-ckpt-path only for a file whose name says small or tiny like the row"
        )
    return config


def weights_file(weights: str) -> str:
    """The value of load_ckpt_path for none, imagenet, vmamba-t or vmamba-s."""
    paths = [f"pretrained_weights/{file}" for file in WEIGHTS.get(weights, ())]
    return next((path for path in paths if here_or_beside_the_code(path).is_file()), paths[0]) if paths else weights


def plan(name: str, seeds: list[int], work_dir: str, flags: list[str]) -> list[tuple[int, str, list[str] | None]]:
    """[(seed, state, command)] of a row: "finished in FOLDER" without a command, "resume" or "start" with one."""
    from configs.earlier_runs import can_be_resumed, find_runs, same_run  # these need PyTorch
    from datasets.classes import with_classes

    steps: list[tuple[int, str, list[str] | None]] = []
    runs = find_runs(work_dir)
    for seed in seeds:
        config = with_classes(config_of(name, seed, work_dir, flags))
        command = [sys.executable, str(ROOT / ("train_synapse.py" if config.of_volumes else "train.py"))]
        there = [run for run in runs if same_run(run, config)]
        finished = [run for run in there if run.finished]
        if finished:
            steps.append((seed, f"finished in {finished[-1].folder}", None))
        elif there and can_be_resumed(there[-1], config):
            steps.append((seed, "resume", [*command, "--resume", str(there[-1].folder)]))
        else:
            steps.append((seed, "start", [*command, *arguments_of(name, seed, work_dir, flags)]))
    return steps


# ---- the table


def table(work_dir: str | Path) -> str:
    """The text of table.md: every row of the paper, and every finished run in `work_dir` that belongs to one."""
    from configs.earlier_runs import find_runs  # needs PyTorch
    from utils.report.groups import SCORES, group_runs

    runs = [run for run in find_runs(work_dir) if run.row is not None and run.finished]
    lines = [
        "# Results beside the paper's",
        "",
        "Made by `python -m experiments` from the runs in this folder. Mean ± standard deviation over the seeds. The",
        "published split of ISIC was never released: the paper's test images are others.",
    ]
    for of_volumes, scores in COLUMNS.items():
        labels = [f"{SCORES[of_volumes][score].label} {whose}" for score in scores for whose in ("paper", "here")]
        header = ["Row", *labels, "Seeds", "Recipe", "Remarks"]
        lines += ["", table_line(header), "|" + "---|" * len(header)]
        here = [run for run in runs if run.of_volumes is of_volumes]
        rows = [row for row in ROWS if row.startswith(VOLUMES) is of_volumes]
        for row in dict.fromkeys([*rows, *(str(run.row) for run in here)]):
            groups: list[Group | None] = [*group_runs([run for run in here if run.row == row])]
            lines += [table_line(table_row(row, of_volumes, group)) for group in groups or [None]]
    return "\n".join(lines) + "\n"


def table_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table_row(row: str, of_volumes: bool, group: "Group | None") -> list[str]:
    """The cells of a group of runs, or of a row of the paper that was not run yet."""
    from utils.report.groups import SCORES

    cells = [row]
    for score in COLUMNS[of_volumes]:
        here = "not run yet" if group is None else SCORES[of_volumes][score].text(group.scores(score))
        cells += [paper_number(row, score), here]
    return cells + (["", "", ""] if group is None else [group.seeds, group.recipes, remarks(group)])


def remarks(group: "Group") -> str:
    """Whether its numbers can stand beside the paper's, and what happened to single runs."""
    reasons = group.runs[0].differences
    return "; ".join([f"not comparable: {'; '.join(reasons)}" if reasons else "as published", *group.lost])


def write_table(work_dir: str | Path) -> Path:
    """Writes table.md into `work_dir` and returns its path."""
    path = Path(work_dir, "table.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table(work_dir).encode())
    return path


# ---- the command


def run_row(name: str, options: argparse.Namespace, flags: list[str]) -> list[int]:
    """Runs what is left of a row, or says it with --dry-run. Returns the seeds whose training failed."""
    failed = []
    for seed, state, command in plan(name, options.seeds, options.work_dir, flags):
        log.info("%s, seed %d: %s", name, seed, state if command is None else f"{state}: {shlex.join(command)}")
        if command is None or options.dry_run:
            continue
        status = launch(command)
        if status in STOPPED:
            raise KeyboardInterrupt
        if status == 2:
            raise ValueError(f"{name}, seed {seed}: the training script refused its flags or data, see above")
        if status != 0:
            log.error("%s, seed %d: the training ended with status %d", name, seed, status)
            failed.append(seed)
        write_table(options.work_dir)
    return failed


def launch(command: list[str]) -> int:
    """Runs a training in a process of its own and returns its exit status. If this process is stopped, so is that one,
    which gets the time to save what it has."""
    training = subprocess.Popen(command)
    try:
        return training.wait()
    except KeyboardInterrupt:  # the training got its own Ctrl-C from the terminal
        training.wait()
        raise
    except SystemExit:  # SIGTERM, see below
        training.terminate()
        training.wait()
        raise


def stop_on_sigterm() -> None:
    """SIGTERM raises SystemExit, so that the training ends with this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    first_flag = next((i for i, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        usage="%(prog)s [NAME...] [--seeds SEED...] [--dry-run] [FLAGS OF TRAIN.PY]",
        description=__doc__,
        epilog="NAME is one of " + ", ".join(NAMES),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help=f"one run each (default {SEEDS})")
    parser.add_argument(
        "--work-dir", default=str(RESULTS), help="folder of the runs and of table.md (default results/ beside the code)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    options, flags = parser.parse_known_args(arguments[first_flag:])
    names = arguments[:first_flag]
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        if flags and not names:
            raise ValueError(f"found {shlex.join(flags)} without an experiment, expected its name first")
        failed = run_rows(names, options, flags)
    except (ValueError, OSError) as error:
        log.error("error: %s", error)
        sys.exit(2)
    except KeyboardInterrupt:
        log.error("stopped; the same command goes on from here")
        sys.exit(130)
    sys.exit(1 if failed else 0)


def say_what_would_be_done(names: list[str], options: argparse.Namespace, flags: list[str]) -> list[int]:
    """The trainings that the same command without --dry-run starts, and the table that it writes."""
    steps = [step for name in names for step in plan(name, options.seeds, options.work_dir, flags)]
    for name in names:
        run_row(name, options, flags)
    started = sum(command is not None for _, _, command in steps)
    path = Path(options.work_dir, "table.md")
    trainings = (
        f"would start {started} of {len(steps)} trainings, one after the other, and"
        if steps
        else "nothing to train; would"
    )
    log.info("--dry-run: %s write %s", trainings, path)
    return []


def run_rows(names: list[str], options: argparse.Namespace, flags: list[str]) -> list[int]:
    """All rows, while no other process works on this folder, and the table. Returns what failed."""
    for name in names:  # mistakes are found before the first training, and before PyTorch is imported
        for seed in options.seeds:
            config_of(name, seed, options.work_dir, flags)
    if options.dry_run:
        return say_what_would_be_done(names, options, flags)
    Path(options.work_dir).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(options.work_dir, ".experiments.lock"), timeout=0):
            failed = [seed for name in names for seed in run_row(name, options, flags)]
            log.info("table: %s", write_table(options.work_dir))
            return failed
    except Timeout as error:
        raise ValueError(f"{options.work_dir}: another process of this command is at work in it") from error


if __name__ == "__main__":
    stop_on_sigterm()
    main()
