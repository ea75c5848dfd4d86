"""Error messages that name files."""

import contextlib
import zipfile
import zlib

SHOWN = 10  # names in one message


def some(names):
    """The first names of a list, and how many more there are, as one string."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(name) for name in names[:SHOWN]) + more


@contextlib.contextmanager
def reading(path):
    """Errors while a file is read name the file, which those of the libraries don't always do."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from error
