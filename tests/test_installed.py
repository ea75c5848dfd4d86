"""The installed package `vmunet`: what setup.py makes of the repository, its extras, its command, and its results."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cli
import predict
from configs.config_setting_synapse import SynapseConfig
from datasets.demo import make_demo_isic
from tests.inference.networks import SMALL, save_trained
from tests.inference.test_dicom import write_series
from tests.inference.test_volume_inputs import nifti
from tests.tiny import NETWORK, ROOT, TRAINING_FLAGS
from utils.runs.run_folder import stop_log

setuptools = pytest.importorskip("setuptools", minversion="77")
setup = pytest.importorskip("setup")

PHOTOGRAPH = ROOT / "data/samples/images/ISIC_0012143.jpg"
FOLDERS = (*setup.ROOMS, "models")
MODULES = [ROOT / f"{name}.py" for name in setup.SCRIPTS] + [
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
]
NOT_INSTALLED = {"experiments", "hubconf", "setup", "submission"}


# ---- what changes in the copies


class Outline(ast.NodeTransformer):
    """Leaves texts out, and renames the modules that are imported if `renames`."""

    def __init__(self, renames):
        self.renames = renames

    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node

    def renamed(self, name):
        first = name.partition(".")[0]
        if not self.renames or first not in (*FOLDERS, *setup.SCRIPTS):
            return name
        return "vmunet" + name.removeprefix("models") if first == "models" else f"vmunet.{name}"

    def visit_Import(self, node):
        return ast.Import([ast.alias(self.renamed(alias.name), alias.asname) for alias in node.names])

    def visit_ImportFrom(self, node):
        return ast.ImportFrom(node.module if node.level else self.renamed(node.module), node.names, node.level)


def test_imports_are_renamed_and_other_code_is_the_same():
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        copy = setup.installed(source)
        before, after = Outline(True).visit(ast.parse(source)), Outline(False).visit(ast.parse(copy))
        assert ast.dump(after) == ast.dump(before), path
        assert not re.search(r"python (-m (?!vmunet\.)|\w+\.py)|requirements-extra", copy), path


def test_all_scripts_are_installed():
    assert {path.stem for path in ROOT.glob("*.py")} == {*setup.SCRIPTS} | NOT_INSTALLED


@pytest.mark.parametrize(
    "text, expected",
    [
        ("python train.py --resume", "vmunet train --resume"),
        ("see train_synapse.py --help", "see vmunet train-synapse --help"),
        ("torchrun --nproc_per_node=2 train.py", "torchrun --nproc_per_node=2 -m vmunet.train"),
        ("python -m datasets.prepare_isic --source", "vmunet prepare isic --source"),
        ("python -m datasets.check, python -m report tries", "vmunet check, vmunet report tries"),
        ("python -m datasets.same_lesion a", "python -m vmunet.datasets.same_lesion a"),
        ("pip install -r requirements-extra.txt", "pip install 'vmunet[all]'"),
        ("no folder (data/README.md)", "no folder (data/README.md of the repository)"),
        ("edit configs/config_setting.py, engine.py", "edit configs/config_setting.py, engine.py"),
    ],
)
def test_texts_name_the_commands_of_an_installation(text, expected):
    assert setup.installed(text) == expected


def test_editable_installations_are_refused():
    build = setup.BuildPackage(setuptools.Distribution())
    build.editable_mode = True
    with pytest.raises(setup.SetupError, match="-e: found .*expected"):
        build.run()


# ---- extras


def test_extras_and_requirements_name_the_same_packages():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def by_name(lines):
        found = [Requirement(line) for line in lines if line and line[0] not in "#-"]
        return {canonicalize_name(one.name): one for one in found if one.name != "vmunet"}

    extras = project["optional-dependencies"]
    needed = by_name([*project["dependencies"], *extras["predict"], *extras["train"]])
    everything = needed | by_name(extras["all"])
    lines = [(ROOT / f"requirements{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("", "-extra")]
    assert by_name(lines[0]).keys() <= needed.keys()
    pinned = [one for one in lines[0] + lines[1] if not one.startswith("submitit")]  # of experiments.py, in no wheel
    assert by_name(pinned).keys() == everything.keys()
    for pin in map(Requirement, (line for line in pinned if line[0] not in "#-")):  # each Python's
        (version,) = pin.specifier
        assert everything[canonicalize_name(pin.name)].specifier.contains(version.version), pin


# ---- the command


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vmunet", *name.split(), "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and f"usage: vmunet {name} [" in setup.installed(capsys.readouterr().out)


def test_the_version_is_the_packages(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vmunet", "--version"])
    monkeypatch.setattr(importlib.metadata, "version", {"vmunet": "1.2"}.__getitem__)
    cli.main()
    assert capsys.readouterr().out == "vmunet 1.2\n"


@pytest.mark.parametrize("arguments, status", [("--help", 0), ("", 2), ("predcit x", 2), ("prepare", 2)])
def test_other_names_list_the_commands(arguments, status, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vmunet", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == status and (said.err == "") == (status == 0)
    assert all(f"vmunet {name} " in said.out + said.err for name in cli.COMMANDS)
    assert status == 0 or f"found {arguments or 'no command'}, expected" in said.err


def test_a_command_without_its_extra_says_which():
    call = "import cli, sys; sys.argv = ['vmunet', 'train']; cli.main()"
    ended = subprocess.run([sys.executable, "-S", "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert "found no module" in ended.stderr and "pip install 'vmunet[train]'" in ended.stderr


# ---- built and installed


def pip(*arguments):
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", *map(str, arguments), *options], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the source distribution of a copy: a build leaves folders beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    others = (".*", "tests", "results", "data", "benchmarks", "build", "*.egg-info", "__pycache__", "*.pth")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*others))
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "source", check=True, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, sdist)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--target", folder, wheel)
    return folder


@pytest.fixture
def installed(site, tmp_path):
    """Run Python in an empty folder, with nothing but vmunet and the packages of one of its extras."""

    def run(extra, *arguments):
        packages = tmp_path / "packages"
        packages.mkdir()
        needed = Requirement(f"vmunet[{extra}]" if extra else "vmunet")
        for top in top_level_names(needed, site):
            (packages / top.name).symlink_to(top)
        environment = {"PYTHONPATH": f"{site}{os.pathsep}{packages}", "PATH": "", "OMP_NUM_THREADS": "1"}
        folder = tmp_path / "empty"
        folder.mkdir()
        command = [sys.executable, "-S", *map(str, arguments)]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return folder

    return run


def top_level_names(needed, site):
    """The files and folders in site-packages of what a requirement needs, and of what that needs."""
    (vmunet,) = importlib.metadata.distributions(name="vmunet", path=[str(site)])
    todo, done, found = [needed], set(), set()
    while todo:
        one = todo.pop()
        if str(one) in done:
            continue
        done.add(str(one))
        is_ours = one.name == "vmunet"
        distribution = vmunet if is_ours else importlib.metadata.distribution(one.name)
        for text in distribution.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in one.extras or {""}):
                inner.marker = None
                todo.append(inner)
        if not is_ours:
            names = {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}
            found |= {Path(str(distribution.locate_file(name))) for name in names}
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert b"vmunet report" in archive.read("vmunet/report/templates/report.html")
        assert b"vmunet predict isic17" in archive.read("vmunet/pretrained_weights/vmunet_isic17.md")
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"vmunet"}
    kinds = {".py", ".cu", ".cuh", ".cc", ".h", ".csv", ".txt", ".lst", ".json", ".html", ".mplstyle"}
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    expected = {path.relative_to(ROOT).as_posix().removeprefix("models/") for path in [*sources, *MODULES]}
    expected |= {
        f"pretrained_weights/vmunet_isic17{end}" for end in (".h5", ".md", "_calibration.png", "_failures.jpg")
    }
    assert {name.removeprefix("vmunet/") for name in names if ".dist-info/" not in name} == expected


NETWORKS = f"""
import sys, vmunet
assert vmunet.onnx.session
assert "torch" not in sys.modules and "VMUNet" in dir(vmunet)
import torch
network = vmunet.VMUNet(**{NETWORK})
images = torch.rand(2, 3, 32, 32)
network(images).sum().backward()
assert all(p.grad is not None for p in network.parameters())
try:
    from vmunet import Predictor
