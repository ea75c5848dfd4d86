"""The command `vmunet` of an installation (setup.py): `vmunet predict ...` is `python predict.py ...` of a clone."""

import importlib.metadata
import pkgutil
import sys
from typing import NamedTuple


class Command(NamedTuple):
    function: str  # its module, and its name there
    extra: str  # of pyproject.toml, which installs what it needs
    summary: str


COMMANDS = {
    "predict": Command("predict:command", "predict", "masks, overlays and measurements of images and volumes"),
    "app": Command("app:command", "all", "a local web page for predictions"),
    "export": Command("export:command", "predict", "a trained network as ONNX or for torch.export"),
    "prepare isic": Command("datasets.prepare_isic:command", "train", "downloads of ISIC17 or ISIC18 as a data folder"),
    "prepare synapse": Command("datasets.prepare_synapse:command", "train", "the abdominal CTs of Synapse"),
    "prepare volumes": Command("datasets.prepare_volumes:command", "train", "volumes of your own"),
    "check": Command("datasets.check.__main__:command", "train", "look at a data folder before training"),
    "train": Command("train:command", "train", "train on images"),
    "train-synapse": Command("train_synapse:command", "train", "train on volumes"),
    "report": Command("report.__main__:main", "train", "HTML pages of runs and of their comparison"),
}


def script() -> None:
    """Do what `vmunet` was called for, and end the process."""
    from utils.start import run_process  # not above: setup.py reads COMMANDS of a folder without packages

    run_process(main)


def main() -> None:
    """Call the function of the command that the arguments begin with. It reads the other arguments."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        return print(f"vmunet {importlib.metadata.version('vmunet')}")
    name = next((n for n in (" ".join(arguments[:words]) for words in (1, 2)) if n in COMMANDS), None)
    if name is None:
        return show(arguments)
    command = COMMANDS[name]
    sys.argv[:] = [f"vmunet {name}", *arguments[len(name.split()) :]]
    try:
        function = pkgutil.resolve_name(__name__.removesuffix("cli") + command.function)
    except ModuleNotFoundError as error:
        sys.exit(f"error: found no module {error.name!r}, expected it; pip install 'vmunet[{command.extra}]'")
    function()


def show(arguments: list[str]) -> None:
    """List the commands, as help or, with exit status 2, as what was expected."""
    wanted = arguments[:1] in (["-h"], ["--help"])
    if not wanted:
        print(f"error: vmunet: found {' '.join(arguments[:2]) or 'no command'}, expected a command:", file=sys.stderr)
    lines = [f"  vmunet {name:17}{command.summary}" for name, command in COMMANDS.items()]
    lines = ["usage: vmunet COMMAND ...", "", *lines, "", "vmunet COMMAND --help shows the options of a command."]
    print("\n".join(lines), file=sys.stdout if wanted else sys.stderr)
    sys.exit(0 if wanted else 2)
