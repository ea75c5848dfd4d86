"""Rows of the paper's tables, run with several seeds and compared with the published numbers, and rows like them.

    python -m experiments isic17-none                        train.py with 3 seeds, then results/table.md
    python -m experiments acdc-none --protocol holdout       volumes that are not in the paper
    python -m experiments isic17-none isic17-unet-none       several rows, one after the other
    python -m experiments isic17-none --seeds 42 --epochs 1  every other flag is passed to the training script
    python -m experiments isic17-none --recipe stable        the same row by another recipe
    python -m experiments isic17-none --dry-run              list finished runs and those to start
    python -m experiments isic17-none --submit slurm --submit-args timeout_min=720 gpus_per_node=1
                                                             one job for each row and seed (docs/scale.md)
    python -m experiments                                    make the table again from the existing runs

The same command resumes where it stopped: finished runs are recognised by their config.json, whoever started them, and
killed ones are resumed. Trainings whose jobs are queued or running are not started again. Don't start the command while
one of these runs is still in training elsewhere.
"""

import utils.start

import argparse
import dataclasses
import functools
import itertools
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from report.groups import SCORES, Group, group_runs
from report.paper import ROWS, paper_number, row_name
from report.run_index import can_be_resumed, find_runs, latest_run
from submission import CLUSTERS, STOPPED, Jobs
from utils.files import REPOSITORY, RESULTS, write_atomically
from utils.runs.run_folder import log_to_console

log = logging.getLogger("vmunet")

SEEDS = (42, 43, 44)
VOLUMES = ("synapse", "acdc")
DATA_SETS = ("isic17", "isic18", *VOLUMES)
MORE = [("unet", "none"), ("unet", "imagenet"), ("ultralight", "none"), ("vmunetv2", "none"), ("vmunetv2", "vmamba-s")]
NAMES = [*ROWS, "acdc-none", "acdc-vmamba-s"]
NAMES += [f"{dataset}-{network}-{weights}" for dataset in DATA_SETS for network, weights in MORE]
WEIGHTS = {"vmamba-s": "vmamba-small", "vmamba-t": "vmamba-tiny"}  # values of --load-ckpt-path
COLUMNS = {False: ("miou", "dsc"), True: ("dice_transunet", "hd95_transunet")}  # scores, by Record.of_volumes
# seed; "finished in FOLDER" or "job NUMBER is STATE" without a command, "resume" or "start" with one
Step = tuple[int, str, list[str] | None]


def arguments_of(name: str, seed: int, work_dir: str, flags: list[str]) -> list[str]:
    """Return the flags of the training script for a row's run with one seed, followed by `flags`."""
    if name not in NAMES:
        raise ValueError(f"found no experiment {name!r}, expected some of {', '.join(NAMES)}")
    dataset, _, rest = name.partition("-")
    network, _, weights = rest.partition("-")
    if network not in dict(MORE):
        network, weights = "vmunet", rest
    row = ["--dataset", dataset, "--network", network, "--load-ckpt-path", WEIGHTS.get(weights, weights)]
    return [*row, "--seed", str(seed), "--work-dir", work_dir, *flags]


def config_of(name: str, seed: int, work_dir: str, flags: list[str]) -> Any:
    """Return the config of that run. Raises ValueError also for flags that make it a run of another row."""
    arguments = arguments_of(name, seed, work_dir, flags)
    config = resolve(SynapseConfig if name.startswith(VOLUMES) else ISICConfig, arguments)
    if row_name(dataclasses.asdict(config)) != name or config.seed != seed or config.work_dir != work_dir:
        raise ValueError(
            f"{name}: found flags {shlex.join(flags)}, expected none of --dataset, --network, --seed (--seeds), "
            "--resume and --test-only, and --load-ckpt-path only for a file whose name says small or tiny like the row"
        )
    return config


def plan(name: str, seeds: list[int], work_dir: str, flags: list[str]) -> list[Step]:
    """Return what is finished of a row, and what is to be resumed and started."""
    steps: list[Step] = []
    runs = find_runs(work_dir)
    for seed in seeds:
        config = config_of(name, seed, work_dir, flags)
        command = [sys.executable, str(REPOSITORY / ("train_synapse.py" if config.of_volumes else "train.py"))]
        run = latest_run(runs, config)
        if run is not None and run.finished:
            steps.append((seed, f"finished in {run.folder}", None))
        elif run is not None and can_be_resumed(run, config):
            steps.append((seed, "resume", [*command, "--resume", str(run.folder)]))
        else:
            steps.append((seed, "start", [*command, *arguments_of(name, seed, work_dir, flags)]))
    return steps


def plan_beside_jobs(name: str, seeds: list[int], work_dir: str, flags: list[str], jobs: Jobs) -> list[Step]:
    """Return the plan without what a job does already."""
    steps: list[Step] = []
    for seed, state, command in plan(name, seeds, work_dir, flags):
        at_work = jobs.state(training_of(name, seed, flags)) if command is not None else None
        steps.append((seed, state, command) if at_work is None else (seed, at_work, None))
    return steps


def training_of(name: str, seed: int, flags: list[str]) -> str:
    """Return the text by which `Jobs` knows a training."""
    return shlex.join([name, "--seeds", str(seed), *flags])


def next_command(name: str, seed: int, work_dir: str, flags: list[str]) -> list[str] | None:
    """Return the command of a training that is to be started or resumed, None if it has finished. Jobs call it."""
    ((_, _, command),) = plan(name, [seed], work_dir, flags)
    return command


