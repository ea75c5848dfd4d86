"""The command line of the package."""

import argparse
import sys

from utils.report import write_report
from utils.report.compare_page import write_comparison


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.report",
        description=sys.modules[__package__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, such as results/<run>")
    parser.add_argument("-o", "--output", help="compare the runs in this HTML file")
    options = parser.parse_args(arguments)
    try:
        if options.output is None:
            paths = [write_report(run) for run in options.runs]
        else:
            paths = [write_comparison(options.runs, options.output)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
