"""The command line of predict.py: what it says, and how soon."""

import subprocess
import sys

from configs.config_setting_synapse import SynapseConfig
from datasets.synapse import ORIENTATION
from inference.options import Options
from tests.tiny import ROOT

HEAVY = ("torch", "matplotlib", "numba", "scipy")


def command(*arguments):
    """What predict.py writes, its exit status, and which of HEAVY it imported."""
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('IMPORTED', [m for m in {HEAVY!r} if m in sys.modules]))\n"
        f"sys.argv = ['predict.py', *{arguments!r}]\n"
        "runpy.run_path('predict.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    text, imported = done.stdout.rsplit("IMPORTED ", 1)
    return text + done.stderr, done.returncode, imported.strip()


def test_help_names_what_is_required_and_groups_the_rest():
    text, status, imported = command("--help")
    assert status == 0 and imported == "[]"
    assert "usage: predict.py --output FOLDER [-h] [OPTIONS] CHECKPOINT INPUT ..." in text
    for title in ("input options", "inference options", "decision options", "execution options", "results options"):
        assert title in text


def test_a_mistake_is_answered_without_pytorch(tmp_path):
    out = ("--output", str(tmp_path / "out"))
    (tmp_path / "photo.jpg").touch()
    photo = str(tmp_path / "photo.jpg")
    for arguments, words in (
        ((photo, photo, *out, "--wrong"), "--wrong"),
        (("isic17", photo), "--output"),
        ((str(tmp_path / "no.pth"), photo, *out), "no.pth: there is no such file or folder"),
        (("isic17", *out), "INPUT: found none after the checkpoint"),
        (("isic17", str(tmp_path / "nowhere.png"), *out), "nowhere.png, expected images, volumes or folders"),
        (("isic17", photo, "--output", str(tmp_path)), "found files there, expected a new or empty folder"),
    ):
        text, status, imported = command(*arguments)
        assert status == 2 and words in text and imported == "[]", (arguments, text)
    assert not (tmp_path / "out").exists()


def test_the_orientation_is_that_of_training():
    assert Options().orientation is None and SynapseConfig().orientation == ORIENTATION
