import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes of pytest-xdist share the cores already

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared():
    """Folder with the original's golden numbers: $VMUNET_SHARED, or `shared` beside the repository; skips without."""
    folder = Path(os.environ.get("VMUNET_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "oracle").is_dir():
        pytest.skip(f"needs the golden numbers; {folder}/oracle is not there")
    return folder
