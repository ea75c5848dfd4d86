"""The command line of the package."""

import argparse
import sys

from utils.report import write_report
from utils.report.compare_page import write_comparison
from utils.report.keep import keep_records


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.report",
        description=sys.modules[__package__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, such as results/<run>")
    parser.add_argument("-o", "--output", help="compare the runs in this HTML file")
    parser.add_argument("--keep", metavar="FOLDER", help="copy the small records of one run into this new folder")
    options = parser.parse_args(arguments)
    try:
        if options.keep is not None:
            if len(options.runs) > 1 or options.output is not None:
                raise ValueError(f"--keep {options.keep}: found several runs or --output, expected one run alone")
            paths = [keep_records(options.runs[0], options.keep)]
        elif options.output is None:
            paths = [write_report(run) for run in options.runs]
        else:
            paths = [write_comparison(options.runs, options.output)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
