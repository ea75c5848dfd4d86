"""The command line of the package."""

import argparse
import glob
import sys
from pathlib import Path
from typing import NamedTuple

from utils.report import write_report


class Chosen(NamedTuple):
    """What a command is about."""

    runs: list[str]
    passed_over: list[str]  # a sentence each
    damaged: bool  # whether one of those can't be read


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.report",
        description=sys.modules[__package__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, such as results/<run>; or a pattern")
    parser.add_argument("-o", "--output", help="compare the runs in this HTML file")
    parser.add_argument("--keep", metavar="FOLDER", help="copy the small records of one run into this new folder")
    options = parser.parse_args(arguments)
    try:
        chosen = choose(options.runs)
        for sentence in chosen.passed_over:
            print(f"passed over {sentence}", file=sys.stderr)
        if not chosen.runs:
            raise ValueError(f"{' '.join(options.runs)}: found no finished run, expected at least one")
        paths = write(chosen.runs, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(map(str, paths)))
    if chosen.damaged:
        sys.exit(2)


def choose(paths: list[str]) -> Chosen:
    """The runs that paths and patterns name. Of several, only the finished ones: `results/*` names more than runs."""
    from utils.report.records import Record

    found = [name for path in paths for name in (expand(path) or [path])]
    if len(found) == 1:
        return Chosen(found, [], False)
    chosen, passed_over, damaged = [], [], False
    for path in found:
        if not Path(path, "config.json").exists():
            passed_over.append(f"{path}: no run, it has no config.json")
            continue
        try:
            run = Record(Path(path))
            if run.finished:
                chosen.append(path)
            else:
                done = f"{len(run.epochs)} of {run.config['epochs']} epochs"
                passed_over.append(f"{path}: not finished, {done}; alone it gets its page")
        except (ValueError, OSError) as error:
            passed_over.append(str(error))
            damaged = True
    return Chosen(chosen, passed_over, damaged)


def expand(path: str) -> list[str]:
    """The paths that fit a pattern, where the shell left that to us."""
    return [] if Path(path).exists() else sorted(glob.glob(path))


def write(runs: list[str], options: argparse.Namespace) -> list[Path]:
    """What the options ask for; returns the paths."""
    if options.keep is not None:
        from utils.report.keep import keep_records

        if len(options.runs) > 1 or len(runs) > 1 or options.output is not None:
            raise ValueError(f"--keep {options.keep}: found several runs or --output, expected one run alone")
        return [keep_records(runs[0], options.keep)]
    if options.output is not None:
        from utils.report.compare_page import write_comparison

        return [write_comparison(runs, options.output)]
    return [write_report(run) for run in runs]


if __name__ == "__main__":
    main()