except ImportError as error:
    assert "pip install 'vmunet[predict]'" in str(error)
else:
    raise AssertionError
assert not {{"models", "utils", "configs", "datasets"}} & sys.modules.keys()
"""

BOTH = f"""
import sys, torch, vmunet
from vmunet.cross_scan.export import onnx_scan
sys.path.append({str(ROOT)!r})
import models
from models.cross_scan.export import onnx_scan as other
results = []
for package in (vmunet, models):
    torch.manual_seed(0)
    network = package.VMUNet(**{NETWORK})
    network(torch.ones(1, 3, 32, 32)).sum().backward()
    results.append([p.grad for p in network.parameters()])
torch.testing.assert_close(*results)
assert vmunet.VMUNet is not models.VMUNet and torch.ops.vmunet.cross_scan is not torch.ops.models.cross_scan
assert onnx_scan.functions() == other.functions()
"""


@pytest.mark.slow
def test_networks_need_no_extra_and_import_torch_late(installed):
    installed("", "-c", NETWORKS)


@pytest.mark.slow
def test_the_package_and_the_repository_work_in_one_process(site, tmp_path):
    """Each has operators of its own: torch.ops.vmunet and torch.ops.models."""
    pytest.importorskip("onnxscript")
    environment = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", BOTH], cwd=tmp_path, env=environment, check=True)


def assert_same_masks(folder, tmp_path, checkpoint, *inputs):
    """As predict.py of the repository writes them. Returns their names."""
    options = dict(checkpoint=str(checkpoint), inputs=tuple(map(str, inputs)), output=str(tmp_path / "clone"))
    try:
        predict.main(predict.PredictConfig(**options))
    finally:
        stop_log()
    masks, expected = (
        {path.name: path.read_bytes() for path in (out / "masks").iterdir()} for out in (folder, tmp_path / "clone")
    )
    assert masks == expected and masks
    return sorted(masks)


@pytest.mark.slow
def test_the_shipped_network_predicts_in_an_empty_folder(installed, site, tmp_path):
    folder = installed("predict", site / "bin/vmunet", "predict", "isic17", PHOTOGRAPH, "--output", "out")
    assert len(assert_same_masks(folder / "out", tmp_path, "isic17", PHOTOGRAPH)) == 1
    assert [path.name for path in folder.iterdir()] == ["out"]


@pytest.mark.slow
def test_volumes_are_read_by_a_process_of_the_package(installed, site, tmp_path):
    organs = save_trained(tmp_path, SynapseConfig(**SMALL))
    inputs = [tmp_path / "scan.nii.gz", write_series(tmp_path / "series")]
    nifti(inputs[0])
    folder = installed("predict", site / "bin/vmunet", "predict", organs, *inputs, "--output", "out")
    assert len(assert_same_masks(folder / "out", tmp_path, organs, *inputs)) == 2


@pytest.mark.slow
def test_data_and_results_belong_to_the_current_folder(installed, site, tmp_path):
    data = make_demo_isic(tmp_path / "isic", size=40, train=4, val=2, test=1)
    flags = "--dataset demo --data-path".split() + [data, *TRAINING_FLAGS, "--epochs", "1"]
    folder = installed("train", site / "bin/vmunet", "train", *flags)
    (run,) = (folder / "results").iterdir()
    assert (run / "report.html").is_file() and (run / "checkpoints/best.pth").is_file()
