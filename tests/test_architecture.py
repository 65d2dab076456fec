"""Check the rules of the code's structure, which are read from its imports."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import flr
from flr.config.schema import COMMANDS

ROOT = Path(flr.__file__).parent

# From top to bottom: a module imports modules of its own package, and of the layers below.
LAYERS = (
    ("__main__",),
    tuple(COMMANDS),
    ("sweeps", "reproduction"),
    ("detection",),
    ("training",),
    ("evaluation",),
    ("inference",),
    ("module",),
    ("cli",),
    ("config",),
    ("tracking",),
    ("reporting",),
    ("data",),
    ("augment", "metrics", "objectives", "models"),
    ("landmarks",),
    ("files", "system"),
    ("errors",),
)


def name_of(path: Path) -> str:
    """Name a module: flr/data/crops.py is flr.data.crops."""
    return ".".join(("flr", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


TEXTS = {name_of(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
SOURCES = {name: ast.parse(text) for name, text in TEXTS.items()}


def hints_only(tree: ast.Module) -> set[int]:
    """Return the nodes under ``if TYPE_CHECKING``, which never run."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return {id(node) for block in blocks for child in block.body for node in ast.walk(child)}


def imports(tree: ast.Module, top_level: bool = False) -> set[str]:
    """Return the dotted names of all modules, or names in them, that a module imports, inside functions too."""
    skip = hints_only(tree)
    if top_level:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        skip |= {id(node) for function in functions for node in ast.walk(function)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(tree: ast.Module, top_level: bool = False) -> set[str]:
    """Return the packages that a module imports."""
    return {name.partition(".")[0] for name in imports(tree, top_level)}


def module_of(name: str) -> str:
    """Return the module of a dotted name, which may be that of an object in it."""
    return name if name in SOURCES else name.rpartition(".")[0]


def package_of(module: str) -> str:
    """Return the entry of `LAYERS` that a module belongs to; empty for flr itself."""
    return module.split(".")[1] if "." in module else ""


def imported_modules(module: str, top_level: bool = False) -> set[str]:
    """Return the other modules of flr that a module imports."""
    names = {name for name in imports(SOURCES[module], top_level) if name.partition(".")[0] == "flr"}
    return {module_of(name) for name in names} - {module}


def inside(*packages: str) -> list[str]:
    """Return the modules of some packages."""
    return [module for module in SOURCES if package_of(module) in packages]


def functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield (name, lines) of each function."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}.{getattr(node, 'name', '')}".rstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, (node.end_lineno or 0) - node.lineno + 1
        yield from functions(node, name)


def test_imports_of_all_kinds_are_read():
    tree = ast.parse(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\nclass F:\n    import g\ndef f():\n    import h\n"
    )
    assert imports(tree) == {"a.b", "c.d", "g", "h"}
    assert packages(tree, top_level=True) == {"a", "c", "g"}


def test_every_command_is_a_module_that_runs():
    run = {
        module
        for module, tree in SOURCES.items()
        if any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test) for node in tree.body)
    }
    ranks = "flr.training.rank"  # no command: what torch's elastic agent starts
    assert run == {"flr.__main__", ranks, *(f"flr.{name}" for name in COMMANDS)}


def test_every_module_has_its_layer():
    placed = {name for layer in LAYERS for name in layer}
    assert {package_of(module) for module in SOURCES} - {""} <= placed


def test_modules_import_downwards():
    level = {package: number for number, layer in enumerate(LAYERS) for package in layer}
    found = set()
    for module in SOURCES:
        own = package_of(module)
        for other in imported_modules(module):
            target = package_of(other)
            if target and target != own and (not own or level[target] <= level[own]):
                found.add((module.removeprefix("flr."), other.removeprefix("flr.")))
    assert not found


def test_modules_import_each_other_in_no_circle():
    graph = {module: imported_modules(module) for module in SOURCES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_libraries_are_used_by_their_public_names():
    private = re.compile(r"\b_[a-z]\w*")
    found = {
        (module.removeprefix("flr."), name)
        for module, tree in SOURCES.items()
        for name in imports(tree)
        if not name.startswith(("flr", "__future__")) and private.search(name)
    }
    assert not found


def test_modules_and_functions_are_short():
    lines = {module.removeprefix("flr."): text.count("\n") for module, text in TEXTS.items()}
    assert not {module for module, count in lines.items() if count > 400}
    assert not {module for module in COMMANDS if lines[module] > 80}
    lengths = dict(pair for module, tree in SOURCES.items() for pair in functions(tree, module.removeprefix("flr.")))
    assert not {name for name, count in lengths.items() if count > 60}


def test_landmarks_import_nothing_of_flr_but_errors():
    for module in inside("landmarks"):
        assert all(other.startswith(("flr.errors", "flr.landmarks")) for other in imported_modules(module)), module


def test_hydra_is_imported_by_config_sweeps_and_commands_only():
    users = {module for module, tree in SOURCES.items() if "hydra" in packages(tree)}
    assert "flr.config.compose" in users
    assert users <= set(inside("config", "sweeps", "cli", *COMMANDS))


def test_mlflow_is_imported_by_tracking_and_what_reads_runs_back_only():
    users = {module for module, tree in SOURCES.items() if "mlflow" in packages(tree)}
    assert users
    run_by_mlflow = "flr.inference.pyfunc"
    assert users <= {*inside("tracking"), "flr.module.checkpoints", run_by_mlflow}
    early = {module for module, tree in SOURCES.items() if "mlflow" in packages(tree, top_level=True)}
    assert early <= {*inside("tracking"), run_by_mlflow}
    assert not any(run_by_mlflow in imports(tree) for tree in SOURCES.values())


def test_models_import_torch_alone():
    for module in inside("models"):
        tree = SOURCES[module]
        foreign = packages(tree) - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "timm", "flr"}, module
        assert "timm" not in packages(tree, top_level=True), module
        assert all(package_of(other) == "models" for other in imported_modules(module)), module


def test_exported_models_run_on_the_base_dependencies_alone():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    base = {re.split("[<>=]", need)[0].lower() for need in project["dependencies"]}
    given = {module for module, owners in packages_distributions().items() if base & {o.lower() for o in owners}}
    todo, seen = {"flr.inference.onnx"}, set()
    while todo:
        module = todo.pop()
        seen.add(module)
        assert packages(SOURCES[module], top_level=True) <= {*given, *sys.stdlib_module_names, "flr"}, module
        others = imported_modules(module, top_level=True) & set(SOURCES)
        todo |= {piece for other in others for piece in (other, *_parents(other))} - seen
    assert {"flr.data.crops", "flr.landmarks.scheme", "flr.inference"} <= seen


def _parents(name: str) -> list[str]:
    return [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]


SHOW = """
import contextlib, importlib, io, sys
from hydra.core.global_hydra import GlobalHydra
from flr.cli import run_command
from flr.config.schema import COMMANDS
for command in COMMANDS:
    for words in (["--help"], ["--cfg", "job"]):
        sys.argv = [command, *words]
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            run_command(importlib.import_module(f"flr.{command}").main, command)
        GlobalHydra.instance().clear()
        slow = {"torch", "mlflow", "pytorch_lightning", "optuna"} & sys.modules.keys()
        assert "paths" in shown.getvalue() and not slow, (command, words, slow)
"""


def test_showing_the_config_imports_no_torch(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == []
