"""Facts about the structure. The picture of imports by folder, each row importing only from rows below it:

python tests/test_structure.py
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the bottom up. A room may import itself and rooms of earlier lines, not its neighbours on the same line. The
# longest name that fits a module is its room: utils.runs.run_folder is in utils.runs, utils.files in utils.
LAYERS = [
    ["models"],  # a library, which is installed without the rest: it imports nothing of it
    ["utils"],
    ["utils.machine", "utils.runs"],
    ["datasets"],
    ["configs"],
    ["engine"],
    ["engine_synapse", "report"],
    ["inference", "cross_validation", "training", "submission"],
    ["train", "train_synapse", "predict", "app", "export", "experiments", "hubconf"],
    ["cli"],  # which finds the others by their names
    ["setup"],
    ["configs.config_own"],  # a config to copy, which is a script too: it calls train.main
    ["benchmarks"],
    ["tests"],
]
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

MAX_LINES = 450
KERNELS = {  # which may be longer
    "models/cross_scan/cpu/cpu_kernels.py",
    "models/cross_scan/cuda/cuda_kernels.cu",
    "models/cross_scan/triton/triton_kernels.py",
}


def find_modules():
    """{dotted name: path} of all Python files of the project; a package has the name of its folder."""
    folders = (folder for folder in ROOT.iterdir() if folder.is_dir() and folder.name[0] != ".")
    paths = [*ROOT.glob("*.py")]
    for folder in folders:
        if any(folder.glob("*.py")):
            paths += folder.rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def find_imports(source, module, modules, is_package=False):
    """Those of `modules` that the source text of `module` imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in submodules]
        else:
            continue
        found |= {name for name in names if name in modules}
    return found


def find_all_imports():
    """{module: the modules of the project that it imports}"""
    return {
        module: find_imports(path.read_text(encoding="utf-8"), module, MODULES, path.name == "__init__.py")
        for module, path in MODULES.items()
    }


def room_of(module):
    """The room of a module, or None."""
    fitting = [room for room in LAYER_OF if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len, default=None)


def find_circle(imports):
    """A list of modules of which each is imported by the next and the last is the first, or None."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return None


MODULES = find_modules()
IMPORTS = find_all_imports()


def test_every_module_has_a_room():
    homeless = sorted(module for module in MODULES if room_of(module) is None)
    assert not homeless, "found modules that no line of LAYERS names"


def test_imports_go_down():
    wrong = [
        f"{module} imports {imported}"
        for module, names in IMPORTS.items()
        for imported in sorted(names)
        if room_of(module) != room_of(imported) and LAYER_OF[room_of(module)] <= LAYER_OF[room_of(imported)]
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour():
    assert find_circle(IMPORTS) is None


def test_imports_are_found_wherever_they_stand():
    source = """
import a.b, os
from a import b, name
from . import c
from .c import name as other
def function():
    from d import e
"""
    modules = {"a", "a.b", "here.c", "d", "unused"}
    assert find_imports(source, "here.me", modules) == {"a.b", "a", "here.c", "d"}
    assert find_imports(source, "here", modules, is_package=True) == {"a.b", "a", "here.c", "d"}


def test_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert set(find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_files_are_short():
    files = {path.relative_to(ROOT).as_posix(): path for path in [*MODULES.values(), *ROOT.glob("models/**/*.cu")]}
    assert files.keys() >= KERNELS
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES and name not in KERNELS}


FIRST_IMPORTS = ("import utils.start", "from utils.start import run_process")


def test_commands_import_utils_start_first():
    wrong = []
    for module, path in MODULES.items():
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        first = next((node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)), None)
        is_command = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in statements)
        if is_command and first is not None and ast.unparse(first) not in FIRST_IMPORTS:
            wrong.append(module)
    others = {"configs.config_own": "imports train.py", "datasets.formats.reader_main": "a process without PyTorch"}
    others["setup"] = "builds the package"
    assert {name for name in wrong if not name.startswith(("benchmarks.", "tests."))} == set(others)
    assert (ROOT / "benchmarks" / "__init__.py").read_text().startswith("import utils.start")


def test_no_star_imports_and_no_loggers_without_handlers():
    """Only the logger "vmunet" has handlers: lines of a logger named after its module are lost."""
    found = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                found.append(f"{module}:{node.lineno}: import *")
            if isinstance(node, ast.Call) and ast.unparse(node).endswith("getLogger(__name__)"):
                found.append(f"{module}:{node.lineno}: getLogger(__name__)")
    assert not found


def picture():
    """Lines "room -> rooms it imports", from the top down."""
    rooms = [room for layer in reversed(LAYERS) for room in layer]
    width = max(map(len, rooms))
    for room in rooms:
        imported = {room_of(name) for module, names in IMPORTS.items() if room_of(module) == room for name in names}
        yield f"{room:{width}} -> {', '.join(name for name in rooms if name in imported - {room}) or 'nothing'}"


if __name__ == "__main__":
    print("\n".join(picture()))
