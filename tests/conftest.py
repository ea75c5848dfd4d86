import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes of pytest-xdist share the cores already

import utils.start

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from utils.files import write_atomically
from utils.plots import encode_png


def pytest_report_header():
    """Say so at the start if the config files are edited: many tests hold their published values, and then fail."""
    from configs.config_setting import ISICConfig
    from configs.config_setting_synapse import SynapseConfig
    from configs.resolve import edited_values, file_of

    edited = [(file_of(kind), name) for kind in (ISICConfig, SynapseConfig) for name in edited_values(kind)]
    return [f"{file}: {name} is edited; tests of the published values fail" for file, name in edited]


def pytest_collection_modifyitems(items):
    """Files with the most slow tests come first, or one process has them to do when the others have ended."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # a file's tests stay together and in order


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Charts and figures take longer than the trainings of the tests: without the fixture `drawn` they stay empty."""
    from report import charts
    from utils import figures

    chart, picture = Markup('<svg viewBox="0 0 1 1"></svg>'), np.zeros((4, 4, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("lines", "histogram", "boxes"):
            patch.setattr(charts, name, lambda *args, **options: chart)
        patch.setattr(figures, "draw_panels", lambda *args: picture)
        patch.setattr(figures, "save_curves", lambda metrics, path: write_atomically(path, encode_png(picture)))
        yield patch


@pytest.fixture
def drawn(undrawn):
    """From here to the end of the file figures are drawn."""
    undrawn.undo()


@pytest.fixture(scope="session")
def shared():
    """Folder with the original's golden numbers: $VMUNET_SHARED, or `shared` beside the repository; skips without."""
    folder = Path(os.environ.get("VMUNET_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "oracle").is_dir():
        pytest.skip(f"needs the golden numbers; {folder}/oracle is not there")
    return folder
