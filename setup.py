"""Builds the package `vmunet`. All else about it is in pyproject.toml.

The folder models/ becomes the package itself; the other rooms and the scripts become parts of it, such as vmunet.utils
and vmunet.train. In the copies, imports get this prefix, and help and messages name the commands of an installation.
"""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOMS = ("configs", "datasets", "inference", "report", "utils")
SCRIPTS = ("app", "cli", "cross_validation", "engine", "engine_synapse", "export", "predict")
SCRIPTS += ("train", "train_synapse", "training")
FOLDERS = {"vmunet": "models"} | {f"vmunet.{name}": name for name in (*ROOMS, "pretrained_weights")}
INCLUDED = [pattern for room in ROOMS for pattern in (room, f"{room}.*")]
PACKAGES = ["vmunet", "vmunet.pretrained_weights"]
PACKAGES += [f"vmunet.{name}" for name in find_packages("models") + find_packages(include=INCLUDED)]

COMMANDS = {  # {module: name after `vmunet`}
    command.function.partition(":")[0].removesuffix(".__main__"): name
    for name, command in runpy.run_path("cli.py")["COMMANDS"].items()
}


def command_of(module: str) -> str:
    return f"vmunet {COMMANDS[module]}" if module in COMMANDS else f"python -m vmunet.{module}"


OURS = "|".join(ROOMS + SCRIPTS)
SCRIPT = rf"(?<![\w/])({'|'.join(map(re.escape, COMMANDS))})\.py\b"
CHANGES = [  # (pattern, its replacement), in this order
    (r"^( *(?:from|import)) models\b(?=\S*(?: import|$))", r"\1 vmunet"),
    (rf"^( *(?:from|import)) ((?:{OURS})\b\S*)(?= import|$)", r"\1 vmunet.\2"),
    (rf"(torchrun .*){SCRIPT}", r"\1-m vmunet.\2"),
    (rf"(?:python )?{SCRIPT}", lambda found: command_of(found[1])),
    (rf"python -m ((?:{OURS})\b[.\w]*)", lambda found: command_of(found[1])),
    (r"pip install -r requirements(?:-extra)?\.txt", "pip install 'vmunet[all]'"),
    (r"requirements-extra\.txt", "vmunet[all]"),
    (r"\binference\.Predictor\b", "vmunet.Predictor"),
    (r"(?<![\w/])((?:data|docs)/\w+\.md)", r"\1 of the repository"),
]


def installed(source: str) -> str:
    """Return the source of a module as the package has it."""
    for pattern, replacement in CHANGES:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    return source


def install_text(path: Path) -> None:
    path.write_text(installed(path.read_text(encoding="utf-8")), encoding="utf-8")


class BuildPackage(build_py):
    def run(self):
        if self.editable_mode:
            raise SetupError("pip install -e: found an editable installation, expected `pip install .`")
        super().run()

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        scripts = [(package, name, f"{name}.py") for name in SCRIPTS]
        return modules + (scripts if package == "vmunet" else [])

    def build_module(self, module, module_file, package):
        copy, copied = super().build_module(module, module_file, package)
        install_text(Path(copy))
        return copy, copied

    def build_package_data(self):
        super().build_package_data()
        for pattern in ("report/templates/*.html", "pretrained_weights/*.md"):
            for path in Path(self.build_lib, "vmunet").glob(pattern):
                install_text(path)


if __name__ == "__main__":
    setup(packages=PACKAGES, package_dir=FOLDERS, cmdclass={"build_py": BuildPackage})