def write_table(work_dir: str | Path) -> Path:
    """Write table.md: every row of the paper, and every finished run in `work_dir` that belongs to one."""
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
        groups = group_runs([run for run in runs if run.of_volumes is of_volumes])
        rows = [row for row in ROWS if row.startswith(VOLUMES) is of_volumes]
        for row in dict.fromkeys([*rows, *(str(group.runs[0].row) for group in groups)]):
            of_row: list[Group | None] = [group for group in groups if group.runs[0].row == row]
            lines += [table_line(row_cells(row, scores, group)) for group in of_row or [None]]
    path = Path(work_dir, "table.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def table_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def row_cells(row: str, scores: Sequence[str], group: Group | None) -> list[str]:
    """Return the cells of a group of runs, or of a row without runs: scores, the paper's, and remarks."""
    cells = [row]
    for score in scores:
        cells += [paper_number(row, score), "not run yet" if group is None else group.text(score)]
    if group is None:
        return [*cells, "", "", ""]
    reasons = group.runs[0].differences
    remarks = [f"not comparable: {'; '.join(reasons)}" if reasons else "as published", *group.collapses]
    return [*cells, group.seeds, group.recipes, "; ".join(remarks)]


def log_step(name: str, step: Step) -> list[str] | None:
    """Log a step and return its command."""
    seed, state, command = step
    log.info("%s, seed %d: %s", name, seed, state if command is None else f"{state}: {shlex.join(command)}")
    return command


def run_row(name: str, seeds: list[int], work_dir: str, flags: list[str], jobs: Jobs, executor: Any) -> int:
    """Run what is left of a row and update the table after each run. Return the number of failed trainings.

    executor  of submitit, which gets the trainings as jobs; None: run them here"""
    failed = 0
    for step in plan_beside_jobs(name, seeds, work_dir, flags, jobs):
        command = log_step(name, step)
        if command is None:
            continue
        if executor is not None:
            find_command = functools.partial(next_command, name, step[0], work_dir, flags)
            log.info("submitted: %s", jobs.submit(training_of(name, step[0], flags), find_command, executor))
            continue
        status = launch(command)
        if status in STOPPED:
            raise KeyboardInterrupt
        if status == 2:
            raise ValueError(f"{name}, seed {step[0]}: the training script refused its flags or data, see above")
        if status != 0:
            log.error("%s, seed %d: the training ended with status %d", name, step[0], status)
            failed += 1
        write_table(work_dir)
    return failed


def launch(command: list[str]) -> int:
    """Run a training in a process of its own and return its exit status. If this process is stopped, the training is
    too, and gets the time to save its state."""
    training = subprocess.Popen(command)
    try:
        return training.wait()
    except SystemExit:  # SIGTERM, see stop_on_sigterm; the terminal's Ctrl-C reaches the training
        training.terminate()
        raise
    finally:
        training.wait()


def stop_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that the training ends with this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def run_rows(names: list[str], options: argparse.Namespace, flags: list[str]) -> int:
    """Run or submit all rows and write the table, if no other process does so in this folder. Return the number of
    failures."""
    seeds, work_dir = options.seeds, options.work_dir
    for name, seed in itertools.product(names, seeds):  # so that mistakes are found before the first training
        config_of(name, seed, work_dir, flags)
    table, jobs = Path(work_dir, "table.md"), Jobs(work_dir)
    if options.dry_run:
        steps = [(name, step) for name in names for step in plan_beside_jobs(name, seeds, work_dir, flags, jobs)]
        commands = [log_step(name, step) for name, step in steps]
        started = f"{len(commands) - commands.count(None)} of {len(commands)} trainings"
        how = "as jobs," if options.submit else "one after the other,"
        what = f"would start {started}, {how} and" if commands else "nothing to train; would"
        log.info("--dry-run: %s write %s", what, table)
        return 0
    executor = jobs.executor(options.submit, options.submit_args) if options.submit else None
    table.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(table.with_name(".experiments.lock"), timeout=0):
            failed = sum(run_row(name, seeds, work_dir, flags, jobs, executor) for name in names)
            log.info("table: %s", write_table(work_dir))
            return failed
    except Timeout as error:
        raise ValueError(f"{work_dir}: another process of this command is at work in it") from error


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    names = list(itertools.takewhile(lambda text: not text.startswith("-"), arguments))
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        usage="%(prog)s [NAME...] [--seeds SEED...] [--dry-run] [--submit slurm|local] [FLAGS OF TRAIN.PY]",
        description=__doc__,
        epilog="NAME is one of " + ", ".join(NAMES),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help=f"one run each (default {SEEDS})")
    parser.add_argument("--work-dir", default=str(RESULTS), help="of runs and table.md (default: results/ of the code)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be run")
    parser.add_argument("--submit", choices=CLUSTERS, help="submit a job for each row and seed, and wait for none")
    keys = "of submitit: timeout_min=720 gpus_per_node=1 cpus_per_task=12 slurm_partition=gpu ..."
    parser.add_argument("--submit-args", metavar="KEY=VALUE", nargs="+", default=(), help=keys)
    options, flags = parser.parse_known_args(arguments[len(names) :])
    log_to_console()
    log.setLevel(logging.INFO)
    try:
        if flags and not names:
            raise ValueError(f"found {shlex.join(flags)} without an experiment, expected its name first")
        if options.submit_args and not options.submit:
            raise ValueError("--submit-args: found no --submit, expected --submit slurm or local")
        failed = run_rows(names, options, flags)
    except (ValueError, OSError) as error:
        log.error("error: %s", error)
        sys.exit(2)
    except KeyboardInterrupt:
        log.error("stopped; the same command resumes from here")
        sys.exit(130)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    stop_on_sigterm()
    main()
