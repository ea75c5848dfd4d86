"""The command `python -m report`."""

from utils.start import run_process

import argparse
import glob
import sys
from pathlib import Path

from report.compare_page import write_comparison
from report.records import Record
from report.run_page import write_report
from utils.files import print_any_text, printable, reading


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m report",
        description=sys.modules[__package__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, such as results/<run>; or a pattern")
    parser.add_argument("-o", "--output", help="compare the runs in this HTML file")
    parser.add_argument("--keep", metavar="FOLDER", help="copy the small records of one run into this new folder")
    options = parser.parse_args(arguments)
    print_any_text()
    try:
        runs, damaged = select_runs(options.runs)
        if not runs:
            raise ValueError(f"{' '.join(options.runs)}: found no finished run, expected at least one")
        if options.keep is not None:
            if len(runs) > 1 or damaged or options.output is not None:
                raise ValueError(f"--keep {options.keep}: found several runs or --output, expected one run alone")
            paths = [runs[0].copy(options.keep)]
        elif options.output is not None:
            paths = [write_comparison(runs, options.output)]
        else:
            paths = [write_report(run) for run in runs]
    except (ValueError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(map(printable, paths)))
    if damaged:
        sys.exit(2)


def select_runs(paths: list[str]) -> tuple[list[Record], int]:
    """Return the runs that paths and patterns match, and the number of damaged ones. Of several only finished runs are
    selected, as `results/*` matches more than runs; a line for each of the others is printed."""
    # Windows leaves patterns to the program
    found: list[Path] = []
    for path in paths:
        with reading(path):  # a pattern may be too deep
            found += map(Path, not Path(path).exists() and sorted(glob.glob(path)) or [path])
    if len(found) == 1:
        return [Record(found[0])], 0
    runs, damaged = [], 0
    for path in found:
        try:
            run = Record(path)
            if run.finished:
                runs.append(run)
                continue
            reason = f"{path}: not finished, {len(run.epochs)} of {run.config['epochs']} epochs; alone it gets its page"
        except (ValueError, OSError) as error:
            reason = str(error)
            damaged += not isinstance(error, FileNotFoundError)
        print(f"skipped {printable(reason)}", file=sys.stderr)
    return runs, damaged


if __name__ == "__main__":
    run_process(main)
