"""File names in the terminal, in the log and on the page of a run: what they would order a terminal to do is shown."""

import logging
import os
import subprocess
import sys

import pytest
from PIL import Image

from datasets.check.data_report import DataReport
from report.__main__ import main
from tests.report.made_runs import make_run
from tests.tiny import ROOT
from utils.files import printable
from utils.runs.run_folder import LogFormatter, start_log, stop_log

ORDERS = "a\x1b]0;title\x07\x1b[2J\nerror: forged\rb\x9b31m\u202egpj\u2028.png"
SHOWN = r"a\x1b]0;title\x07\x1b[2J\nerror: forged\rb\x9b31m\u202egpj\u2028.png"


def test_orders_become_visible_and_other_text_stays():
    assert printable(ORDERS) == SHOWN
    assert printable("\udcff") == r"\udcff"
    for text in ("Läsion 12", "病変\u3000一", "\U0001f469\u200d\U0001f52c", "a b\\n", "ك"):
        assert printable(text) == text


def test_each_message_of_the_log_is_one_line(tmp_path, capsys):
    start_log(tmp_path)
    try:
        logging.getLogger("vmunet").warning("left out: %s", ORDERS)
    finally:
        stop_log()
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert text.endswith(f" left out: {SHOWN}\n") and text.count("\n") == 1 and "\x1b" not in text


def test_a_traceback_keeps_its_lines():
    try:
        raise ValueError("found\nthis")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "message", (), sys.exc_info())
    assert LogFormatter("%(message)s").format(record).count("\n") >= 3


def test_errors_of_report_and_problems_of_check_are_lines(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / ORDERS[:30])])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "\x1b" not in error
    report = DataReport()
    report.problems.append(f"{ORDERS}: cannot be read")
    assert f"  {SHOWN}: cannot be read\n" in report.text()


@pytest.mark.parametrize("pattern", ["*/" * 1500, "x/" * 1500, "x" * 300, "[z-a]"])
def test_a_pattern_that_finds_no_run_is_named(pattern, capsys):
    with pytest.raises(SystemExit):
        main([pattern, pattern])
    error = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("error: ", "skipped ")) for line in error) and pattern in error[-1]


def test_a_run_is_printed_in_any_console(tmp_path):
    run = make_run(tmp_path / "L\xe4sion \u75c5", [0.5])
    (run / "metrics.json").unlink()
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "report", str(run)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{tmp_path}/L\\xe4sion \\u75c5/report.html\n"


@pytest.mark.skipif(sys.platform == "win32", reason="names without control characters")
def test_a_command_shows_the_names_of_files(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "a\x1b[2J\nb.png")
    command = [sys.executable, "-m", "datasets.check", str(tmp_path / "a\x1b[2J\nb.png")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and r"a\x1b[2J\nb.png" in ended.stderr and ended.stderr.count("\n") == 1
