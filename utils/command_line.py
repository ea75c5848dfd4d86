"""The command line of both training scripts: every field of the config is a flag."""

import logging
import sys

import tyro

from engine import NonFiniteLossError
from utils.run import stop_log

log = logging.getLogger("vmunet")


def run_command(main, config_class):
    """Calls `main` with the config that the command line describes.

    What a user can mend (a wrong value, a missing file) is said in one sentence, with exit status 2; a loss that is not
    finite ends with status 1. --debug shows the traceback."""
    logging.basicConfig(format="%(message)s")  # until the run has its own log
    config = tyro.cli(config_class, description=sys.modules[config_class.__module__].__doc__)
    try:
        main(config)
    except (ValueError, OSError, NonFiniteLossError) as error:
        log.error("error: %s", error)
        if config.debug:
            raise
        sys.exit(1 if isinstance(error, NonFiniteLossError) else 2)
    finally:
        stop_log()
