"""Pages about runs, each a single HTML file that needs nothing else.

    python -m utils.report results/RUN...                    report.html in each run's folder, made anew
    python -m utils.report results/RUN... -o compare.html    the runs side by side (compare_page.py)
    python -m utils.report results/RUN --keep FOLDER         no page: the run's small records, for a repository

Every run ends with its report.html. All numbers come from the files of the run's folder.
"""

import logging
from pathlib import Path

from utils.files import write_atomically

log = logging.getLogger("vmunet")


def report_at_end(folder: str | Path) -> None:
    """Writes the report of a run that has just ended. Whatever goes wrong is logged: it must not end a run whose
    results are there."""
    try:
        log.info("report: %s", write_report(folder))
    except Exception:
        log.exception("the report could not be made; all results are in %s; python -m utils.report tries again", folder)


def write_report(folder: str | Path) -> Path:
    """Makes report.html in a run folder, from what is in it so far, and returns its path."""
    from utils.report.page import page_bytes  # these need PyTorch and matplotlib
    from utils.report.records import Record
    from utils.report.run_page import contents

    path = Path(folder, "report.html")
    write_atomically(path, page_bytes("report.html", **contents(Record(Path(folder)))))
    return path
