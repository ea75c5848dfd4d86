"""SimpleITK, which is needed for some formats only."""

from types import ModuleType


def import_simpleitk() -> ModuleType:
    """SimpleITK. Raises ValueError with the command that installs it."""
    try:
        import SimpleITK
    except ModuleNotFoundError as error:
        raise ValueError("MetaImage and NRRD files need SimpleITK; pip install -r requirements-extra.txt") from error
    return SimpleITK
