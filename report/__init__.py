"""Pages about runs, each a single HTML file without dependencies.

    python -m report results/RUN...                    make report.html in each run's folder again
    python -m report results/RUN... -o compare.html    compare the runs side by side (compare_page.py)
    python -m report results/RUN --keep FOLDER         no page: copy the run's small records, for a repository

Every run ends with its report.html. All numbers come from the files in the run's folder.
"""

import logging
from pathlib import Path

log = logging.getLogger("vmunet")


def report_at_end(folder: str | Path) -> None:
    """Write the report of a run that has just ended. Every error is logged and none is raised: it must not end a run
    whose results are there."""
    try:
        from report.records import Record  # in the block, because an import can fail too
        from report.run_page import write_report

        log.info("report: %s", write_report(Record(Path(folder))))
    except Exception:
        log.exception("the report could not be made; all results are in %s; python -m report tries again", folder)
