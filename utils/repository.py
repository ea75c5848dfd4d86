"""Where this code lies: the folders that are meant wherever a command is started."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"  # of runs, unless --work-dir names another folder


def here_or_beside_the_code(path: str | Path) -> Path:
    """A relative path in the working directory, or in the repository if only that has it. Others stay as they are."""
    beside = REPOSITORY / path
    return beside if beside.exists() and not Path(path).exists() else Path(path)
